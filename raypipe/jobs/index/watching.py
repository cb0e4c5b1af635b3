"""Add to a version what users watched: counted successors, views, and the learned ranker."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raypipe.config.index import HistorySettings, IndexConfig
from raypipe.errors import ConfigError, FingerprintError, ObjectError, WeightsError
from raypipe.evaluation.holdouts import fittable
from raypipe.models.ranker_files import BLEND, RankerFiles, read_ranker
from raypipe.search.items import Items
from raypipe.search.successors import EASE_MAX_ITEMS, CountKind, count_successors
from raypipe.search.versions import FITTED, SUCCESSORS, VIEWS
from raypipe.search.watch_events import Events
from raypipe.storage import Folder
from raypipe.tables import table_place
from raypipe.tables.event_table import WatchEvents, read_events
from raypipe.tables.history import HistoryFile
from raypipe.text import iso_seconds, one_line

_DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class RankerSource:
    """A ranker, and how its scores and the counted successors are combined."""

    files: RankerFiles
    weight: float  # the share of the successors, from 0 to 1
    counts: CountKind

    @classmethod
    def read(cls, uri: str) -> "RankerSource":
        """Read the output of a training.

        Raises:
            WeightsError: there is no ranker, or it is not complete.
        """
        files = read_ranker(Folder(uri))
        place = Folder(files.source)
        try:
            blend = json.loads(place.read(BLEND))
            weight, counts = float(blend["weight"]), blend["counts"]
        except (ObjectError, KeyError, TypeError, ValueError) as error:
            msg = f"{place.child(BLEND)} cannot be read: {one_line(error)}"
            remedy = "Run the same raypipe train again: it continues."
            raise WeightsError(msg, key=place.child(BLEND), remedy=remedy) from None
        if files.config.get("loss") != "softmax":
            msg = f"{files.source} compares dot products (ranker.loss={files.config.get('loss')}), not directions."
            raise WeightsError(msg, key="ranker.loss", value=files.config.get("loss"), expected="softmax")
        return cls(files, weight, counts)

    @property
    def facts(self) -> dict[str, Any]:
        """Return what a version's manifest says about the ranker."""
        training = self.files.facts
        names = ("holdout", "cut", "num_events", "last_event_at", "trained_at")
        about = {name: training.get(name) for name in names}
        return {"id": self.files.digest[:16], "uri": self.files.source, "weight": self.weight, **about}

    def check(self, source: Mapping[str, Any]) -> None:
        """Raise FingerprintError unless the ranker was trained on embeddings like those of the index."""
        found, expected = self.files.facts.get("embedding_fingerprint"), source["fingerprint"]
        if found != expected:
            msg = f"The ranker {self.files.source} was trained on embeddings with fingerprint {found}, not {expected}."
            remedy = "Train it again on an index of these embeddings."
            raise FingerprintError(msg, key="ranker", value=found, expected=expected, remedy=remedy)


def history_etag(uri: str) -> str:
    """Return the version of a history file. Its rows are read later, when the videos are known.

    Raises:
        ConfigError: the file does not exist, or its columns cannot be read.
    """
    file = HistoryFile.find(*table_place(uri, what="history"))
    file.columns()
    return str(file.stored.etag)


@dataclass(frozen=True)
class Watching:
    """The events of a history, those that were fitted on, and the facts for the manifest of a version."""

    found: WatchEvents
    fitted: Events
    facts: dict[str, Any]


def add_history(folder: Path, config: IndexConfig, ranker: RankerSource | None) -> Watching:
    """Write what the history says about the videos of a version.

    Raises:
        ConfigError: the history cannot be used.
    """
    items, settings = Items.open(folder), _settings(config.events, ranker)
    found = read_events(str(config.history), items, is_ordered=settings.ordered)
    seconds = None if settings.cut is None else iso_seconds(settings.cut)
    key = "events.holdout" if ranker is None else "the ranker's holdout"
    events, cut = fittable(found.events, found.parts, holdout=settings.holdout, cut=seconds, key=key)
    kind = _kind(settings, events, num_videos=len(items))
    successors = count_successors(kind, events, num_items=len(items))
    successors.save(folder / SUCCESSORS)
    np.save(folder / VIEWS, views(events, len(items), days=settings.popular_days), allow_pickle=False)
    hashes = found.hashes(events, items)
    if ranker is not None:
        hashes = np.union1d(hashes, ranker.files.fitted_events)
    np.save(folder / FITTED, hashes, allow_pickle=False)
    facts = {
        "uri": config.history,
        "counts": kind,
        "num_pairs": len(successors.items),
        "num_events": len(events),
        "num_users": int((np.diff(events.starts) > 0).sum()),
        "holdout": settings.holdout,
        "cut_seconds": cut,
        "left_out": found.counts,
        "settings": config.events.model_dump(mode="json"),
    }
    return Watching(found, events, facts)


def _settings(events: HistorySettings, ranker: RankerSource | None) -> HistorySettings:
    if ranker is None:
        return events
    facts = ranker.files.facts
    chosen = {"holdout": facts["holdout"], "cut": facts.get("cut"), "counts": ranker.counts}
    return events.model_copy(update=chosen)


def _kind(settings: HistorySettings, events: Events, *, num_videos: int) -> CountKind:
    kind: CountKind = "transitions" if events.is_ordered else "item_knn"
    if settings.counts == "ease" and num_videos > EASE_MAX_ITEMS:
        msg = f"events.counts=ease needs a matrix of all pairs; the index has {num_videos:,} videos."
        raise ConfigError(msg, key="events.counts", value="ease", choices=("transitions", "item_knn"))
    return kind if settings.counts == "auto" else settings.counts


def views(events: Events, num_videos: int, *, days: float) -> npt.NDArray[np.float32]:
    """Return how many users watched each video in the last days before the newest event, ``[N]``.

    Of videos with equal views, those with more views in all get a little more. Without times, all events count.
    """
    total = np.bincount(events.items, minlength=num_videos)
    recent = total
    if events.times is not None and len(events):
        is_recent = events.times > events.times.max() - days * _DAY_SECONDS
        recent = np.bincount(events.items[is_recent], minlength=num_videos)
    found: npt.NDArray[np.float32] = (recent + total / (total.max(initial=0) + 1)).astype(np.float32)
    return found
