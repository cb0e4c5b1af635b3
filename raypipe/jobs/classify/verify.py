"""Check the rows that classify writes: the labels, the scores and the status must be consistent."""

import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raypipe import schema
from raypipe.dataset.verify import OF_VIDEOS, RowChecks, Verification, Violation, stored_settings
from raypipe.dataset.verify import verify as verify_output
from raypipe.status import HAS_FRAMES
from raypipe.storage import Folder

_ANSWERS = (schema.LABEL, schema.SCORE, schema.LABELS, schema.TOP_LABELS, schema.TOP_SCORES)


def verify(output: Folder) -> Verification:
    """Verify the output of a classify job. Raises the same errors as ``raypipe.dataset.verify.verify``."""
    row_format = 1 if stored_settings(output).get("format") == 1 else schema.PREDICTIONS_FORMAT
    wanted = schema.predictions_schema(row_format=row_format)
    return verify_output(output, RowChecks("classify", lambda _: wanted, OF_VIDEOS, _problems))


def _problems(rows: pa.Table) -> Iterator[Violation]:
    listed = rows.to_pylist()
    of_frames = [name for name in (schema.FRAME_SCORES, schema.ORDER_SCORES) if name in rows.column_names]
    if len({row[name] is None for row in listed for name in of_frames if row[schema.STATUS] in HAS_FRAMES}) > 1:
        yield Violation("some_frame_scores", f"only some of its videos have {' and '.join(of_frames)}.")
    for row in listed:
        has_frames = row[schema.STATUS] in HAS_FRAMES
        given = [row[name] is not None for name in _ANSWERS]
        if (row[schema.NUM_FRAMES] > 0) != has_frames or given != [has_frames] * len(given):
            said = f"{row[schema.VIDEO_ID]!r} is {row[schema.STATUS]}, but its frames, label or scores do not match."
            yield Violation("answer", said)
            continue
        problems = [problem for name in of_frames for problem in _frame_problems(row, name)]
        for problem in [*problems, *(_answer_problems(row) if has_frames else ())]:
            yield Violation(problem.check, f"{row[schema.VIDEO_ID]!r} {problem}")


def _frame_problems(row: dict[str, Any], name: str) -> Iterator[Violation]:
    """Check the scores of a video's frames in one column. They are null if the video has no frames."""
    scores, num_frames = row[name], row[schema.NUM_FRAMES]
    if scores is not None and not num_frames:
        yield Violation("frame_scores", f"has {name} but no frames.")
    elif scores is not None and len(scores) != num_frames:
        yield Violation("frame_scores", f"has {len(scores)} {name} for {num_frames} frames.")
    if not all(_is_number(score) for score in scores or ()):
        yield Violation("frame_score", f"has a number in {name} that is not finite.")


def _answer_problems(row: dict[str, Any]) -> Iterator[Violation]:
    names, scores = row[schema.TOP_LABELS], row[schema.TOP_SCORES]
    if not all(_is_number(score) and 0 <= score <= 1 for score in (row[schema.SCORE], *scores)):
        yield Violation("score", "has a score that is not between 0 and 1.")
    elif len(names) != len(scores) or (names[:1], scores[:1]) != ([row[schema.LABEL]], [row[schema.SCORE]]):
        yield Violation("best_label", "has a label or a score that is not the first of its top labels or scores.")
    elif scores != sorted(scores, reverse=True) or len(set(names)) != len(names):
        yield Violation("label_order", "has top labels that are repeated or not sorted by score.")


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
