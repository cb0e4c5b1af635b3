"""Check the rows that anomalies writes: the scores and the status must be consistent."""

import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raypipe import schema
from raypipe.dataset.verify import OF_VIDEOS, RowChecks, Verification, Violation
from raypipe.dataset.verify import verify as verify_output
from raypipe.status import HAS_FRAMES
from raypipe.storage import Folder

_SCORES = (schema.P_VALUE, schema.NEIGHBOR_DISTANCE, schema.MAHALANOBIS_LENGTH, schema.CLOSEST_VIDEO)
_ROUNDING = 1e-3  # of a distance, which is 2 at most


def verify(output: Folder) -> Verification:
    """Verify the output of an anomalies job. Raises the same errors as ``raypipe.dataset.verify.verify``."""
    return verify_output(output, RowChecks("anomalies", lambda _: schema.anomalies_schema(), OF_VIDEOS, _problems))


def _problems(rows: pa.Table) -> Iterator[Violation]:
    for row in rows.to_pylist():
        for problem in _row_problems(row):
            yield Violation(problem.check, f"{row[schema.VIDEO_ID]!r} {problem}")


def _row_problems(row: dict[str, Any]) -> Iterator[Violation]:
    p_value, distance, length, _ = scores = [row[name] for name in _SCORES]
    frame_scores, seconds = row[schema.FRAME_SCORES], row[schema.STRANGEST_SECONDS]
    if (row[schema.NUM_FRAMES] > 0) != (row[schema.STATUS] in HAS_FRAMES):
        yield Violation("frames", f"is {row[schema.STATUS]} with {row[schema.NUM_FRAMES]} frames.")
    if len({score is None for score in scores}) > 1:
        yield Violation("some_scores", "has some of its scores only.")
    elif p_value is None:
        if frame_scores is not None or seconds is not None:
            yield Violation("frame_scores", "has scores of frames, but no p-value.")
    else:
        if not row[schema.NUM_FRAMES]:
            yield Violation("score", "has scores, but no frames.")
        if not 0 < p_value <= 1:
            yield Violation("p_value", f"has the p-value {p_value}.")
        if not (0 <= distance <= 2 + _ROUNDING and 0 <= length < math.inf):
            yield Violation("score", f"has the neighbor distance {distance} and the Mahalanobis length {length}.")
        if frame_scores is not None and len(frame_scores) != row[schema.NUM_FRAMES]:
            yield Violation(
                "frame_scores", f"has {len(frame_scores)} frame scores for {row[schema.NUM_FRAMES]} frames."
            )
        if not all(score is None or math.isfinite(score) for score in (*(frame_scores or ()), seconds)):
            yield Violation("frame_score", "has a number that is not finite.")
