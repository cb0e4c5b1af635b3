"""Whatever is wrong with stored predictions is named."""

import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.classify_outputs import NAMES, classify_all
from support.embed_outputs import make_output, replace_object

from raypipe import schema
from raypipe.classify.verify import verify
from raypipe.sealed.verify import stored_job
from raypipe.storage import Folder

OK, FAILED = "0.mp4", "5.mp4"


def corrupt(output: Folder, video_id: str, column: str, change: Callable[[Any], Any]) -> None:
    """Change one value of one video."""
    for stored in list(output.list("data/")):
        rows = pq.read_table(io.BytesIO(output.read(stored.key)))
        ids = rows[schema.VIDEO_ID].to_pylist()
        if video_id in ids:
            at, values = rows.schema.get_field_index(column), rows[column].to_pylist()
            values[ids.index(video_id)] = change(values[ids.index(video_id)])
            file = io.BytesIO()
            pq.write_table(rows.set_column(at, column, pa.array(values, rows.schema.field(column).type)), file)
            replace_object(output, stored.key, file.getvalue())


@pytest.fixture
def output(folder: Folder) -> Folder:
    labels = Folder(folder.child("labels"))
    classify_all(make_output(folder), labels)
    return labels


def test_an_output_of_classify_is_known_as_one(output: Folder) -> None:
    assert stored_job(output) == "classify"
    assert verify(output).violations == []


@pytest.mark.parametrize(
    ("video_id", "column", "change", "said"),
    [
        (OK, schema.LABEL, lambda _: None, "'0.mp4' is ok, which its frames, label or scores do not fit."),
        (FAILED, schema.LABEL, lambda _: "cat", "'5.mp4' is timeout, which its frames, label or scores do not fit."),
        (FAILED, schema.FRAME_SCORES, lambda _: [], "'5.mp4' has scores of frames, and no frames."),
        (OK, schema.NUM_FRAMES, lambda _: 0, "'0.mp4' is ok, which its frames, label or scores do not fit."),
        (OK, schema.FRAME_SCORES, lambda old: old[:2], "'0.mp4' has 2 scores of 3 frames."),
        (OK, schema.FRAME_SCORES, lambda old: [float("inf"), *old[1:]], "has a score of a frame that is not finite."),
        ("1.mp4", schema.FRAME_SCORES, lambda _: None, "only some of its videos have scores of their frames."),
        (OK, schema.SCORE, lambda _: 2.0, "'0.mp4' has a score that is not between 0 and 1."),
        (OK, schema.TOP_SCORES, lambda old: [*old[:-1], float("nan")], "has a score that is not between 0 and 1."),
        (OK, schema.LABEL, lambda old: NAMES[NAMES.index(old) - 1], "is not the first of its best ones."),
        (OK, schema.TOP_LABELS, lambda old: old[:1], "is not the first of its best ones."),
        (OK, schema.TOP_SCORES, lambda old: [old[0], *reversed(old[1:])], "has best labels that are not in order."),
        (OK, schema.TOP_LABELS, lambda old: old[:1] * 3, "has best labels that are not in order."),
        (OK, schema.ETAG, lambda _: "1-x", "are not the 2 videos that the plan gives this shard."),
        (OK, schema.STATUS, lambda _: "fine", "unknown statuses ['fine']."),
    ],
)
def test_what_is_wrong_is_named(
    output: Folder, video_id: str, column: str, change: Callable[[Any], Any], said: str
) -> None:
    corrupt(output, video_id, column, change)
    assert [violation for violation in verify(output).violations if said in violation]


def test_a_missing_file_names_the_command(output: Folder) -> None:
    replace_object(output, "data/00000-000000.parquet", None)
    assert any("Run the same raypipe classify again." in violation for violation in verify(output).violations)
