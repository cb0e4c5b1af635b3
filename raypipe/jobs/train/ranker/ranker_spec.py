"""The definition of a training for objective next_video: the sizes of its model, and the videos that it knows."""

import hashlib
import io
import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from raypipe import schema
from raypipe.config import TrainConfig
from raypipe.dataset.footer import parquet_bytes
from raypipe.errors import CommitError, ConfigError
from raypipe.jobs.train.inputs import Ints
from raypipe.jobs.train.ranker.histories import HISTORY, HistorySamples
from raypipe.jobs.train.ranker.next_video_task import Sampling, WatchedCatalogue
from raypipe.models.model_files import MODEL_FOLDER
from raypipe.models.next_video import NextVideoConfig, NextVideoModel
from raypipe.models.ranker_files import FITTED_EVENTS, TRAINING, VIDEOS
from raypipe.search.projection import PROJECTION
from raypipe.search.vectors import open_vectors
from raypipe.search.versions import VECTORS, Versions, cache_folder
from raypipe.storage import Folder

BETAS = (0.9, 0.98)
FINAL_RATE = 0.05
LEARNING_RATE = 1e-3
_WIDTH, _MANY_VIDEOS, _MANY_VIDEOS_WIDTH = 64, 100_000, 128
_LONG_HISTORY = 30  # events; longer ones are read by two blocks


@dataclass(frozen=True, slots=True)
class RankerNetwork:
    """The architecture of a ranker, and the catalogue that it is trained on. Workers open the index themselves."""

    config: NextVideoConfig
    index_uri: str
    version: str
    cache: str | None
    id_positions: Ints  # the videos with an ID embedding; position i has row i + 1
    seen: Ints  # the videos that occur in the training
    sampling: Sampling

    @property
    def n_embd(self) -> int:
        return self.config.n_embd

    def catalogue(self) -> WatchedCatalogue:
        """Return the catalogue, with the vectors memory-mapped on this node.

        Raises:
            IndexVersionError: the version is corrupt.
            StorageError: the storage denies access or cannot be reached.
        """
        folder = Versions(Folder(self.index_uri)).fetch(self.version, cache_folder(self.cache))
        return WatchedCatalogue.of(open_vectors(folder / VECTORS), id_positions=self.id_positions, seen=self.seen)


def build_ranker(network: RankerNetwork, *, seed: int) -> NextVideoModel:
    """Build the model with random weights. The same seed always gives the same model."""
    torch.manual_seed(seed)
    model = NextVideoModel(network.config)
    if network.config.loss == "bce":
        model.log_scale.requires_grad_(False)  # noqa: FBT003 - dot products have no scale
    return model


def ranker_network(config: TrainConfig, samples: HistorySamples, *, whole: HistorySamples) -> RankerNetwork:
    """Return the network for some samples. ``whole`` are the samples of the final training, which decide its sizes.

    Raises:
        ConfigError: the heads do not divide the width.
    """
    ranker, index = config.ranker, samples.index
    wide = _MANY_VIDEOS_WIDTH if index.num_videos >= _MANY_VIDEOS else _WIDTH
    n_embd = wide if ranker.n_embd == "auto" else ranker.n_embd
    counts = np.diff(whole.events.starts)
    is_long = counts[counts > 0].mean() > _LONG_HISTORY
    if n_embd % ranker.n_head:
        msg = f"ranker: n_embd {n_embd} is not a multiple of n_head {ranker.n_head}."
        raise ConfigError(msg, key="ranker.n_embd", value=n_embd)
    watched = np.bincount(samples.events.items, minlength=index.num_videos)
    ids = id_positions(watched, min_events=ranker.min_events, max_ids=ranker.max_ids)
    model = NextVideoConfig(
        num_ids=len(ids),
        content_dim=index.dim if ranker.content else 0,
        n_embd=n_embd,
        n_layer=(2 if is_long else 1) if ranker.n_layer == "auto" else ranker.n_layer,
        n_head=ranker.n_head,
        dropout=ranker.dropout,
        id_dropout=ranker.id_dropout,
        max_events=ranker.max_events,
        loss=ranker.loss,
        embedding_fingerprint=samples.fingerprint,
    )
    num_targets = len(samples.train[HISTORY].combine_chunks().flatten()) - samples.train.num_rows
    sampling = Sampling(ranker.num_negatives, ranker.full_softmax_below, num_targets / samples.train.num_rows)
    return RankerNetwork(model, index.uri, index.version, config.cache, ids, np.flatnonzero(watched), sampling)


def put_ranker_files(output: Folder, id_positions: Ints, samples: HistorySamples) -> dict[str, str]:
    """Write the files that a ranker has in addition to every model, and return their digests.

    Every driver of the same training writes the same bytes. The list of all files is written later, with the model.

    Raises:
        CommitError: another training wrote to the same folder.
    """
    ids = pa.array([samples.items.video_id(position) for position in id_positions.tolist()], pa.string())
    hashes = io.BytesIO()
    np.save(hashes, samples.event_hashes, allow_pickle=False)
    files = {
        VIDEOS: parquet_bytes(pa.table({schema.VIDEO_ID: ids}), {}),
        PROJECTION: (samples.index.folder / PROJECTION).read_bytes(),
        FITTED_EVENTS: hashes.getvalue(),
        TRAINING: json.dumps(samples.facts, indent=1).encode(),
    }
    folder = Folder(output.child(MODEL_FOLDER))
    for name, data in files.items():
        if not folder.put_new(name, data) and folder.read(name) != data:
            msg = f"{folder.child(name)} is of another training."
            raise CommitError(msg, key=folder.child(name), remedy="Choose another output.")
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def id_positions(watched: Ints, *, min_events: int, max_ids: int) -> Ints:
    """Return the videos that get an ID embedding, the most watched first.

    ``watched`` counts the training events of each video.
    """
    order = np.argsort(-watched, kind="stable")[:max_ids]
    return order[watched[order] >= min_events]
