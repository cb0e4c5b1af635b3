"""Read the files of a model from a local or S3 folder, verify them, and build the model."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

from raypipe.errors import FingerprintError, ObjectError, ObjectMissingError, WeightsError
from raypipe.models.classifier import MaskedFrameModel, VideoClassifier, VideoClassifierConfig
from raypipe.models.gpt2 import VideoModel
from raypipe.storage import Folder
from raypipe.text import one_line

CONFIG, WEIGHTS, COMPLETE = "config.json", "model.safetensors", "complete.json"
MODEL_FOLDER = "model"
_KINDS: Mapping[str, type[VideoModel]] = {kind.__name__: kind for kind in (VideoClassifier, MaskedFrameModel)}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The content of a model's files, the SHA-256 that identifies the model, and the URI of its folder."""

    files: Mapping[str, bytes]
    digest: str
    source: str


def read_model(folder: Folder) -> ModelFiles:
    """Read the model in an output of ``raypipe train``, or in a folder that ``save_pretrained`` wrote.

    Raises:
        WeightsError: there is no model, or its files differ from the files that were saved.
        StorageError: the storage denies access or cannot be reached.
    """
    inner = Folder(folder.child(MODEL_FOLDER))
    source = inner if inner.exists(CONFIG) else folder
    try:
        files = {name: source.read(name) for name in (CONFIG, WEIGHTS)}
    except ObjectMissingError:
        msg = f"{folder} holds no model: no {CONFIG} and {WEIGHTS} in it or in {MODEL_FOLDER}/."
        remedy = "Give the finished --output of raypipe train, or a folder of save_pretrained."
        raise WeightsError(msg, key=folder.uri, remedy=remedy) from None
    except ObjectError as error:
        msg = f"Cannot read the model in {source}: {error}"
        raise WeightsError(msg) from None
    _check_complete(source, files)
    digest = hashlib.sha256(b"".join(hashlib.sha256(files[name]).digest() for name in sorted(files)))
    return ModelFiles(files, digest.hexdigest(), source.uri)


def _check_complete(source: Folder, files: Mapping[str, bytes]) -> None:
    """Check that files that raypipe saved still have the digests in ``complete.json``.

    Folders of other tools have no such file and are not checked.
    """
    try:
        said = json.loads(source.read(COMPLETE))["sha256"]
    except ObjectMissingError:
        return  # a folder of another tool: safetensors itself detects a truncated file
    except (ObjectError, KeyError, TypeError, ValueError):
        said = {}
    for name, data in files.items():
        if said.get(name) != hashlib.sha256(data).hexdigest():
            msg = f"{source.child(name)} does not have the digest in {COMPLETE}."
            raise WeightsError(msg, key=source.child(name), remedy="Train again, or restore it.")


def digests(files: Mapping[str, bytes]) -> bytes:
    """Return the content of ``complete.json``: the digest of each file. It is written after all other files."""
    sha256 = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return json.dumps({"sha256": sha256}, indent=1).encode()


def build_model(files: ModelFiles) -> VideoModel:
    """Build a model from its files. It has float32 weights, is on the CPU, and is in evaluation mode.

    Raises:
        WeightsError: the files do not hold a model of raypipe, or are corrupt.
    """
    config = read_config(files)
    kind = _KINDS.get((config.architectures or [""])[0])
    if kind is None:
        msg = f"{files.source} does not hold a model of raypipe: architectures is {config.architectures}."
        raise WeightsError(msg, key="architectures", value=config.architectures, choices=_KINDS)
    model = kind(config)
    try:
        model.load_state_dict(safetensors.torch.load(files.files[WEIGHTS]))
    except (SafetensorError, RuntimeError) as error:
        uri = f"{files.source}/{WEIGHTS}"
        msg = f"{uri} is corrupt or does not fit its {CONFIG}: {one_line(error)[:300]}"
        raise WeightsError(msg, key=uri) from None
    model.eval()
    return model


def build_classifier(files: ModelFiles) -> VideoClassifier:
    """Build a classifier from its files, like ``build_model``.

    Raises:
        WeightsError: the files do not hold a model of raypipe or are corrupt, or the model was trained without labels.
    """
    model = build_model(files)
    if not isinstance(model, VideoClassifier):
        msg = f"{files.source} was trained without labels (objective masked_frame)."
        remedy = f"Train with init_from={files.source!r}."
        raise WeightsError(msg, key="objective", value="masked_frame", expected="classify", remedy=remedy)
    return model


def read_config(files: ModelFiles) -> VideoClassifierConfig:
    """Read the configuration of a model.

    Raises:
        WeightsError: the file is not the configuration of a raypipe model.
    """
    try:
        tree: Any = json.loads(files.files[CONFIG])
        if tree["model_type"] != VideoClassifierConfig.model_type:
            msg = f"model_type is {tree['model_type']!r}, not {VideoClassifierConfig.model_type!r}"
            raise ValueError(msg)  # noqa: TRY301 - one message for all errors
        return VideoClassifierConfig.from_dict(tree)
    except Exception as error:  # noqa: BLE001 - a corrupt file makes transformers raise nearly anything
        uri = f"{files.source}/{CONFIG}"
        msg = f"{uri} is not the configuration of a raypipe model: {one_line(error)}"
        raise WeightsError(msg, key=uri) from None


def check_embeddings(
    files: ModelFiles, fingerprint: str, embedding_dim: int, *, comparable: Collection[str] = ()
) -> None:
    """Refuse embeddings that are not comparable with the embeddings on which the model was trained.

    ``fingerprint`` and ``embedding_dim`` describe the embeddings to check. ``comparable`` holds the fingerprints of
    other embeddings that are comparable with them.

    Raises:
        FingerprintError: the embeddings were made with other settings, or have another size.
    """
    learned = read_config(files)
    if learned.embedding_dim != embedding_dim:
        msg = f"{files.source} takes embeddings of {learned.embedding_dim} numbers, but these have {embedding_dim}."
        remedy = "Embed with the backbone that the model was trained on, or train again."
        expected = learned.embedding_dim
        raise FingerprintError(msg, key="embedding_dim", value=embedding_dim, expected=expected, remedy=remedy)
    if (before := learned.embedding_fingerprint) not in {None, fingerprint, *comparable}:
        msg = f"{files.source} was trained on embeddings with fingerprint {before}, but these have {fingerprint}."
        remedy = "Embed with the same settings, or train again."
        raise FingerprintError(msg, key="embedding_fingerprint", value=fingerprint, expected=before, remedy=remedy)
