"""The application: what ``import_path: raypipe.endpoint.app:build_app`` of ``serve deploy`` names."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.schema import LoggingConfig

from raypipe.config import ServeConfig
from raypipe.config.serve import ReplicasConfig
from raypipe.dataset.plan import comparable_fingerprints
from raypipe.endpoint.access import TOKEN_VARIABLE, digest_of
from raypipe.endpoint.deployments import CLASSIFY_BATCH, EMBED_BATCH, Classifier, Embedder
from raypipe.endpoint.http_errors import RETRY_AFTER_SECONDS
from raypipe.endpoint.ingress import Api, Entrance
from raypipe.endpoint.videos import EmbeddingSettings
from raypipe.errors import ConfigError, IndexVersionError, SetupError
from raypipe.search.versions import Versions
from raypipe.storage import Folder

_logger = logging.getLogger(__name__)
_ROOM = 8  # requests that reach a replica to be refused there, for each that it answers
_HEALTH_SECONDS = 60.0  # a model may be busy with a batch


@dataclass(frozen=True, slots=True)
class Abilities:
    """What this server can do besides recommending, settled before it starts."""

    embeddings: EmbeddingSettings | None  # of the index; None: no video is embedded
    why_no_embedder: str = ""
    has_classifier: bool = False


def build_app(args: ServeConfig) -> Application:
    """Build the application; what it cannot do is settled here.

    Raises:
        SetupError: the index, the model or the embedder that the configuration insists on cannot be had.
    """
    abilities = find_abilities(args)
    if abilities.why_no_embedder:
        _logger.warning(abilities.why_no_embedder)
    return build(args, abilities)


def build(config: ServeConfig, abilities: Abilities) -> Application:
    """Build the application with abilities that are known."""
    embedder = classifier = None
    if abilities.embeddings is not None:
        embedder = _deployment(Embedder, config, config.model_replicas, batch=EMBED_BATCH).bind(
            config, abilities.embeddings
        )
    if abilities.has_classifier:
        classifier = _deployment(Classifier, config, config.model_replicas, batch=CLASSIFY_BATCH).bind(config)
    return _ingress(config).bind(
        config,
        token_digest=digest_of(os.environ.get(TOKEN_VARIABLE)),
        fingerprint=abilities.embeddings.fingerprint if abilities.embeddings else None,
        embedder=embedder,
        classifier=classifier,
    )


def _ingress(config: ServeConfig) -> Deployment:
    wrapped = serve.ingress(Entrance())(Api)
    most = _ROOM * config.limits.max_in_flight
    return serve.deployment(
        name=Api.__name__,
        max_ongoing_requests=most,
        max_queued_requests=most,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_SECONDS),
        autoscaling_config=_autoscaling(config.replicas, target=config.limits.max_in_flight / 2),
        **_place(config.replicas),
        logging_config=LoggingConfig(enable_access_log=False),
    )(wrapped)


def _deployment(model: type[Any], config: ServeConfig, replicas: ReplicasConfig, *, batch: int) -> Deployment:
    return serve.deployment(
        name=model.__name__,
        max_ongoing_requests=2 * batch,  # one batch at work, and one that fills
        max_queued_requests=config.limits.max_videos_in_flight,
        autoscaling_config=_autoscaling(replicas, target=batch / 2),
        **_place(replicas),
        health_check_timeout_s=_HEALTH_SECONDS,
    )(model)


def _autoscaling(replicas: ReplicasConfig, *, target: float) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=replicas.min, max_replicas=replicas.max, target_ongoing_requests=max(1.0, target)
    )


def _place(replicas: ReplicasConfig) -> dict[str, Any]:
    return {
        "ray_actor_options": {"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus},
        "max_replicas_per_node": replicas.max_per_node,
    }


def find_abilities(config: ServeConfig) -> Abilities:
    """Look at the index, the weights and the model; ``embedder.enabled`` auto makes do without the weights.

    Raises:
        ConfigError: the embedder or the classifier is insisted on, and there is no index yet to fit it to.
        WeightsError: the model cannot be read; with enabled=true the weights cannot be found.
        FingerprintError: the model is of other embeddings than the index; with enabled=true the weights are.
    """
    manifest = _newest_manifest(Versions(Folder(config.index)))
    insisted = config.embedder.enabled is True or config.model is not None
    if manifest is None:
        why = f"There was no index in {config.index} when this server started, to say how its videos were embedded."
        if insisted:
            remedy = "Run raypipe index first, or leave out embedder.enabled=true and model."
            raise ConfigError(why, key="index", value=config.index, remedy=remedy)
        return Abilities(None, why)
    if config.model is not None:
        _check_model(config.model, manifest)
    if config.embedder.enabled is False:
        return Abilities(None, "This server embeds no videos: embedder.enabled is false.")
    try:
        settings = EmbeddingSettings.of(manifest)
        settings.resolve_weights(config.embedder.weights)
    except SetupError as error:
        if config.embedder.enabled is True:
            raise
        return Abilities(None, f"This server embeds no videos: {error}")
    return Abilities(settings, has_classifier=config.model is not None)


def _newest_manifest(versions: Versions) -> Mapping[str, Any] | None:
    """That of the live version, or of the newest one that can be read; None where there is none."""
    try:
        current = versions.current()
        return None if current is None else versions.read_manifest(current)
    except IndexVersionError:
        for version in reversed(versions.list()):
            try:
                return versions.read_manifest(version)
            except IndexVersionError:
                continue
        return None


def _check_model(model: str, manifest: Mapping[str, Any]) -> None:
    from raypipe.models.classifier_files import build_classifier, check_embeddings, read_model  # noqa: PLC0415

    files = read_model(Folder(model))
    build_classifier(files)
    embeddings = manifest["embeddings"]
    check_embeddings(
        files,
        embeddings["fingerprint"],
        manifest["embedding_dim"],
        comparable=comparable_fingerprints(embeddings.get("settings", {})),
    )
