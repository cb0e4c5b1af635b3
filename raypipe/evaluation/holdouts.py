"""Which watch events may be fitted on, so that the others can still measure the result."""

import numpy as np

from raypipe.errors import ConfigError
from raypipe.evaluation.protocols import by_time, leave_one_out
from raypipe.search.watch_events import Events, Ints


def fittable(
    events: Events, parts: Ints | None, *, holdout: str, cut: float | None = None, key: str
) -> tuple[Events, float | None]:
    """Return the events that may be fitted on, and the cut in seconds if ``holdout`` is ``time``.

    Args:
        events: All events.
        parts: 0 for each event that is for training, as in a column ``split``.
        holdout: ``leave_one_out`` holds out the last two events of each user with at least three, ``time`` those after
            the cut, ``given`` those whose part is not 0, and ``none`` no event.
        cut: The default is the 90 % quantile of the times.
        key: The key of the configuration that chose the holdout, for errors.

    Raises:
        ConfigError: the events lack what the holdout needs.
    """
    if holdout == "none":
        return events, None
    if holdout == "leave_one_out":
        return leave_one_out(events).train, None
    if holdout == "time" and events.times is not None:
        split = by_time(events, cut=cut)
        return split.train, float(split.facts["cut"])
    if holdout == "given" and parts is not None:
        return events.where(np.asarray(parts == 0)), None
    needed = "watched_at with dates" if holdout == "time" else "split with train and test"
    msg = f"{key}={holdout} needs a column {needed}."
    raise ConfigError(msg, key=key, value=holdout, remedy="Use leave_one_out.")
