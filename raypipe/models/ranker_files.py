"""Read the files of a ranker and verify them. Neither Ray nor torch is needed.

A ranker is the model folder of a training with objective next_video: the files of ``save_pretrained``, and what its
users need to know about its training.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors.numpy
from safetensors import SafetensorError

from raypipe import schema
from raypipe.errors import ObjectError, ObjectMissingError, WeightsError
from raypipe.models.model_files import COMPLETE, CONFIG, MODEL_FOLDER, WEIGHTS, check_digest
from raypipe.search.projection import PROJECTION, Projection
from raypipe.search.tower import TowerInput, TowerWeights
from raypipe.storage import Folder
from raypipe.text import one_line

MODEL_TYPE = "raypipe_next_video"
VIDEOS, FITTED_EVENTS, TRAINING = "videos.parquet", "fitted_events.npy", "training.json"
BLEND = "blend.json"  # how its scores and counted successors are combined; written after the model
OTHER_FILES = (VIDEOS, PROJECTION, FITTED_EVENTS, TRAINING)  # in addition to the files of every model
_FILES = (CONFIG, WEIGHTS, *OTHER_FILES)
_SCALE, _GPT2 = ".scale", "gpt2."


@dataclass(frozen=True)
class RankerFiles:
    """The content of a ranker's files, the SHA-256 that identifies the ranker, and the URI of its folder."""

    files: Mapping[str, bytes]
    digest: str
    source: str

    @cached_property
    def config(self) -> dict[str, Any]:
        """The keys of ``NextVideoConfig``."""
        return dict(json.loads(self.files[CONFIG]))

    @property
    def weights(self) -> bytes:
        """The weights, as the content of a safetensors file."""
        return self.files[WEIGHTS]

    @property
    def projection(self) -> bytes:
        """The projection from embeddings to the content vectors that the ranker reads."""
        return self.files[PROJECTION]

    @cached_property
    def video_ids(self) -> list[str]:
        """The videos with an ID embedding. Number i has row i + 1."""
        ids: list[str] = pq.read_table(io.BytesIO(self.files[VIDEOS]))[schema.VIDEO_ID].to_pylist()
        return ids

    @cached_property
    def fitted_events(self) -> npt.NDArray[np.uint64]:
        """The hashes of the events that the weights were fitted on, sorted, as from ``event_hashes``."""
        hashes: npt.NDArray[np.uint64] = np.load(io.BytesIO(self.files[FITTED_EVENTS]), allow_pickle=False)
        return hashes

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The content of ``training.json``: the holdout, the events and the index of the training."""
        return dict(json.loads(self.files[TRAINING]))

    def tower(self, video_ids: pa.Array) -> TowerInput:
        """Return the network, and the row of each of some videos in its ID embedding.

        Raises:
            WeightsError: the weights do not fit the configuration.
        """
        try:
            tensors = _in_float32(safetensors.numpy.load(self.weights))
            id_vectors = tensors.pop("ids.weight").astype(np.float32)
            about = {name: self.config[name] for name in ("n_layer", "n_head", "n_embd", "max_events")}
            scale = float(np.exp(tensors.pop("log_scale")))
            projection = Projection.of_bytes(self.projection)
            if "content.weight" not in tensors:  # it does not read content: a map to zero
                tensors["content.weight"] = np.zeros((about["n_embd"], projection.dim), np.float32)
            weights = TowerWeights(tensors, {**about, "scale": scale})
            if len(id_vectors) != len(self.video_ids) + 1 or weights.content_dim != projection.dim:
                msg = f"{len(id_vectors)} ID vectors for {len(self.video_ids)} videos"
                raise ValueError(msg)  # noqa: TRY301 - one message for all errors
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            msg = f"The ranker {self.source} does not fit its configuration: {one_line(error)}"
            raise WeightsError(msg, key="ranker", value=self.source) from None
        rows = pc.index_in(video_ids.cast(pa.string()), value_set=pa.array(self.video_ids, pa.string()))
        return TowerInput(weights, projection, id_vectors, rows.fill_null(-1).to_numpy().astype(np.int64) + 1)


def _in_float32(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of a ranker by the names and in the layout of one without int8 weights."""
    found = dict(tensors)
    for name in [name for name in found if name.endswith(_SCALE)]:
        layer, scale = name.removesuffix(_SCALE), found.pop(name)
        weight = found[f"{layer}.weight"].astype(np.float32) * scale[:, None]
        found[f"{layer}.weight"] = weight.T if layer.startswith(_GPT2) else weight  # GPT-2 has [inputs, outputs]
    found.pop("content.bias", None)  # of zeros: only int8 layers have one
    return found


def read_ranker(folder: Folder) -> RankerFiles:
    """Read the ranker in an output of ``raypipe train``, or in its model folder.

    Raises:
        WeightsError: there is no ranker, or its files differ from the files that were saved.
        StorageError: the storage denies access or cannot be reached.
    """
    inner = Folder(folder.child(MODEL_FOLDER))
    source = inner if inner.exists(COMPLETE) else folder
    try:
        complete = source.read(COMPLETE)
        sha256 = dict(json.loads(complete)["sha256"])
        kind = json.loads(source.read(CONFIG))["model_type"]
    except (ObjectError, KeyError, TypeError, ValueError) as error:
        msg = f"{folder} holds no ranker: {one_line(error)}"
        remedy = "Give the finished --output of raypipe train with objective next_video."
        raise WeightsError(msg, key=folder.uri, remedy=remedy) from None
    if kind != MODEL_TYPE:
        msg = f"{source} holds a {kind}, not a ranker."
        remedy = "Train with objective=next_video."
        raise WeightsError(msg, key="model_type", value=kind, expected=MODEL_TYPE, remedy=remedy)
    files = {name: _read(source, name, sha256.get(name)) for name in _FILES}
    return RankerFiles(files, hashlib.sha256(complete).hexdigest(), source.uri)


def _read(source: Folder, name: str, expected: object) -> bytes:
    try:
        data = source.read(name)
    except ObjectMissingError:
        data = b""
    except ObjectError as error:
        msg = f"Cannot read the ranker in {source}: {error}"
        raise WeightsError(msg, key=source.child(name)) from None
    check_digest(source, name, data, expected=expected)
    return data
