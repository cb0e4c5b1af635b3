"""Divide watch events by the protocol of a configuration."""

import io
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from raypipe.config.evaluate import EvaluateConfig
from raypipe.errors import ConfigError
from raypipe.evaluation.protocols import Split, by_time, given, last_k, leave_one_out
from raypipe.search.index import VideoIndex
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from raypipe.tables.event_table import SPLIT, WATCHED_AT, WatchEvents
from raypipe.text import iso_seconds


def split_events(found: WatchEvents, config: EvaluateConfig) -> Split:
    """Divide the events by the protocol of the configuration.

    Raises:
        ConfigError: the events lack what the protocol needs, or no user has a target and an earlier event.
    """
    events, protocol = found.events, config.protocol
    if protocol == "auto":
        protocol = "given" if found.parts is not None else "time" if events.times is not None else "leave_one_out"
    if protocol == "time" and events.times is None:
        msg = f"protocol=time needs a column {WATCHED_AT!r} with dates."
        raise ConfigError(msg, key="protocol", value=protocol, remedy="Use leave_one_out.")
    if protocol == "given" and found.parts is None:
        msg = f"protocol=given needs a column {SPLIT!r} with train and test."
        raise ConfigError(msg, key="protocol", value=protocol, remedy="Use leave_one_out.")
    if protocol == "leave_one_out":
        split = leave_one_out(events)
    elif protocol == "last_k":
        split = last_k(events, num_targets=config.num_targets)
    elif protocol == "time":
        split = by_time(events, cut=None if config.cut is None else _cut(config.cut))
    else:
        parts = np.zeros(0, np.int64) if found.parts is None else found.parts
        split = given(events, parts == 0, parts == 2)  # noqa: PLR2004 - the test part
    if not len(split.users):
        msg = f"No user of the history has an event to predict by the protocol {protocol}."
        raise ConfigError(msg, key="protocol", value=protocol, remedy="Give users with more events.")
    num_users = int((np.diff(events.starts) > 0).sum())
    return replace(split, facts=split.facts | {"num_users_without_target": num_users - len(split.users)})


def refuse_fitted(index: VideoIndex, uri: str, found: WatchEvents, split: Split) -> None:
    """Raise ConfigError if the index has counted or learned from an event that is to be predicted."""
    data = Versions(Folder(uri)).read_fitted_events(index.version)
    if data is None:
        return
    fitted: npt.NDArray[np.uint64] = np.load(io.BytesIO(data), allow_pickle=False)
    if num_seen := int(np.isin(found.hashes(split.targets, index.items), fitted).sum()):
        about = index.manifest.get("history") or {}
        holdout = about.get("holdout")
        msg = (
            f"Version {index.version} was fitted on {num_seen:,} of the {len(split.targets):,} events to predict "
            f"(holdout {holdout})."
        )
        protocol = split.facts["protocol"]
        remedy = f"Build the index, and train its ranker, with a holdout that fits the protocol {protocol}."
        raise ConfigError(msg, key="protocol", value=protocol, expected=holdout, remedy=remedy)


def _cut(text: str) -> float:
    try:
        return iso_seconds(text)
    except ValueError as error:
        msg = f"cut: {error}."
        raise ConfigError(msg, key="cut", value=text) from None
