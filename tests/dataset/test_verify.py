"""Every problem of a stored output is named, and no stored content makes verify itself fail."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import schema
from raypipe.dataset import plan as plans
from raypipe.dataset.commit import read_manifest
from raypipe.dataset.plan import Plan, plan_numbers, put_plan, read_plan
from raypipe.jobs.embed.verify import verify
from raypipe.storage import Folder
from support.embed_outputs import (
    DIM,
    MARK,
    PACK,
    SETTINGS,
    commit_statuses,
    content,
    embed_all,
    make_output,
    names_violation,
    places,
    plan_new,
    planner,
    replace_object,
    upload,
    video,
)
from support.properties import examples

FIRST, SECOND, THIRD = (f"data/00000-00000{shard}.parquet" for shard in range(3))
LAST = "data/00001-000000.parquet"
MANIFEST = "manifests/00000.json"
METADATA = b"raypipe"
Change = Callable[[pa.Table], pa.Table]


def read(output: Folder, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(output.read(name)))


def rewrite(output: Folder, name: str, change: Change) -> None:
    """Forge a file: change its rows and everything that its footer and its manifest say about them."""
    before = read(output, name)
    after = change(before)
    about = json.loads(before.schema.metadata[METADATA])
    if name.startswith("data/"):
        statuses = after[schema.STATUS].to_pylist() if schema.STATUS in after.column_names else []
        about["statuses"] = {status: statuses.count(status) for status in statuses if status is not None}
    file = io.BytesIO()
    pq.write_table(after.replace_schema_metadata({METADATA: json.dumps(about).encode()}), file)
    replace_object(output, name, file.getvalue())
    if name.startswith("data/"):
        reseal(output)


def reseal(output: Folder) -> None:
    """Update the manifest to the current files, so that the manifest is never the only violation."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["statuses"] = {}
        manifest["num_frames"] = 0
        for file in manifest["files"]:
            stored = output.stat(file["name"])
            assert stored
            file["etag"], file["size_bytes"] = stored.etag, stored.size_bytes
            about = json.loads(read(output, file["name"]).schema.metadata[METADATA])
            manifest["num_frames"] += about["num_frames"]
            for status, count in about["statuses"].items():
                manifest["statuses"][status] = manifest["statuses"].get(status, 0) + count

    change_manifest(output, change)


def change_manifest(output: Folder, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads(output.read(MANIFEST))
    change(manifest)
    replace_object(output, MANIFEST, json.dumps(manifest).encode())


def change_footer(output: Folder, name: str, **changes: object) -> None:
    table = read(output, name)
    about = json.loads(table.schema.metadata[METADATA]) | changes
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(about).encode()}), file)
    replace_object(output, name, file.getvalue())


