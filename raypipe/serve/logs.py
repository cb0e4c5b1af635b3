"""One JSON line a request, in the log of its replica; never a token, a query or a body."""

import logging
from collections.abc import Mapping

SERVE_LOGGER = "ray.serve"
_MESSAGE = "request"


def log_request(record: Mapping[str, object]) -> None:
    """Write the record to the replica's own file among Ray Serve's logs, which the deployment asks to be JSON."""
    logger = logging.getLogger(SERVE_LOGGER)
    if logger.isEnabledFor(logging.INFO):
        # Made here, because a logger would look up the line of code that logs: longer than all else it does.
        line = logging.LogRecord(SERVE_LOGGER, logging.INFO, __file__, 0, _MESSAGE, None, None)
        line.__dict__ |= {"ray_serve_extra_fields": dict(record), "skip_context_filter": True, "log_to_stderr": False}
        logger.handle(line)


def flush() -> None:
    """Let lines that wait for others be read."""
    for handler in logging.getLogger(SERVE_LOGGER).handlers:
        handler.flush()
