"""The inputs of objective next_video: histories as positions of videos in an index, without held-out events."""

import datetime as dt
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.config import TrainConfig
from raypipe.config.train import RankerConfig
from raypipe.errors import ConfigError
from raypipe.evaluation.holdouts import fittable
from raypipe.jobs.train.inputs import INDEX, Ints
from raypipe.search.items import Items
from raypipe.search.versions import Versions, cache_folder
from raypipe.search.watch_events import Events
from raypipe.storage import Folder
from raypipe.tables.event_table import WatchEvents, read_events

HISTORY = "history"
_MAX_VALIDATION_USERS, _MIN_VALIDATION_USERS = 20_000, 200
_MAX_SCORES = 2_000_000_000  # of validation users and videos, in each epoch
_SHORTEST = 3  # events of a user: one each to read, to learn and to choose the epoch by
_VALIDATION_PART = 1  # as in WatchEvents.parts


@dataclass(frozen=True, slots=True)
class IndexFacts:
    """The version of an index that histories refer to."""

    uri: str
    version: str
    folder: Path  # its verified files on this machine
    num_videos: int
    dim: int
    fingerprint: str  # of the embeddings
    has_own_vectors: bool


@dataclass(frozen=True, slots=True)
class HistorySamples:
    """The histories of a training.

    Both tables have the columns ``index`` and ``history``. A history is a list of positions in the index, oldest first.
    In ``train`` it has the newest events. In ``validation`` it has all events of a user up to the one to predict.

    Attributes:
        events: The events that the weights are fitted on.
        event_hashes: Their hashes, sorted.
        selection: The samples that choose the epoch, if the model is then fitted again on all events.
    """

    label_names: ClassVar[tuple[str, ...]] = ()
    multi_label: ClassVar[bool] = False

    train: pa.Table
    validation: pa.Table
    index: IndexFacts
    items: Items
    events: Events
    event_hashes: npt.NDArray[np.uint64]
    facts: Mapping[str, Any]
    counts: Mapping[str, int]  # events of the file that were left out, by reason
    digest: str  # a hash of the samples
    selection: "HistorySamples | None" = None

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the embeddings in the index."""
        return self.index.fingerprint


def find_histories(config: TrainConfig) -> HistorySamples:
    """Read the history, and divide it into the events to learn from and the events to choose the epoch by.

    Raises:
        ConfigError: the history cannot be used.
        IndexVersionError: there is no index, or it is corrupt.
    """
    ranker = config.ranker
    index = open_index(config)
    items = Items.open(index.folder)
    found = read_events(config.history_uri, items, is_ordered=ranker.history_ordered)
    allowed, facts = allowed_events(found, ranker)
    if not (np.diff(allowed.starts) > 1).any():
        msg = f"No user in {config.history} has two events to learn from with ranker.holdout={ranker.holdout}."
        raise ConfigError(msg, key="history", value=config.history, remedy="Give users with more events.")
    chosen = validation_targets(found, allowed, ranker.holdout)
    make = _Maker(config, index, items, found, facts)
    if ranker.holdout in {"leave_one_out", "given"} and chosen.any():
        return make.samples(allowed, found.events, chosen)
    held_out = last_events(allowed)
    fitted = allowed.where(~held_out)
    whole = make.samples(allowed, allowed, np.zeros(len(allowed), np.bool_))
    if not held_out.any() or not (np.diff(fitted.starts) > 1).any():
        return whole
    return replace(whole, selection=make.samples(fitted, allowed, held_out))


def open_index(config: TrainConfig) -> IndexFacts:
    """Fetch the version of the index that the configuration names, and return its facts.

    Raises:
        IndexVersionError: there is no such version, or it is corrupt.
        StorageError: the storage denies access or cannot be reached.
    """
    versions = Versions(Folder(config.index_uri))
    version = config.ranker.index_version or versions.require_current()
    manifest = versions.read_manifest(version)
    about = manifest.get("embeddings", {})
    return IndexFacts(
        uri=versions.folder.uri,
        version=version,
        folder=versions.fetch(version, cache_folder(config.cache)),
        num_videos=manifest["num_videos"],
        dim=manifest["dim"],
        fingerprint=str(about.get("fingerprint", "")),
        has_own_vectors=bool(about.get("own_vectors", False)),
    )


def allowed_events(found: WatchEvents, ranker: RankerConfig) -> tuple[Events, dict[str, Any]]:
    """Return the events that the final weights may be fitted on, and how they were chosen.

    Raises:
        ConfigError: the history lacks what the holdout needs.
    """
    holdout, seconds = ranker.holdout, ranker.cut_seconds
    events, cut = fittable(found.events, found.parts, holdout=holdout, cut=seconds, key="ranker.holdout")
    return events, {"holdout": holdout, "cut": None if cut is None else iso_time(cut)}


def validation_targets(found: WatchEvents, allowed: Events, holdout: str) -> npt.NDArray[np.bool_]:
    """Return a mask of the events that choose the epoch without being fitted on, at most one for each user.

    These are the second-to-last events for ``leave_one_out``, and the first events for validation for ``given``.
    """
    events, counts = found.events, np.diff(found.events.starts)
    is_target = np.zeros(len(events), np.bool_)
    if holdout == "leave_one_out":
        is_target[(events.starts[1:] - 2)[counts >= _SHORTEST]] = True
    elif holdout == "given" and found.parts is not None:
        at = np.flatnonzero(found.parts == _VALIDATION_PART)
        users, first = np.unique(events.users[at], return_index=True)
        is_target[at[first][np.diff(allowed.starts)[users] > 0]] = True
    return is_target


def last_events(events: Events) -> npt.NDArray[np.bool_]:
    """Return a mask of the last event of each user with at least three events."""
    is_last = np.zeros(len(events), np.bool_)
    is_last[(events.starts[1:] - 1)[np.diff(events.starts) >= _SHORTEST]] = True
    return is_last


def training_table(events: Events, *, max_events: int) -> pa.Table:
    """Return the newest ``max_events`` + 1 events of each user who has at least two, with a number for each user."""
    stops, counts = events.starts[1:], np.minimum(np.diff(events.starts), max_events + 1)
    kept = np.flatnonzero(counts > 1)
    return _table(events.items, stops[kept] - counts[kept], counts[kept])


def validation_table(
    fitted: Events, events: Events, is_target: npt.NDArray[np.bool_], *, max_users: int, seed: int
) -> pa.Table:
    """Return the fitted events of each user with a target, followed by the target.

    Of more than ``max_users`` users, draw some at random.
    """
    at = np.flatnonzero(is_target)
    if len(at) > max_users:
        at = np.sort(np.random.default_rng([seed, 2]).choice(at, max_users, replace=False))
    users = events.users[at]
    counts = np.diff(fitted.starts)[users]
    order = np.argsort(np.concatenate([np.repeat(np.arange(len(at)), counts), np.arange(len(at))]), kind="stable")
    known = np.concatenate([np.zeros(0, np.int64), *(fitted.history(user) for user in users.tolist())])
    return _table(
        np.concatenate([known, events.items[at]])[order], np.cumsum([0, *(counts[:-1] + 1)])[: len(at)], counts + 1
    )


def _table(items: Ints, starts: Ints, counts: Ints) -> pa.Table:
    offsets = np.append(0, np.cumsum(counts))
    at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(items[at].astype(np.int64)))
    return pa.table({INDEX: pa.array(np.arange(len(counts))), HISTORY: lists})


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the samples of one file."""

    config: TrainConfig
    index: IndexFacts
    items: Items
    found: WatchEvents
    facts: Mapping[str, Any]

    def samples(self, fitted: Events, events: Events, is_target: npt.NDArray[np.bool_]) -> HistorySamples:
        """Return samples that learn from ``fitted`` and predict the targets among ``events``."""
        limit = max(_MIN_VALIDATION_USERS, min(_MAX_VALIDATION_USERS, _MAX_SCORES // self.index.num_videos))
        train = training_table(fitted, max_events=self.config.ranker.max_events)
        validation = validation_table(fitted, events, is_target, max_users=limit, seed=self.config.seed)
        sha256 = hashlib.sha256(self.index.version.encode())
        for table in (train, validation):
            lists = table[HISTORY].combine_chunks()
            sha256.update(np.asarray(lists.offsets).tobytes() + np.asarray(lists.flatten()).tobytes())
        return HistorySamples(
            train=train,
            validation=validation,
            index=self.index,
            items=self.items,
            events=fitted,
            event_hashes=self.found.hashes(fitted, self.items),
            facts=self._facts(fitted),
            counts=self.found.counts,
            digest=sha256.hexdigest(),
        )

    def _facts(self, fitted: Events) -> dict[str, Any]:
        times = fitted.times if fitted.times is not None and len(fitted) else None
        return {
            **self.facts,
            "num_events": len(fitted),
            "num_users": int((np.diff(fitted.starts) > 0).sum()),
            "first_event_at": None if times is None else iso_time(float(times.min())),
            "last_event_at": None if times is None else iso_time(float(times.max())),
            "index_version": self.index.version,
            "embedding_fingerprint": self.index.fingerprint,
            "own_vectors": self.index.has_own_vectors,
        }


def iso_time(seconds: float) -> str:
    """Return a Unix time as ISO 8601 in UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat()
