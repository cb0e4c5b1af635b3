"""Every corruption of stored predictions is found and named."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe import schema
from raypipe.dataset.verify import stored_job
from raypipe.jobs.classify.verify import verify
from raypipe.storage import Folder
from support.classify_outputs import NAMES, classify_all
from support.embed_outputs import make_output, names_violation, replace_object

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


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    classify_all(make_output(Folder(str(folder))), Folder(str(folder / "labels")))
    return folder / "labels"


@pytest.fixture
def output(template: Path, tmp_path: Path) -> Folder:
    """Return a sealed output to corrupt: a copy with the same modification times, which are its etags."""
    shutil.copytree(template, tmp_path / "labels")
    return Folder(str(tmp_path / "labels"))


def test_an_output_of_classify_is_recognised(folder: Folder) -> None:
    labels = Folder(folder.child("labels"))
    classify_all(make_output(folder), labels)
    assert stored_job(labels) == "classify"
    assert verify(labels).violations == []


@pytest.mark.parametrize(
    ("video_id", "column", "change", "expected"),
    [
        (OK, schema.LABEL, lambda _: None, ("answer", "'0.mp4'", "ok")),
        (FAILED, schema.LABEL, lambda _: "cat", ("answer", "'5.mp4'", "timeout")),
        (FAILED, schema.FRAME_SCORES, lambda _: [], ("frame_scores", "'5.mp4'")),
        (FAILED, schema.ORDER_SCORES, lambda _: [], ("frame_scores", "order_scores", "'5.mp4'")),
        (OK, schema.NUM_FRAMES, lambda _: 0, ("answer", "'0.mp4'", "ok")),
        (OK, schema.FRAME_SCORES, lambda old: old[:2], ("frame_scores", "'0.mp4'", 2, 3)),
        (OK, schema.FRAME_SCORES, lambda old: [float("inf"), *old[1:]], ("frame_score", "'0.mp4'")),
        (OK, schema.ORDER_SCORES, lambda old: old[:2], ("frame_scores", "order_scores", "'0.mp4'", 2, 3)),
        (OK, schema.ORDER_SCORES, lambda old: [None, *old[1:]], ("frame_score", "order_scores", "'0.mp4'")),
        ("1.mp4", schema.FRAME_SCORES, lambda _: None, ("some_frame_scores",)),
        ("1.mp4", schema.ORDER_SCORES, lambda _: None, ("some_frame_scores",)),
        (OK, schema.SCORE, lambda _: 2.0, ("score", "'0.mp4'")),
        (OK, schema.TOP_SCORES, lambda old: [*old[:-1], float("nan")], ("score", "'0.mp4'")),
        (OK, schema.LABEL, lambda old: NAMES[NAMES.index(old) - 1], ("best_label", "'0.mp4'")),
        (OK, schema.TOP_LABELS, lambda old: old[:1], ("best_label", "'0.mp4'")),
        (OK, schema.TOP_SCORES, lambda old: [old[0], *reversed(old[1:])], ("label_order", "'0.mp4'")),
        (OK, schema.TOP_LABELS, lambda old: old[:1] * 3, ("label_order", "'0.mp4'")),
        (OK, schema.ETAG, lambda _: "1-x", ("planned_rows", 2)),
        (OK, schema.STATUS, lambda _: "fine", ("status", "'fine'")),
    ],
)
def test_every_corruption_is_named(
    output: Folder, video_id: str, column: str, change: Callable[[Any], Any], expected: tuple[Any, ...]
) -> None:
    corrupt(output, video_id, column, change)
    assert names_violation(verify(output).violations, *expected)


def test_a_missing_file_names_the_command(output: Folder) -> None:
    replace_object(output, "data/00000-000000.parquet", None)
    assert names_violation(verify(output).violations, "missing_shards", "raypipe classify")
