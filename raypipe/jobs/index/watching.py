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
from raypipe.jobs.index.counting import (
    DAY_SECONDS,
    Fitting,
    WatchCounts,
    check_holdout,
    count_in_parts,
    count_views,
    views_of,
)
from raypipe.models.ranker_files import BLEND, RankerFiles, read_ranker
from raypipe.search.items import Items
from raypipe.search.successors import EASE_MAX_ITEMS, CountKind, count_successors
from raypipe.search.versions import FITTED, SUCCESSORS, VIEWS
from raypipe.search.watch_events import Events
from raypipe.storage import Folder
from raypipe.tables import table_place
from raypipe.tables.event_groups import EventGroups
from raypipe.tables.event_table import WatchEvents, read_events
from raypipe.tables.history import HISTORY, HistoryFile
from raypipe.tables.reader import refuse_changed
from raypipe.text import iso_seconds, one_line


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
        names = ("holdout", "cut", "num_events", "last_event_at")
        about = {name: training.get(name) for name in names}
        return {"id": self.files.digest[:16], "uri": self.files.source, "weight": self.weight, **about}

    def check(self, source: Mapping[str, Any]) -> None:
        """Raise FingerprintError unless the ranker was trained on embeddings like those of the index."""
        found, expected = self.files.facts.get("embedding_fingerprint"), source["fingerprint"]
        if found != expected:
            msg = f"The ranker {self.files.source} was trained on embeddings with fingerprint {found}, not {expected}."
            remedy = "Train it again on an index of these embeddings."
            raise FingerprintError(msg, key="ranker", value=found, expected=expected, remedy=remedy)


@dataclass(frozen=True, slots=True)
class WatchHistory:
    """A history file. ``large`` is given if it must be counted in parts, on Ray."""

    file: HistoryFile
    large: EventGroups | None

    @classmethod
    def find(cls, config: IndexConfig) -> "WatchHistory":
        """Find the history of a configuration. Its rows are read later, when the videos are known.

        Raises:
            ConfigError: the file does not exist, its columns cannot be read, or it is too large for an evaluation.
        """
        file = HistoryFile.find(*table_place(str(config.history), what="history"))
        file.columns()
        groups, most = EventGroups.find(file), config.events.in_process
        if groups is None or groups.num_events <= most:
            return cls(file, None)
        if config.evaluate is not None:
            msg = (
                f"The history has {groups.num_events:,} events; evaluate needs all of them in memory, at most {most:,}."
            )
            remedy = "Omit evaluate, or raise events.in_process."
            raise ConfigError(msg, key="events.in_process", value=most, expected=groups.num_events, remedy=remedy)
        return cls(file, groups)


@dataclass(frozen=True)
class HistoryEvents:
    """The events of a history in memory, and those of them that were fitted on, of the same users."""

    found: WatchEvents
    fitted: Events


@dataclass(frozen=True)
class Watching:
    """The facts for the manifest of a version, and the events unless they were counted on Ray."""

    facts: dict[str, Any]
    events: HistoryEvents | None


def add_history(folder: Path, config: IndexConfig, history: WatchHistory, ranker: RankerSource | None) -> Watching:
    """Write what the history says about the videos of a version.

    Raises:
        ConfigError: the history cannot be used, or has changed since it was found.
        JobError: the history is counted on Ray, which cannot continue.
    """
    items, settings = Items.open(folder), _settings(config.events, ranker)
    seconds = None if settings.cut is None else iso_seconds(settings.cut)
    key = "events.holdout" if ranker is None else "the ranker's holdout"
    fitting = Fitting(settings.holdout, seconds, key, settings.ordered, settings.popular_days)
    refuse_changed(history.file.folder, history.file.stored, HISTORY)
    events = None
    if history.large is None:
        counts, events = count_here(str(config.history), items, settings, fitting)
    else:
        counts = count_on_ray(history.large, items, settings, fitting)
    counts.successors.save(folder / SUCCESSORS)
    np.save(folder / VIEWS, counts.views, allow_pickle=False)
    hashes = counts.hashes if ranker is None else np.union1d(counts.hashes, ranker.files.fitted_events)
    np.save(folder / FITTED, hashes, allow_pickle=False)
    facts = {
        "uri": config.history,
        "counts": counts.successors.kind,
        "num_pairs": len(counts.successors.items),
        "num_events": len(counts.hashes),
        "num_users": counts.num_users,
        "holdout": settings.holdout,
        "cut_seconds": counts.cut,
        "left_out": counts.left_out,
        "settings": counting_settings(config.events),
    }
    return Watching(facts, events)


