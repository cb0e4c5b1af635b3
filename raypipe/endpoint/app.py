"""The Ray Serve application, as ``serve deploy`` builds it: ``import_path: raypipe.endpoint.app:build_app``."""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from raypipe.config import ServeConfig
from raypipe.config.serve import ReplicasConfig
from raypipe.dataset.plan import comparable_fingerprints
from raypipe.endpoint.http import RETRY_AFTER_SECONDS
from raypipe.endpoint.limits import TOKEN_VARIABLE, digest_of
from raypipe.endpoint.models import CLASSIFY_BATCH, EMBED_BATCH, Classifier, Embedder
from raypipe.endpoint.play_links import new_play_key
from raypipe.endpoint.replica import DEPLOYMENT, Replica, ReplicaApplication
from raypipe.endpoint.uploads import EmbeddingSettings
from raypipe.errors import ConfigError, IndexVersionError, SetupError
from raypipe.search.versions import Versions
from raypipe.storage import Folder

_logger = logging.getLogger(__name__)
_ROOM = 8  # Serve lets 8 times a replica's limit through, because the replica itself rejects the excess
_HEALTH_SECONDS = 60.0  # a model may be busy with a batch


@dataclass(frozen=True, slots=True)
class Abilities:
    """What this server can do in addition to recommending videos. This is decided before it starts."""

    embeddings: EmbeddingSettings | None  # of the index; None if the server cannot embed videos
    why_no_embedder: str = ""
    has_classifier: bool = False


def build_app(args: ServeConfig) -> Application:
    """Build the application with all abilities that are available. Raises the same errors as ``find_abilities``."""
    abilities = find_abilities(args)
    if abilities.why_no_embedder:
        _logger.warning(abilities.why_no_embedder)
    return build(args, abilities)


def build(config: ServeConfig, abilities: Abilities) -> Application:
    limits, embedder, classifier = config.limits, None, None
    if abilities.embeddings is not None:
        embedder = _model(Embedder, config, batch=EMBED_BATCH).bind(config, abilities.embeddings)
    if abilities.has_classifier:
        classifier = _model(Classifier, config, batch=CLASSIFY_BATCH).bind(config)
    most = _ROOM * limits.max_in_flight
    ingress = serve.deployment(
        name=DEPLOYMENT,
        max_ongoing_requests=most,
        max_queued_requests=most,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_SECONDS),
        logging_config=LoggingConfig(enable_access_log=False),
        **_scaling(config.replicas, target=limits.max_in_flight / 2),
    )(serve.ingress(ReplicaApplication())(Replica))
    token_digest = digest_of(os.environ.get(TOKEN_VARIABLE))
    return ingress.bind(
        config,
        token_digest=token_digest,
        play_secret=token_digest or new_play_key(),
        fingerprint=abilities.embeddings.fingerprint if abilities.embeddings else None,
        embedder=embedder,
        classifier=classifier,
    )


def _model(model: type[Any], config: ServeConfig, *, batch: int) -> Deployment:
    return serve.deployment(
        name=model.__name__,
        max_ongoing_requests=2 * batch,  # one batch in flight while the next one fills
        max_queued_requests=config.limits.max_videos_in_flight,
        health_check_timeout_s=_HEALTH_SECONDS,
        **_scaling(config.model_replicas, target=batch / 2),
    )(model)


def _scaling(replicas: ReplicasConfig, *, target: float) -> dict[str, Any]:
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=replicas.min, max_replicas=replicas.max, target_ongoing_requests=max(1.0, target)
        ),
        "ray_actor_options": {"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
        "max_replicas_per_node": replicas.max_per_node,
    }


def find_abilities(config: ServeConfig) -> Abilities:
    """Check the index, the weights and the model, and return what the server can do.

    If ``embedder.enabled`` is auto and the weights cannot be used, the server cannot embed or classify videos.

    Raises:
        ConfigError: the embedder or the classifier is required, but there is no index yet to check it against.
        WeightsError: the model cannot be read, or ``embedder.enabled`` is true and the weights cannot be found.
        FingerprintError: the model does not match the index's embeddings, or ``embedder.enabled`` is true and the
            weights do not match them.
    """
    versions = Versions(Folder(config.index))
    manifest = _newest_manifest(versions)
    is_required = config.embedder.enabled is True or config.model is not None
    if manifest is None:
        why = f"This server cannot embed videos: there was no index in {config.index} when it started."
        if is_required:
            remedy = "Run raypipe index first, or remove embedder.enabled=true and model."
            raise ConfigError(why, key="index", value=config.index, remedy=remedy)
        return Abilities(None, why)
    if config.model is not None:
        _check_model(config.model, manifest)
    if config.embedder.enabled is False:
        return Abilities(None, "This server cannot embed videos: embedder.enabled is false.")
    try:
        settings = EmbeddingSettings.of(manifest)
        settings.check_backbone(versions, config.embedder.weights)
    except SetupError as error:
        if config.embedder.enabled is True:
            raise
        return Abilities(None, f"This server cannot embed videos: {error}")
    return Abilities(settings, has_classifier=config.model is not None)


def _newest_manifest(versions: Versions) -> Mapping[str, Any] | None:
    """Return the manifest of the current version or, if it cannot be read, the newest readable manifest.

    Return None if there is no current version, or if no manifest is readable.
    """
    try:
        current = versions.current()
        return None if current is None else versions.read_manifest(current)
    except IndexVersionError:
        for version in reversed(versions.list()):
            with suppress(IndexVersionError):
                return versions.read_manifest(version)
        return None


def _check_model(model: str, manifest: Mapping[str, Any]) -> None:
    from raypipe.models.classifier_files import build_classifier, check_embeddings, read_model  # noqa: PLC0415

    files, embeddings = read_model(Folder(model)), manifest["embeddings"]
    build_classifier(files)
    comparable = comparable_fingerprints(embeddings.get("settings", {}))
    check_embeddings(files, embeddings["fingerprint"], manifest["embedding_dim"], comparable=comparable)
