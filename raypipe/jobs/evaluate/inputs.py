"""Divide watch events by the protocol of a configuration."""

import datetime as dt
from dataclasses import replace

import numpy as np

from raypipe.config.evaluate import EvaluateConfig
from raypipe.errors import ConfigError
from raypipe.evaluation.protocols import Split, by_time, given, last_k, leave_one_out
from raypipe.tables.event_table import SPLIT, WATCHED_AT, WatchEvents


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


def _cut(text: str) -> float:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        msg = f"cut={text!r} is not an ISO date or time."
        raise ConfigError(
            msg, key="cut", value=text, remedy="Write it like 2026-05-31 or 2026-05-31T12:00:00."
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
