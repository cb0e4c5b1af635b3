"""The int8 network of a backbone, how well it agrees with float32, and its file.

The file is in an output of ``raypipe embed`` and in the indexes of this output. Its SHA-256 is part of the fingerprint.
"""

import hashlib
import io
import json
import zipfile
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raypipe.errors import ObjectError, WeightsError
from raypipe.models.backbones import Vectors, mean_embedding
from raypipe.schema import INT8_NETWORK
from raypipe.storage import Folder

if TYPE_CHECKING:
    from raypipe.models.openvino_backbone import ExportedNetwork

LEAST_AGREEMENT = (0.99, 0.95, 0.95)  # the median cosine, the first percentile, and the share of same neighbors
_ROUNDING = 1e-5
_STRUCTURE, _WEIGHTS, _FACTS = "network.xml", "network.bin", "facts.json"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How close the vectors of an int8 network are to the vectors of the float32 network, on the same frames.

    Attributes:
        num_videos: The number of videos. None of their frames was used for quantization.
        cosine_median: The median of the cosines of each frame's two vectors.
        cosine_p01: The first percentile of these cosines.
        same_neighbor: The fraction of the videos whose most similar video is the same with both networks.
    """

    num_videos: int
    cosine_median: float
    cosine_p01: float
    same_neighbor: float

    @property
    def is_enough(self) -> bool:
        """Whether the int8 network may replace the float32 network."""
        found = self.cosine_median, self.cosine_p01, self.same_neighbor
        return all(value >= least for value, least in zip(found, LEAST_AGREEMENT, strict=True))

    @classmethod
    def of(cls, vectors: Vectors, expected: Vectors, stops: npt.NDArray[np.integer]) -> "Agreement":
        """Compare vectors [N, D] of the frames of videos. Video ``v`` has the rows ``stops[v]:stops[v + 1]``."""
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
        cosines = np.einsum("nd,nd->n", vectors, expected) / np.maximum(lengths, np.finfo(np.float32).tiny)
        p01, median = np.quantile(cosines, [0.01, 0.5])
        similar, truly_similar = (_cosines_of_videos(each, stops) for each in (vectors, expected))
        nearest = similar.argmax(axis=1)
        # Copies of a video are equally near.
        same = truly_similar[np.arange(len(nearest)), nearest] >= truly_similar.max(axis=1) - _ROUNDING
        return cls(len(stops) - 1, float(median), float(p01), float(np.mean(same)))


def _cosines_of_videos(vectors: Vectors, stops: npt.NDArray[np.integer]) -> Vectors:
    """Return the cosines [V, V] of the videos' mean vectors. A video is not similar to itself."""
    means = np.stack([mean_embedding(vectors[start:stop]) for start, stop in pairwise(stops)])
    cosines: Vectors = means @ means.T
    np.fill_diagonal(cosines, -1)
    return cosines


@dataclass(frozen=True, slots=True)
class Int8Facts:
    """What an int8 network was made from, and how close its vectors are to the vectors in float32.

    ``num_float_layers`` is how many of its first convolutions are in float32.
    """

    backbone: str
    weights: str  # the digest of the float32 weights
    num_float_layers: int
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class Int8Network:
    """An int8 network, and the SHA-256 of its file."""

    network: "ExportedNetwork"
    facts: Int8Facts
    digest: str


def int8_file(network: "ExportedNetwork", facts: Int8Facts) -> bytes:
    """Return the content of the file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_STRUCTURE, network.structure)
        archive.writestr(_WEIGHTS, network.weights.tobytes())
        archive.writestr(_FACTS, json.dumps(asdict(facts), indent=1))
    return file.getvalue()


def open_int8_file(data: bytes, *, uri: str) -> Int8Network:
    """Read the content of the file at ``uri``.

    Raises:
        WeightsError: it is not such a file.
    """
    from raypipe.models.openvino_backbone import ExportedNetwork  # noqa: PLC0415 - OpenVINO is optional

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            weights = np.frombuffer(archive.read(_WEIGHTS), np.uint8)
            network = ExportedNetwork(archive.read(_STRUCTURE), weights)
            facts = json.loads(archive.read(_FACTS))
            facts = Int8Facts(**{**facts, "agreement": Agreement(**facts["agreement"])})
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, NotImplementedError, EOFError) as error:
        msg = f"{uri} is corrupt: {error}"
        raise WeightsError(msg, key=uri, remedy="Restore it, or embed into another output.") from None
    return Int8Network(network, facts, hashlib.sha256(data).hexdigest())


def read_int8_file(folder: Folder, settings: Any) -> bytes:  # noqa: ANN401 - from JSON
    """Return the content of the file in a folder. ``settings`` are the settings of the embeddings.

    Raises:
        WeightsError: the file is missing, or it is not the file with which the videos were embedded.
    """
    uri = folder.child(INT8_NETWORK)
    try:
        data = folder.read(INT8_NETWORK)
    except ObjectError as error:
        msg = f"Cannot read the int8 network {uri}: {error}"
        raise WeightsError(msg, key=uri) from None
    if (found := hashlib.sha256(data).hexdigest()) != (expected := settings.get("int8")):
        msg = f"{uri} is not the network with which the videos were embedded."
        raise WeightsError(msg, key=uri, value=found, expected=expected, remedy="Restore it.")
    return data
