"""Build a model that reads the frames of videos from its files."""

import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError

from raypipe.errors import FingerprintError, WeightsError
from raypipe.models.classifier import VideoClassifier, VideoClassifierConfig
from raypipe.models.gpt2 import VideoModel
from raypipe.models.model_files import COMPLETE, CONFIG, MODEL_FOLDER, WEIGHTS, ModelFiles, digests, read_model
from raypipe.models.pretraining import FrameOrderModel, MaskedFrameModel
from raypipe.text import one_line

__all__ = [
    "COMPLETE",
    "CONFIG",
    "MODEL_FOLDER",
    "WEIGHTS",
    "ModelFiles",
    "build_classifier",
    "build_masked_frame_model",
    "build_model",
    "check_embeddings",
    "digests",
    "read_config",
    "read_model",
]
Kind = TypeVar("Kind", bound=VideoModel)
_KINDS: Mapping[str, type[VideoModel]] = {
    kind.__name__: kind for kind in (VideoClassifier, MaskedFrameModel, FrameOrderModel)
}


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
    what, remedy = "was trained without labels", f"Train with init_from={files.source!r}."
    return _build_kind(files, VideoClassifier, otherwise=what, remedy=remedy)


def build_masked_frame_model(files: ModelFiles) -> MaskedFrameModel:
    """Build a masked-frame model from its files, like ``build_model``.

    Raises:
        WeightsError: the files do not hold a model of raypipe or are corrupt, or the model predicts no hidden frames.
    """
    what, remedy = "does not predict hidden frames", "Train with objective=masked_frame."
    return _build_kind(files, MaskedFrameModel, otherwise=what, remedy=remedy)


def _build_kind(files: ModelFiles, kind: type[Kind], *, otherwise: str, remedy: str) -> Kind:
    model = build_model(files)
    if not isinstance(model, kind):
        found, expected = type(model).__name__, kind.__name__
        msg = f"{files.source} {otherwise}: architectures is {found}, not {expected}."
        raise WeightsError(msg, key="architectures", value=found, expected=expected, remedy=remedy)
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