def counting_settings(events: HistorySettings) -> dict[str, Any]:
    """Return the settings that decide the result of counting."""
    return events.model_dump(mode="json", exclude={"in_process"})


def count_here(
    uri: str, items: Items, settings: HistorySettings, fitting: Fitting
) -> tuple[WatchCounts, HistoryEvents]:
    """Count a history in this process. Raises ConfigError if it cannot be used."""
    found = read_events(uri, items, is_ordered=fitting.is_ordered)
    events, cut = fittable(found.events, found.parts, holdout=fitting.holdout, cut=fitting.cut, key=fitting.key)
    kind = _kind(settings, is_ordered=events.is_ordered, num_videos=len(items))
    counts = WatchCounts(
        count_successors(kind, events, num_items=len(items)),
        _views(events, len(items), days=fitting.popular_days),
        found.hashes(events, items),
        num_users=int((np.diff(events.starts) > 0).sum()),
        cut=cut,
        left_out=found.counts,
    )
    return counts, HistoryEvents(found, events)


def count_on_ray(groups: EventGroups, items: Items, settings: HistorySettings, fitting: Fitting) -> WatchCounts:
    """Count a history on Ray.

    Raises:
        ConfigError: the history cannot be used, or its counts need all events at once.
        JobError: Ray cannot continue.
    """
    from raypipe.runs.ray_tasks import RayTasks  # noqa: PLC0415 - Ray takes a second to import, and few histories need it

    kind = _kind(settings, is_ordered=groups.has_times or fitting.is_ordered, num_videos=len(items))
    if kind != "transitions":
        events, most = groups.num_events, settings.in_process
        msg = f"The history has {events:,} events; events.counts={kind} needs all of them in memory, at most {most:,}."
        remedy = "Use transitions, or raise events.in_process."
        raise ConfigError(msg, key="events.in_process", value=most, expected=events, remedy=remedy)
    check_holdout(groups, fitting)
    return count_in_parts(groups, items, fitting, RayTasks())


def _settings(events: HistorySettings, ranker: RankerSource | None) -> HistorySettings:
    if ranker is None:
        return events
    facts = ranker.files.facts
    chosen = {"holdout": facts["holdout"], "cut": facts.get("cut"), "counts": ranker.counts}
    return events.model_copy(update=chosen)


def _kind(settings: HistorySettings, *, is_ordered: bool, num_videos: int) -> CountKind:
    kind: CountKind = "transitions" if is_ordered else "item_knn"
    if settings.counts == "ease" and num_videos > EASE_MAX_ITEMS:
        msg = f"events.counts=ease needs a matrix of all pairs; the index has {num_videos:,} videos."
        raise ConfigError(msg, key="events.counts", value="ease", choices=("transitions", "item_knn"))
    return kind if settings.counts == "auto" else settings.counts


def _views(events: Events, num_videos: int, *, days: float) -> npt.NDArray[np.float32]:
    """Count the views in the last days before the newest event; without times, all of them."""
    newest = None if events.times is None or not len(events) else float(events.times.max())
    recent_from = None if newest is None else newest - days * DAY_SECONDS
    return views_of(*count_views(events, num_videos, recent_from=recent_from))
