"""Whatever is wrong with a stored output is named, and nothing that is stored makes verify itself fail."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.embed_outputs import (
    DIM,
    PACK,
    SETTINGS,
    commit_statuses,
    content,
    make_output,
    places,
    plan_new,
    planner,
    replace_object,
    upload,
    video,
)

from raypipe import schema
from raypipe.embed.verify import verify
from raypipe.sealed import plan as plans
from raypipe.sealed.plan import Plan, plan_numbers, put_plan, read_plan
from raypipe.sealed.seal import read_manifest
from raypipe.storage import Folder

FIRST, SECOND, LAST = "data/00000-000000.parquet", "data/00000-000001.parquet", "data/00001-000000.parquet"
MANIFEST = "manifests/00000.json"
METADATA = b"raypipe"
Change = Callable[[pa.Table], pa.Table]


def read(output: Folder, name: str) -> pa.Table:
    return pq.read_table(io.BytesIO(output.read(name)))


def rewrite(output: Folder, name: str, change: Change) -> None:
    """Change a file's rows, and everything that its footer and its manifest say of them: a forgery."""
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
    """Make the manifest say what the files are now, so that it alone is never the violation."""

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
    """Change the values of a column."""

    def change(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index(name)
        return rows.set_column(at, name, pa.array(value(rows[name].to_pylist()), kind or rows.schema.field(name).type))

    return change


def last_to(value: Any) -> Callable[[list[Any]], list[Any]]:  # noqa: ANN401 - of any column
    return lambda values: [*values[:-1], value(values[-1]) if callable(value) else value]


# What is right


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


# What is wrong


def broken_row(name: str, value: object, kind: pa.DataType | None = None) -> Callable[[Folder], None]:
    return lambda output: rewrite(output, FIRST, with_column(name, last_to(value), kind))


def lose_plan(output: Folder) -> None:
    replace_object(output, "plans/00000.parquet", None)


def forge_settings(output: Folder) -> None:
    forged = read_plan(output, 1)
    replace_object(output, "plans/00001.parquet", None)
    put_plan(output, Plan(1, forged.videos, forged.fingerprint, {**SETTINGS, "backbone": "large"}, forged.input))


def other_settings(output: Folder) -> None:
    forged = read_plan(output, 1)
    about = {**SETTINGS, "backbone": "large"}
    replace_object(output, "plans/00001.parquet", None)
    put_plan(output, Plan(1, forged.videos, plans.fingerprint(about), about, forged.input))


def double_in_plan(output: Folder) -> None:
    forged = read_plan(output, 0)
    ids = forged.videos[schema.VIDEO_ID].to_pylist()
    videos = forged.videos.set_column(0, schema.VIDEO_ID, pa.array([ids[0]] * len(ids)))
    replace_object(output, "plans/00000.parquet", None)
    put_plan(output, Plan(0, videos, forged.fingerprint, forged.settings, forged.input))


def copy_over(output: Folder, source: str, target: str) -> None:
    replace_object(output, target, output.read(source))
    reseal(output)


def not_a_number(vectors: list[Any]) -> list[Any]:
    return [[float("nan"), *vectors[0][1:]], *vectors[1:]]


ROWS_DIFFER = r"data/00000-000000.parquet: its \d rows are not the 2 videos that the plan gives this shard\."
CORRUPTIONS: dict[str, tuple[Callable[[Folder], object], str]] = {
    "missing file": (
        lambda output: replace_object(output, SECOND, None),
        r"Plan 0: 1 of 3 shards are missing \(2 videos\), the first is data/00000-000001\.parquet\. Run the same ",
    ),
    "extra shard": (
        lambda output: output.put_new("data/00000-000099.parquet", output.read(FIRST)),
        r"data/00000-000099\.parquet is no shard of its plan\.",
    ),
    "file of no plan": (
        lambda output: output.put_new("data/00007-000000.parquet", output.read(FIRST)),
        r"data/00007-000000\.parquet belongs to no plan\.",
    ),
    "foreign name": (
        lambda output: output.put_new("data/part-0.parquet", output.read(FIRST)),
        r"data/part-0\.parquet belongs to no plan\.",
    ),
    "copy of another shard": (
        lambda output: copy_over(output, SECOND, FIRST),
        r"data/00000-000000\.parquet says it is shard 1 of plan 0, ",
    ),
    "copy of another plan's shard": (
        lambda output: copy_over(output, LAST, FIRST),
        r"data/00000-000000\.parquet says it is shard 0 of plan 1, ",
    ),
    "row dropped": (lambda output: rewrite(output, FIRST, lambda rows: rows.slice(1)), ROWS_DIFFER),
    "row doubled": (
        lambda output: rewrite(output, FIRST, lambda rows: pa.concat_tables([rows, rows.slice(0, 1)])),
        ROWS_DIFFER,
    ),
    "rows in another order": (lambda output: rewrite(output, FIRST, lambda rows: rows.take([1, 0])), ROWS_DIFFER),
    "another etag": (broken_row(schema.ETAG, "other"), ROWS_DIFFER),
    "another size": (broken_row(schema.SIZE_BYTES, 7), ROWS_DIFFER),
    "another id": (broken_row(schema.VIDEO_ID, "other"), ROWS_DIFFER),
    "id is null": (broken_row(schema.VIDEO_ID, None), r"data/00000-000000\.parquet has rows that lack their video_id"),
    "status is null": (broken_row(schema.STATUS, None), r"has rows that lack their status"),
    "frames are null": (broken_row(schema.FRAME_EMBEDDINGS, None), r"has rows that lack their frame_embeddings"),
    "wrong generation": (broken_row(schema.GENERATION, 5), r"its rows are not all of generation 0\."),
    "unknown status": (broken_row(schema.STATUS, "fine"), r"unknown statuses \['fine'\]\."),
    "status without its frames": (
        broken_row(schema.STATUS, "timeout"),
        r"'\d\.mp4' has \(3, 3, 3\) frames, times and ",
    ),
    "no embedding": (broken_row(schema.EMBEDDING, None), r"which do not fit together or its status"),
    "fewer frames than it says": (broken_row(schema.NUM_FRAMES, 4), r"'\d\.mp4' has \(4, 3, 3\) frames, times and "),
    "fewer vectors": (broken_row(schema.FRAME_EMBEDDINGS, lambda old: old[:2]), r"'\d\.mp4' has \(3, 3, 2\) frames"),
    "fewer times": (broken_row(schema.FRAME_PTS_SECONDS, [0.0]), r"'\d\.mp4' has \(3, 1, 3\) frames"),
    "negative frames": (broken_row(schema.NUM_FRAMES, -3), r"'\d\.mp4' has \(-3, 3, 3\) frames"),
    "NaN in a vector": (broken_row(schema.FRAME_EMBEDDINGS, not_a_number), r"'\d\.mp4' has a vector or a time that "),
    "null in a vector": (
        broken_row(schema.FRAME_EMBEDDINGS, lambda old: [[None, *old[0][1:]], *old[1:]]),
        r"'\d\.mp4' has a vector or a time that is not finite",
    ),
    "null for a vector": (
        broken_row(schema.FRAME_EMBEDDINGS, lambda old: [None, *old[1:]]),
        r"'\d\.mp4' has a vector or a time that is not finite",
    ),
    "NaN in an embedding": (
        broken_row(schema.EMBEDDING, lambda old: [float("nan"), *old[1:]]),
        r"'\d\.mp4' has a vector or a time that is not finite",
    ),
    "a time that is none": (
        broken_row(schema.FRAME_PTS_SECONDS, [0.0, None, float("nan")]),
        r"'\d\.mp4' has a vector or a time that is not finite",
    ),
    "embedding is not normalised": (
        broken_row(schema.EMBEDDING, lambda old: [2 * number for number in old]),
        r"'\d\.mp4' has an embedding of length 2\.0000, not 1\.",
    ),
    "embedding is zero": (broken_row(schema.EMBEDDING, [0.0] * DIM), r"has an embedding of length 0\.0000, not 1\."),
    "embedding is not the mean": (
        broken_row(schema.EMBEDDING, lambda old: [-number for number in old]),
        r"'\d\.mp4' has an embedding that is not the mean of its frames\.",
    ),
    "missing column": (
        lambda output: rewrite(output, FIRST, lambda rows: rows.drop_columns([schema.CODEC, schema.STATUS])),
        r"data/00000-000000\.parquet lacks the columns codec, status\.",
    ),
    "column of another type": (
        broken_row(schema.NUM_FRAMES, 3, pa.int64()),
        r"data/00000-000000\.parquet has int64 in its column num_frames, not int32\.",
    ),
    "embedding of another type": (
        broken_row(schema.EMBEDDING, [1.0] * DIM, pa.list_(pa.float32())),
        r"data/00000-000000\.parquet has list<.*float> in its column embedding, not fixed_size_list",
    ),
    "unreadable file": (
        lambda output: replace_object(output, FIRST, bytes(range(256)) * 20),
        r"data/00000-000000\.parquet cannot be read: .*is not a file of raypipe",
    ),
    "empty file": (lambda output: replace_object(output, FIRST, b""), r"data/00000-000000\.parquet cannot be read: "),
    "wrong fingerprint in a footer": (
        lambda output: change_footer(output, FIRST, fingerprint="0" * 16),
        r"data/00000-000000\.parquet says it is shard 0 of plan 0, 0000000000000000\.",
    ),
    "wrong digest in a footer": (
        lambda output: change_footer(output, FIRST, shard_digest="0"),
        r"data/00000-000000\.parquet: its footer's digest and counts are not those of its rows\.",
    ),
    "wrong counts in a footer": (
        lambda output: change_footer(output, FIRST, num_frames=1),
        r"data/00000-000000\.parquet: its footer's digest and counts are not those of its rows\.",
    ),
    "missing manifest": (
        lambda output: replace_object(output, MANIFEST, None),
        r"Plan 0 is not sealed\. Run the same raypipe embed again\.",
    ),
    "changed etag in a manifest": (
        lambda output: change_manifest(output, lambda manifest: manifest["files"][1].update(etag="x")),
        r"data/00000-000001\.parquet is \('.*', \d+, 2\); manifests/00000\.json says \('x', \d+, 2\) ",
    ),
    "file missing in a manifest": (
        lambda output: change_manifest(output, lambda manifest: manifest["files"].pop()),
        r"data/00000-000002\.parquet is \(.*\); manifests/00000\.json says nothing of it",
    ),
    "file twice in a manifest": (
        lambda output: change_manifest(output, lambda manifest: manifest["files"].append(manifest["files"][0])),
        r"manifests/00000\.json names a file twice\.",
    ),
    "manifest of another plan": (
        lambda output: replace_object(output, MANIFEST, output.read("manifests/00001.json")),
        r"manifests/00000\.json is not the manifest of plan 0\.",
    ),
    "manifest that is no JSON": (
        lambda output: replace_object(output, MANIFEST, b"\xff{"),
        r"manifests/00000\.json is not the manifest of plan 0\.",
    ),
    "manifest of no plan": (
        lambda output: output.put_new("manifests/00003.json", b"{}"),
        r"2 plans are lost, the first is plans/00002\.parquet\.",
    ),
    "lost plan": (lose_plan, r"1 plans are lost, the first is plans/00000\.parquet\."),
    "plan of a number far away": (
        lambda output: output.put_new("plans/999999999999999999.parquet", b""),
        r"999999999999999997 plans are lost, the first is plans/00002\.parquet\.",
    ),
    "unreadable plan": (
        lambda output: replace_object(output, "plans/00000.parquet", b"PAR1"),
        r"plans/00000\.parquet is not a plan of raypipe: ",
    ),
    "fingerprint is not of the settings": (forge_settings, r"Plan 1 has the fingerprint \w+, which is not that of its"),
    "plans of different settings": (other_settings, r"Plan 1 has the fingerprint \w+; plan 0 has \w+\."),
    "video twice in a plan": (double_in_plan, r"Plan 0 holds 1 videos twice, the first '\d\.mp4'\."),
}
OFF = {"num_videos": 5, "num_frames": 16, "statuses": {"ok": 6}, "fingerprint": "x", "input": "x", "settings": {}}


@pytest.mark.parametrize("key", OFF)
def test_a_manifest_that_is_off_is_named(output: Folder, key: str) -> None:
    change_manifest(output, lambda manifest: manifest.update({key: OFF[key]}))
    found = verify(output).violations
    assert len(found) == 1
    assert re.match(rf"manifests/00000\.json says {key} .*; the plan and its files hold ", found[0])


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_broken_promise_is_named(output: Folder, kind: str) -> None:
    corrupt, expected = CORRUPTIONS[kind]
    corrupt(output)
    found = verify(output).violations
    assert any(re.search(expected, violation) for violation in found), found
    assert all("\n" not in violation for violation in found)


def test_an_output_without_a_plan_is_a_violation(folder: Folder) -> None:
    assert verify(folder).violations == [f"{folder} holds no plan."]


def test_an_unsealed_output_says_what_is_missing(folder: Folder) -> None:
    source, output = places(folder)
    upload(source, {"a.mp4": content()})
    plan_new(source.uri, output)
    assert verify(output).violations == [
        f"Plan 0: 1 of 1 shards are missing (1 videos), the first is {FIRST}. Run the same raypipe embed again.",
        "Plan 0 is not sealed. Run the same raypipe embed again.",
    ]


# Garbage


def held(output: Folder) -> list[object]:
    """What an output says, but for the times and versions that nothing can check."""
    found: list[object] = []
    for number in plan_numbers(output):
        plan = read_plan(output, number)
        manifest = read_manifest(output, number)
        found += [plan.videos.to_pydict(), plan.fingerprint, plan.settings, plan.input]
        found += [{key: manifest[key] for key in manifest if key not in {"versions", "sealed_at"}}]
    return found


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        assert result.violations  # the manifest knows the file's etag
    elif not result.violations:
        assert held(Folder(str(scratch))) == before
