"""Check the rows that recommend writes: the lists and the status must be consistent."""

import json
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raypipe import schema
from raypipe.dataset.verify import RowChecks, Verification, Violation
from raypipe.dataset.verify import verify as verify_output
from raypipe.errors import ConfigError, ObjectError
from raypipe.status import UserStatus
from raypipe.storage import Folder

_RUN_OF_FORMAT_1 = "run.json"
_LISTS = (schema.VIDEO_IDS, schema.SCORES, schema.CLOSEST, schema.REASONS, schema.AFTER, schema.NUM_USERS)


def verify(output: Folder) -> Verification:
    """Verify the output of a recommend job. Raises the same errors as ``raypipe.dataset.verify.verify``."""
    statuses = frozenset(map(str, UserStatus))
    checks = RowChecks("recommend", lambda _: schema.recommendations_schema(), (schema.ROW,), _problems, statuses)
    return verify_output(output, checks)


def _problems(rows: pa.Table) -> Iterator[Violation]:
    for row in rows.to_pylist():
        for problem in _row_problems(row):
            yield Violation(problem.check, f"row {row[schema.ROW]} {problem}")


def _row_problems(row: dict[str, Any]) -> Iterator[Violation]:
    lists = [row[name] for name in _LISTS]
    is_error = row[schema.STATUS] == UserStatus.ERROR
    is_popular = row[schema.STATUS] == UserStatus.POPULAR
    if is_error != (row[schema.ERROR] is not None) or is_popular != (row[schema.FALLBACK] is not None):
        yield Violation("status_fits", f"is {row[schema.STATUS]}, but its error or its fallback does not match.")
    if {one is None for one in (*lists, row[schema.UNKNOWN], row[schema.STRATEGY])} != {is_error}:
        yield Violation("answer", f"is {row[schema.STATUS]}, but its lists do not match.")
    elif not is_error:
        video_ids, scores = lists[:2]
        if len(set(map(len, lists))) != 1:
            yield Violation("list_lengths", "has lists of different lengths.")
        if len(set(video_ids)) != len(video_ids) or None in video_ids:
            yield Violation("repeated_video", "recommends a video twice.")
        if not all(score is not None and math.isfinite(score) for score in scores):
            yield Violation("score", "has a score that is not finite.")


def refuse_format_1(output: Folder) -> None:
    """Raise an error if raypipe 0.1 wrote the output. It has no plans, so it can be neither resumed nor verified.

    Raises:
        ConfigError: the output was written by raypipe 0.1.
    """
    if not output.exists(_RUN_OF_FORMAT_1):
        return
    try:
        is_old = json.loads(output.read(_RUN_OF_FORMAT_1))["settings"]["job"] == "recommend"
    except (ObjectError, KeyError, TypeError, ValueError, RecursionError):
        return
    if is_old:
        msg = f"{output} holds recommendations in the format of raypipe 0.1, which has no plans."
        remedy = "Run raypipe recommend with another output; the files in data/ stay readable."
        raise ConfigError(msg, key="output", value=output.uri, remedy=remedy)
