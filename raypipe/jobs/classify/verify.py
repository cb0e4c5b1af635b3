"""Check the rows that classify writes: the labels, the scores and the status must be consistent."""

import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raypipe import schema
from raypipe.dataset.verify import OF_VIDEOS, RowChecks, Verification, Violation
from raypipe.dataset.verify import verify as verify_output
from raypipe.status import HAS_FRAMES
from raypipe.storage import Folder

_ANSWERS = (schema.LABEL, schema.SCORE, schema.LABELS, schema.TOP_LABELS, schema.TOP_SCORES)


def verify(output: Folder) -> Verification:
    """Verify the output of a classify job. Raises the same errors as ``raypipe.dataset.verify.verify``."""
    return verify_output(output, RowChecks("classify", lambda _: schema.predictions_schema(), OF_VIDEOS, _problems))


def _problems(rows: pa.Table) -> Iterator[Violation]:
    listed = rows.to_pylist()
    if len({row[schema.FRAME_SCORES] is None for row in listed if row[schema.STATUS] in HAS_FRAMES}) > 1:
        yield Violation("some_frame_scores", "only some of its videos have frame scores.")
    for row in listed:
        has_frames = row[schema.STATUS] in HAS_FRAMES
        given = [row[name] is not None for name in _ANSWERS]
        if (row[schema.NUM_FRAMES] > 0) != has_frames or given != [has_frames] * len(given):
            said = f"{row[schema.VIDEO_ID]!r} is {row[schema.STATUS]}, but its frames, label or scores do not match."
            yield Violation("answer", said)
        elif not has_frames and row[schema.FRAME_SCORES] is not None:
            yield Violation("frame_scores", f"{row[schema.VIDEO_ID]!r} has frame scores but no frames.")
        elif has_frames:
            for problem in _answer_problems(row):
                yield Violation(problem.check, f"{row[schema.VIDEO_ID]!r} {problem}")


def _answer_problems(row: dict[str, Any]) -> Iterator[Violation]:
    names, scores, of_frames = row[schema.TOP_LABELS], row[schema.TOP_SCORES], row[schema.FRAME_SCORES]
    if of_frames is not None and len(of_frames) != row[schema.NUM_FRAMES]:
        yield Violation("frame_scores", f"has {len(of_frames)} frame scores for {row[schema.NUM_FRAMES]} frames.")
    if not all(_is_number(score) for score in of_frames or ()):
        yield Violation("frame_score", "has a frame score that is not finite.")
    if not all(_is_number(score) and 0 <= score <= 1 for score in (row[schema.SCORE], *scores)):
        yield Violation("score", "has a score that is not between 0 and 1.")
    elif len(names) != len(scores) or (names[:1], scores[:1]) != ([row[schema.LABEL]], [row[schema.SCORE]]):
        yield Violation("best_label", "has a label or a score that is not the first of its top labels or scores.")
    elif scores != sorted(scores, reverse=True) or len(set(names)) != len(names):
        yield Violation("label_order", "has top labels that are repeated or not sorted by score.")


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