def with_column(name: str, value: Callable[[list[Any]], list[Any]], kind: pa.DataType | None = None) -> Change:
    """Return a change that replaces the values of one column."""

    def change(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index(name)
        return rows.set_column(at, name, pa.array(value(rows[name].to_pylist()), kind or rows.schema.field(name).type))

    return change


def last_to(value: Any) -> Callable[[list[Any]], list[Any]]:  # noqa: ANN401 - of any column
    return lambda values: [*values[:-1], value(values[-1]) if callable(value) else value]


# Sound outputs


def test_a_sealed_output_holds_every_promise(folder: Folder) -> None:
    result = verify(make_output(folder))
    assert result.violations == []
    assert (result.num_plans, result.num_files, result.num_rows, result.num_frames) == (2, 4, 7, 17)
    assert result.statuses == {"ok": 5, "timeout": 1, "partial": 1}


def test_a_copy_of_a_sealed_output_holds_every_promise(output: Folder) -> None:
    assert verify(output).violations == []


def test_vectors_of_nothing_but_zeros_have_no_direction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Folder(str(tmp_path))
    planner(output).store([video()], pack=PACK)
    monkeypatch.setattr("support.embed_outputs.embed", lambda frames: np.zeros((len(frames), DIM), np.float32))
    commit_statuses(output, {})
    assert verify(output).violations == []


@pytest.mark.parametrize("scale", [1e-12, 1e-7, 1e-4, 1.0, 3e4, 1e8])
def test_vectors_of_any_size_keep_their_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    output = Folder(str(tmp_path))
    planner(output).store([video()], pack=PACK)
    numbers = np.random.default_rng(0)
    monkeypatch.setattr(
        "support.embed_outputs.embed",
        lambda frames: (numbers.standard_normal((len(frames), DIM)) * scale).astype(np.float32),
    )
    commit_statuses(output, {})
    assert verify(output).violations == []


# Corrupt outputs


@pytest.mark.parametrize(
    ("column", "value", "check"), [(schema.STATUS, "missing", "gone_rows"), (schema.ETAG, "e1", "gone_etag")]
)
def test_a_row_that_is_planned_as_gone_is_gone(tmp_path: Path, column: str, value: str, check: str) -> None:
    source, output = places(Folder(str(tmp_path)))
    upload(source, {"a.mp4": content()})
    embed_all(source, output)
    replace_object(source, "a.mp4", None)
    embed_all(source, output)
    assert (verify(output).violations, verify(output).statuses) == ([], {"ok": 1, "gone": 1})
    rewrite(output, LAST, with_column(column, last_to(value)))
    assert names_violation(verify(output).violations, check, LAST)


def broken_row(name: str, value: object, kind: pa.DataType | None = None) -> Callable[[Folder], None]:
    return lambda output: rewrite(output, FIRST, with_column(name, last_to(value), kind))


def lose_plan(output: Folder) -> None:
    replace_object(output, "plans/00000.parquet", None)


def forge_settings(output: Folder) -> None:
    forged = read_plan(output, 1)
    replace_object(output, "plans/00001.parquet", None)
    put_plan(output, Plan(1, forged.rows, forged.fingerprint, {**SETTINGS, "backbone": "large"}, forged.input))


def other_settings(output: Folder) -> None:
    forged = read_plan(output, 1)
    about = {**SETTINGS, "backbone": "large"}
    replace_object(output, "plans/00001.parquet", None)
    put_plan(output, Plan(1, forged.rows, plans.fingerprint(about), about, forged.input))


def double_in_plan(output: Folder) -> None:
    forged = read_plan(output, 0)
    ids = forged.rows[schema.VIDEO_ID].to_pylist()
    videos = forged.rows.set_column(0, schema.VIDEO_ID, pa.array([ids[0]] * len(ids)))
    replace_object(output, "plans/00000.parquet", None)
    put_plan(output, Plan(0, videos, forged.fingerprint, forged.settings, forged.input))


def copy_over(output: Folder, source: str, target: str) -> None:
    replace_object(output, target, output.read(source))
    reseal(output)


def not_a_number(vectors: list[Any]) -> list[Any]:
    return [[float("nan"), *vectors[0][1:]], *vectors[1:]]


ID = "'0.mp4'"  # the last row of FIRST
# How to corrupt an output, the check that must find it, and what the violation must name.
CORRUPTIONS: dict[str, tuple[Callable[[Folder], object], str, tuple[object, ...]]] = {
    "missing file": (
        lambda output: replace_object(output, SECOND, None),
        "missing_shards",
        (1, 3, 2, SECOND, "raypipe embed"),
    ),
    "extra shard": (
        lambda output: output.put_new("data/00000-000099.parquet", output.read(FIRST)),
        "extra_shard",
        ("data/00000-000099.parquet",),
    ),
    "file of no plan": (
        lambda output: output.put_new("data/00007-000000.parquet", output.read(FIRST)),
        "unplanned_file",
        ("data/00007-000000.parquet",),
    ),
    "foreign name": (
        lambda output: output.put_new("data/part-0.parquet", output.read(FIRST)),
        "unplanned_file",
        ("data/part-0.parquet",),
    ),
    "copy of another shard": (lambda output: copy_over(output, THIRD, FIRST), "footer_identity", (FIRST, 2, 0)),
    "copy of another plan's shard": (lambda output: copy_over(output, LAST, FIRST), "footer_identity", (FIRST, 0, 1)),
    "row dropped": (
        lambda output: rewrite(output, FIRST, lambda rows: rows.slice(1)),
        "planned_rows",
        (FIRST, 1, 2),
    ),
    "row doubled": (
        lambda output: rewrite(output, FIRST, lambda rows: pa.concat_tables([rows, rows.slice(0, 1)])),
        "planned_rows",
        (FIRST, 3, 2),
    ),
    "rows in another order": (
        lambda output: rewrite(output, FIRST, lambda rows: rows.take([1, 0])),
        "planned_rows",
        (FIRST, 2),
    ),
    "another etag": (broken_row(schema.ETAG, "other"), "planned_rows", (FIRST, 2)),
    "another size": (broken_row(schema.SIZE_BYTES, 7), "planned_rows", (FIRST, 2)),
    "another id": (broken_row(schema.VIDEO_ID, "other"), "planned_rows", (FIRST, 2)),
    "id is null": (broken_row(schema.VIDEO_ID, None), "null", (FIRST, "video_id")),
    "status is null": (broken_row(schema.STATUS, None), "null", (FIRST, "status")),
    "frames are null": (broken_row(schema.FRAME_EMBEDDINGS, None), "null", (FIRST, "frame_embeddings")),
    "wrong generation": (broken_row(schema.GENERATION, 5), "generation", (FIRST, 0)),
    "gone and not planned so": (broken_row(schema.STATUS, "gone"), "gone_rows", (FIRST, 1, 0)),
    "unknown status": (broken_row(schema.STATUS, "fine"), "status", (FIRST, "'fine'")),
    "status without its frames": (broken_row(schema.STATUS, "timeout"), "frames", (FIRST, ID, "(3, 3, 3)")),
    "no embedding": (broken_row(schema.EMBEDDING, None), "frames", (FIRST, ID, "(3, 3, 3)")),
    "fewer frames than it says": (broken_row(schema.NUM_FRAMES, 4), "frames", (FIRST, ID, "(4, 3, 3)")),
    "corrupt and ok": (broken_row(schema.NUM_CORRUPT_FRAMES, 1), "corrupt_frames", (FIRST, ID, 1)),
    "fewer than no corrupt frames": (broken_row(schema.NUM_CORRUPT_FRAMES, -1), "corrupt_frames", (FIRST, ID, -1)),
    "fewer vectors": (
        broken_row(schema.FRAME_EMBEDDINGS, lambda old: old[:2]),
        "frames",
        (FIRST, ID, "(3, 3, 2)"),
    ),
    "fewer times": (broken_row(schema.FRAME_PTS_SECONDS, [0.0]), "frames", (FIRST, ID, "(3, 1, 3)")),
    "negative frames": (broken_row(schema.NUM_FRAMES, -3), "frames", (FIRST, ID, "(-3, 3, 3)")),
    "NaN in a vector": (broken_row(schema.FRAME_EMBEDDINGS, not_a_number), "not_finite", (FIRST, ID)),
    "null in a vector": (
        broken_row(schema.FRAME_EMBEDDINGS, lambda old: [[None, *old[0][1:]], *old[1:]]),
        "not_finite",
        (FIRST, ID),
    ),
    "null for a vector": (
        broken_row(schema.FRAME_EMBEDDINGS, lambda old: [None, *old[1:]]),
        "not_finite",
        (FIRST, ID),
    ),
    "NaN in an embedding": (
        broken_row(schema.EMBEDDING, lambda old: [float("nan"), *old[1:]]),
        "not_finite",
        (FIRST, ID),
    ),
    "a time that is NaN": (
        broken_row(schema.FRAME_PTS_SECONDS, [0.0, None, float("nan")]),
        "not_finite",
        (FIRST, ID),
    ),
    "embedding is not normalised": (
        broken_row(schema.EMBEDDING, lambda old: [2 * number for number in old]),
        "embedding_length",
        (FIRST, ID, "2.0000"),
    ),
    "embedding is zero": (broken_row(schema.EMBEDDING, [0.0] * DIM), "embedding_length", (FIRST, ID, "0.0000")),
    "embedding is not the mean": (
        broken_row(schema.EMBEDDING, lambda old: [-number for number in old]),
        "embedding_mean",
        (FIRST, ID),
    ),
    "missing column": (
        lambda output: rewrite(output, FIRST, lambda rows: rows.drop_columns([schema.CODEC, schema.STATUS])),
        "missing_columns",
        (FIRST, "codec", "status"),
    ),
    "column of another type": (
        broken_row(schema.NUM_FRAMES, 3, pa.int64()),
        "column_type",
        (FIRST, "num_frames", "int64", "int32"),
    ),
    "embedding of another type": (
        broken_row(schema.EMBEDDING, [1.0] * DIM, pa.list_(pa.float32())),
        "column_type",
        (FIRST, "embedding", "list<element: float>", "fixed_size_list<item: float>[1]"),
    ),
    "unreadable file": (
        lambda output: replace_object(output, FIRST, bytes(range(256)) * 20),
        "unreadable_file",
        (FIRST,),
    ),
    "empty file": (lambda output: replace_object(output, FIRST, b""), "unreadable_file", (FIRST,)),
    "wrong fingerprint in a footer": (
        lambda output: change_footer(output, FIRST, fingerprint="0" * 16),
        "footer_identity",
        (FIRST, 0, "0" * 16),
    ),
    "wrong digest in a footer": (
        lambda output: change_footer(output, FIRST, shard_digest="0"),
        "footer_totals",
        (FIRST,),
    ),
    "wrong counts in a footer": (
        lambda output: change_footer(output, FIRST, num_frames=1),
        "footer_totals",
        (FIRST,),
    ),
    "missing manifest": (lambda output: replace_object(output, MANIFEST, None), "unsealed", (0, "raypipe embed")),
    "changed etag in a manifest": (
        lambda output: change_manifest(output, lambda manifest: manifest["files"][1].update(etag="x")),
        "sealed_file",
        (SECOND, MANIFEST, "'x'"),
    ),
    "file missing in a manifest": (
        lambda output: change_manifest(output, lambda manifest: manifest["files"].pop()),
        "sealed_file",
        (THIRD, MANIFEST),
    ),
    "file twice in a manifest": (
        lambda output: change_manifest(output, lambda manifest: manifest["files"].append(manifest["files"][0])),
        "repeated_file",
        (MANIFEST,),
    ),
    "manifest of another plan": (
        lambda output: replace_object(output, MANIFEST, output.read("manifests/00001.json")),
        "manifest",
        (MANIFEST,),
    ),
    "manifest that is no JSON": (
        lambda output: replace_object(output, MANIFEST, b"\xff{"),
        "manifest",
        (MANIFEST,),
    ),
    "manifest of no plan": (
        lambda output: output.put_new("manifests/00003.json", b"{}"),
        "lost_plans",
        (2, "plans/00002.parquet"),
    ),
    "lost plan": (lose_plan, "lost_plans", (1, "plans/00000.parquet")),
    "plan of a number far away": (
        lambda output: output.put_new("plans/999999999999999999.parquet", b""),
        "lost_plans",
        (999999999999999997, "plans/00002.parquet"),
    ),
    "unreadable plan": (
        lambda output: replace_object(output, "plans/00000.parquet", b"PAR1"),
        "plan",
        ("plans/00000.parquet",),
    ),
    "fingerprint is not of the settings": (forge_settings, "plan_settings", (1, MARK)),
    "plans of different settings": (other_settings, "plan_fingerprint", (1, 0, MARK)),
    "video twice in a plan": (double_in_plan, "repeated_video", (0, 1, "'5.mp4'")),
}
OFF = {"num_videos": 5, "num_frames": 16, "statuses": {"ok": 6}, "fingerprint": "x", "input": "x", "settings": {}}


@pytest.mark.parametrize("key", OFF)
def test_a_wrong_manifest_is_named(output: Folder, key: str) -> None:
    change_manifest(output, lambda manifest: manifest.update({key: OFF[key]}))
    found = verify(output).violations
    assert len(found) == 1
    assert names_violation(found, "sealed_totals", MANIFEST, key, OFF[key])


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_broken_promise_is_named(output: Folder, kind: str) -> None:
    corrupt, check, data = CORRUPTIONS[kind]
    corrupt(output)
    found = verify(output).violations
    assert names_violation(found, check, *data), found
    assert all("\n" not in violation for violation in found)


def test_an_output_without_a_plan_is_a_violation(folder: Folder) -> None:
    found = verify(folder).violations
    assert len(found) == 1
    assert names_violation(found, "no_plan", folder.uri)


def test_an_unsealed_output_says_what_is_missing(folder: Folder) -> None:
    source, output = places(folder)
    upload(source, {"a.mp4": content()})
    plan_new(source.uri, output)
    found = verify(output).violations
    assert len(found) == 2
    assert names_violation(found, "missing_shards", 0, 1, FIRST, "raypipe embed")
    assert names_violation(found, "unsealed", 0, "raypipe embed")


# Garbage


def held(output: Folder) -> list[object]:
    """Return the content of an output except times and versions, which nothing can check."""
    found: list[object] = []
    for number in plan_numbers(output):
        plan = read_plan(output, number)
        manifest = read_manifest(output, number)
        found += [plan.rows.to_pydict(), plan.fingerprint, plan.settings, plan.input]
        found += [{key: manifest[key] for key in manifest if key not in {"versions", "sealed_at"}}]
    return found


@settings(max_examples=examples(200))
@given(data=st.data())
def test_garbage_is_a_violation_and_never_an_exception(template: Path, tmp_path: Path, data: st.DataObject) -> None:
    scratch = tmp_path / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(template, scratch)
    before = held(Folder(str(scratch)))
    path = data.draw(st.sampled_from(sorted(path for path in scratch.rglob("*.*") if path.is_file())))
    stored = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        for at in data.draw(st.lists(st.integers(0, len(stored) - 1), min_size=1, max_size=4)):
            stored[at] ^= data.draw(st.integers(1, 255))
    else:
        stored = stored[: data.draw(st.integers(0, len(stored) - 1))]
    path.write_bytes(stored)
    result = verify(Folder(str(scratch)))
    assert all("\n" not in violation for violation in result.violations)
    if path.parent.name == "data":
        assert result.violations  # the manifest holds the file's etag
    elif not result.violations:
        assert held(Folder(str(scratch))) == before
