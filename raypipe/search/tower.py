"""The learned ranker in an index: a vector for each video, and the state after a history, in numpy.

The same numbers as ``raypipe.models.next_video`` gives, without torch: the endpoint and ``recommend`` do not load it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from raypipe.config.index import IndexSettings
from raypipe.errors import IndexVersionError
from raypipe.search.ann import Ann
from raypipe.search.filters import Eligible
from raypipe.search.projection import Projection, unit_length
from raypipe.search.spread import Reach
from raypipe.search.vectors import Positions, Vectors, VectorWriter, dots, open_vectors, widen
from raypipe.search.versions import TOWER, TOWER_LENGTHS, TOWER_PROJECTION, TOWER_SEARCH, TOWER_VECTORS
from raypipe.text import one_line

_EPSILON = 1e-5  # of GPT-2's layer norms
_ABOUT = "tower"
_REBUILD = "Build the index again."
Array = npt.NDArray[np.float32]


class Tower:
    """Scores videos for a history by a cosine with its state. Thread-safe.

    Attributes:
        vectors: The vector of each video, float16 ``[N, d]`` of length 1; zero for a video that it knows nothing about.
        lengths: The length of each vector before it was scaled to 1, ``[N]``: the network reads unscaled vectors.
        scale: The factor of the cosines in the logits.
        max_events: How many events of a history are read, the newest ones.
        reads_content: Whether it knows something about videos without an ID embedding.
    """

    def __init__(
        self, weights: "TowerWeights", *, vectors: Vectors, lengths: Array, ann: Ann, projection: Projection
    ) -> None:
        self._weights = weights
        self._projection = projection
        self.vectors = vectors
        self.lengths = lengths
        self.ann = ann
        self.scale = weights.scale
        self.max_events = weights.max_events
        self.reads_content = bool(weights.content.any())

    @classmethod
    def open(cls, folder: Path, manifest: Mapping[str, Any]) -> Self:
        """Open the files of a version.

        Raises:
            IndexVersionError: a file is corrupt, or the files do not match.
        """
        weights, vectors = TowerWeights.load(folder / TOWER), open_vectors(folder / TOWER_VECTORS)
        try:
            lengths = np.load(folder / TOWER_LENGTHS, mmap_mode="r", allow_pickle=False)
            nprobe, reach = int(manifest["ranker"]["nprobe"]), Reach.load(manifest["ranker"])
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            msg = f"Cannot read the ranker in {folder}: {one_line(error)}"
            raise IndexVersionError(msg, key=str(folder), remedy=_REBUILD) from None
        projection = Projection.load(folder / TOWER_PROJECTION)
        shapes = (lengths.shape, vectors.shape[1], weights.content_dim)
        if shapes != ((len(vectors),), weights.width, projection.dim):
            msg = f"The files of the ranker in {folder} do not match: {shapes}."
            raise IndexVersionError(msg, key=str(folder), value=shapes, remedy=_REBUILD)
        ann = Ann.open(folder / TOWER_SEARCH, vectors, nprobe=nprobe, reach=reach)
        return cls(weights, vectors=vectors, lengths=lengths, ann=ann, projection=projection)

    def state(self, positions: Positions, embeddings: npt.NDArray[np.floating] | None = None) -> Array:
        """Return the state ``[d]`` of length 1 after watching some videos, the newest last.

        Args:
            positions: The positions of the watched videos, ``[H]``.
            embeddings: The embeddings of watched videos outside the catalogue, newer than all others, ``[M, D]``.
        """
        kept = positions[-self.max_events :]
        inputs = widen(self.vectors[kept]) * self.lengths[kept, None]
        if embeddings is not None and len(embeddings):
            content = self._projection.apply(embeddings).astype(np.float16).astype(np.float32)
            inputs = np.concatenate([inputs, content @ self._weights.content])[-self.max_events :]
        return self._weights.state(inputs)

    def nearest(self, state: Array, count: int, eligible: Eligible | None) -> Positions:
        """Return the positions of the ``count`` eligible videos that are most likely next, or of all."""
        return self.ann.nearest(state, top_k=count, eligible=eligible)[1]

    def logits(self, positions: Positions, state: Array) -> Array:
        """Return the logits of the videos at some positions, ``[P]``."""
        return np.float32(self.scale) * dots(self.vectors, positions, state)


class TowerWeights:
    """The weights of the network: the map of content vectors, and GPT-2."""

    def __init__(self, tensors: Mapping[str, Array], about: Mapping[str, Any]) -> None:
        """Take tensors by the names of ``NextVideoModel``, with ``content.weight`` ``[d, D]`` and without the ids.

        Raises:
            KeyError, TypeError, ValueError: something is missing, or does not fit.
        """
        self.tensors = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
        self.about = dict(about)
        self.num_layers, self._num_heads = int(about["n_layer"]), int(about["n_head"])
        self.width, self.max_events, self.scale = int(about["n_embd"]), int(about["max_events"]), float(about["scale"])
        self.content = np.ascontiguousarray(self.tensors["content.weight"].T)  # [D, d]
        self._positions = self._of("gpt2.wpe.weight", (self.max_events, self.width))
        for number in range(self.num_layers):
            inner, size = self.tensors[f"gpt2.h.{number}.attn.c_proj.weight"].shape[0], self.width // self._num_heads
            if not inner or inner % size:  # fewer than the width if heads were removed
                msg = f"the heads of block {number} have {inner} numbers, not a multiple of {size}"
                raise ValueError(msg)
            self._of(f"gpt2.h.{number}.attn.c_attn.weight", (self.width, 3 * inner))
        self._of("gpt2.ln_f.weight", (self.width,))

    def _of(self, name: str, shape: tuple[int, ...]) -> Array:
        if (found := self.tensors[name]).shape != shape:
            msg = f"{name} has shape {found.shape}, not {shape}"
            raise ValueError(msg)
        return found

    @property
    def content_dim(self) -> int:
        """Return D, the length of a content vector."""
        return int(self.content.shape[0])

    def save(self, path: Path) -> None:
        safetensors.numpy.save_file(self.tensors, path, metadata={_ABOUT: json.dumps(self.about, sort_keys=True)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that ``save`` wrote.

        Raises:
            IndexVersionError: the file is corrupt.
        """
        try:
            with safe_open(path, "np") as file:
                about = json.loads(file.metadata()[_ABOUT])
                return cls({name: file.get_tensor(name) for name in file.keys()}, about)  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            msg = f"Cannot read the ranker {path}: {one_line(error)}"
            raise IndexVersionError(msg, key=str(path), remedy=_REBUILD) from None

    def state(self, inputs: Array) -> Array:
        """Return the state of length 1 after the last of T input vectors ``[T, d]``, which is compared with videos."""
        state: Array = unit_length(self.last_state(inputs)[None])[0]
        return state

    def last_state(self, inputs: Array) -> Array:
        """Return the state of GPT-2 ``[d]`` after the last of T input vectors ``[T, d]``."""
        states = inputs * np.float32(self.width**0.5) + self._positions[: len(inputs)]
        for number in range(self.num_layers):
            states = self._block(number, states, only_last=number == self.num_layers - 1)
        last: Array = self._norm("gpt2.ln_f", states)[-1]
        return last

    def _block(self, number: int, states: Array, *, only_last: bool) -> Array:
        """Return the states after a block, of all positions or of the last one only."""
        name = f"gpt2.h.{number}"
        normed = self._norm(f"{name}.ln_1", states)
        weight, bias = self.tensors[f"{name}.attn.c_attn.weight"], self.tensors[f"{name}.attn.c_attn.bias"]
        width, size, length = weight.shape[1] // 3, self.width // self._num_heads, len(states)
        heads = width // size
        asked = normed[-1:] if only_last else normed
        queries = (asked @ weight[:, :width] + bias[:width]).reshape(len(asked), heads, -1).swapaxes(0, 1)
        both = (normed @ weight[:, width:] + bias[width:]).reshape(length, 2, heads, -1)
        keys, values = both[:, 0].transpose(1, 2, 0), both[:, 1].swapaxes(0, 1)
        scores: Array = (queries @ keys / np.float32(np.sqrt(size))).astype(np.float32, copy=False)
        if not only_last:
            scores[:, ~np.tri(length, dtype=np.bool_)] = -np.inf
        attention = _softmax(scores) @ values
        states = (states[-1:] if only_last else states) + self._linear(
            f"{name}.attn.c_proj", attention.swapaxes(0, 1).reshape(len(asked), width)
        )
        inner = _gelu(self._linear(f"{name}.mlp.c_fc", self._norm(f"{name}.ln_2", states)))
        return states + self._linear(f"{name}.mlp.c_proj", inner)

    def _linear(self, name: str, rows: Array) -> Array:
        return np.asarray(rows @ self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"])

    def _norm(self, name: str, rows: Array) -> Array:
        centred = rows - rows.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(_EPSILON))
        return np.asarray(centred / deviation * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"])


def _softmax(scores: Array) -> Array:
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def _gelu(values: Array) -> Array:
    """Return GELU by the approximation that GPT-2 uses (``gelu_new``)."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (values + np.float32(0.044715) * values * values * values)
    return np.asarray(np.float32(0.5) * values * (1 + np.tanh(inner)))


@dataclass(frozen=True)
class TowerInput:
    """A ranker for the videos of a version.

    Attributes:
        weights: The network.
        projection: From embeddings to the content vectors that the network reads.
        id_vectors: The ID embeddings, ``[M + 1, d]``; row 0 is of videos without one.
        rows: The row of each video of the version in the ID embeddings, ``[N]``.
    """

    weights: TowerWeights
    projection: Projection
    id_vectors: Array
    rows: Positions

    def vectors(self, content: Array, rows: Positions) -> tuple[Array, Array]:
        """Return the vectors of length 1 ``[n, d]`` of some videos, and their lengths before ``[n]``.

        Args:
            content: The content vectors, ``[n, D]``.
            rows: The rows in the ID embeddings, ``[n]``.
        """
        vectors = content @ self.weights.content + self.id_vectors[rows]
        return unit_length(vectors), np.linalg.norm(vectors, axis=1).astype(np.float32)


class TowerWriter:
    """Writes the vectors of a ranker for the videos of a version, batch by batch."""

    def __init__(self, folder: Path, given: TowerInput) -> None:
        self._folder = folder
        self._given = given
        self._num_added = 0  # including videos that were left out
        self._lengths: list[Array] = []
        self._vectors = VectorWriter(folder / TOWER_VECTORS, given.weights.width)

    def __enter__(self) -> Self:
        self._vectors.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._vectors.__exit__(kind, *rest)

    def add(self, embeddings: npt.NDArray[np.floating], is_usable: npt.NDArray[np.bool_]) -> None:
        """Add the next videos by their embeddings ``[n, D]``. Videos that are not usable are left out."""
        given = self._given
        rows = given.rows[self._num_added : self._num_added + len(embeddings)][is_usable]
        self._num_added += len(embeddings)
        content = given.projection.apply(embeddings[is_usable]).astype(np.float16).astype(np.float32)  # as in training
        unit, lengths = given.vectors(content, rows)
        self._vectors.add(unit)
        self._lengths.append(lengths)

    def finish(self, settings: IndexSettings) -> Ann:
        """Write the other files, and return the search structure."""
        lengths = np.concatenate([np.zeros(0, np.float32), *self._lengths])
        np.save(self._folder / TOWER_LENGTHS, lengths, allow_pickle=False)
        self._given.weights.save(self._folder / TOWER)
        self._given.projection.save(self._folder / TOWER_PROJECTION)
        ann = Ann.build(open_vectors(self._folder / TOWER_VECTORS), settings=settings)
        ann.save(self._folder / TOWER_SEARCH)
        return ann
