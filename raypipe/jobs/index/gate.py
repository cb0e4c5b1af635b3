"""Measure a new version on events that it has not seen, before it becomes the current one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from raypipe.config.index import IndexConfig
from raypipe.config.recommend import RankingConfig
from raypipe.errors import ConfigError, JobError
from raypipe.evaluation.compare import Evaluation, compare
from raypipe.evaluation.protocols import Split
from raypipe.evaluation.rankers import Requirement, fit_rankers, one_search_thread
from raypipe.jobs.index.watching import HistoryEvents
from raypipe.search.index import VideoIndex
from raypipe.search.versions import FITTED
from raypipe.search.watch_events import Events
from raypipe.tables.event_table import WatchEvents, read_events

_KS = (5, 10, 20)
_TOP_K = 200


def evaluate_version(folder: Path, made: Mapping[str, Any], config: IndexConfig, history: HistoryEvents) -> Evaluation:
    """Predict the events of ``config.evaluate`` from the history that the version was built with.

    Raises:
        ConfigError: an event was fitted on, no user of the history has a later event, or the required baseline does not
            exist.
        JobError: the version does not meet ``config.require``.
    """
    uri = str(config.evaluate)
    index = VideoIndex.load(folder, {**made, "files": {path.name: {} for path in folder.iterdir()}})
    later = read_events(uri, index.items, is_ordered=config.events.ordered)
    split = later_events(history.found, history.fitted, later)
    if not len(split.users):
        msg = f"No user of {config.history} has an event with another video in {uri}."
        raise ConfigError(msg, key="evaluate", value=uri, remedy="Give later events of the same users.")
    fitted = np.load(folder / FITTED, allow_pickle=False)
    if num_seen := int(np.isin(history.found.hashes(split.targets, index.items), fitted).sum()):
        msg = f"The ranker has learned from {num_seen:,} of the {len(split.targets):,} events to predict in {uri}."
        raise ConfigError(msg, key="evaluate", value=uri, remedy="Give events that are newer than the ranker.")
    ranking, require = RankingConfig(top_k=_TOP_K), Requirement.parse(config.require)
    with one_search_thread():
        rankers = fit_rankers(index, split, ranking=ranking, controls=False, require=require, seed=config.index.seed)
        found = compare(split, rankers, num_items=len(index), ks=_KS, vectors=index.vectors)
    if require is not None and not require.is_met(found):
        difference = found.against[require.metric][require.baseline]
        interval = f"{difference.value:.4f} [{difference.low:.4f}, {difference.high:.4f}]"
        msg = f"The new version does not meet {config.require!r}: the difference is {interval}. It was not stored."
        raise JobError(msg, key="require", value=config.require)
    return found


def later_events(earlier: WatchEvents, fitted: Events, later: WatchEvents) -> Split:
    """Return the split that predicts, for each user of a history, the first later event with another video.

    Args:
        earlier: The history.
        fitted: Its events that were fitted on, of the same users.
        later: Events after the history.
    """
    numbers = {user_id: number for number, user_id in enumerate(earlier.user_ids)}
    items = np.zeros(len(earlier.user_ids), np.int64)
    has_target = np.zeros(len(earlier.user_ids), np.bool_)
    for later_user, user_id in enumerate(later.user_ids):
        user = numbers.get(user_id)
        if user is None or not len(known := earlier.events.history(user)):
            continue
        fresh = later.events.history(later_user)
        fresh = fresh[~np.isin(fresh, known)]
        if len(fresh):
            items[user], has_target[user] = fresh[0], True
    starts = np.append(0, np.cumsum(has_target))
    without = len(later.user_ids) - int(has_target.sum())
    facts = {"protocol": "later_events", "num_users_without_target": without}
    return Split(fitted, earlier.events, Events(items[has_target], starts), np.flatnonzero(has_target), facts)
