"""Plans are read back as stored, numbered once, and all have one fingerprint."""

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import schema
from raypipe.dataset import plan as plans
from raypipe.dataset.plan import (
    Plan,
    PlannedVideo,
    check_fingerprint,
    fingerprint,
    parse_data_name,
    put_plan,
    read_plan,
)
from raypipe.errors import CommitError, FingerprintError
from raypipe.jobs.embed.inputs import pack
from raypipe.storage import Folder
from support.embed_outputs import MARK, SETTINGS, video
from support.properties import examples

GIB = 1024**3
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
VIDEOS = st.lists(
    st.builds(PlannedVideo, NAMES, NAMES, NAMES, st.integers(0, 2 * GIB) | st.integers(0, 3)),
    max_size=40,
    unique_by=lambda one: (one.video_uri, one.etag),
)
QUICK = settings(max_examples=examples(150))


def packed(*videos: PlannedVideo) -> pa.Table:
    return pack(videos, max_videos=2, max_frames=100, frames_per_video=1, slots=1)


def plan(number: int = 0, *videos: PlannedVideo, about: Mapping[str, Any] = SETTINGS) -> Plan:
    return Plan(number, packed(*videos or [video()]), fingerprint(about), about, "s3://nowhere/")


@settings(QUICK, max_examples=examples(10))
@given(videos=VIDEOS.filter(len), settings_=st.dictionaries(NAMES, st.none() | st.booleans() | st.integers() | NAMES))
def test_a_plan_is_read_as_it_was_stored(folder: Folder, videos: list[PlannedVideo], settings_: dict[str, Any]) -> None:
    number = len(plans.plan_numbers(folder))
    stored = replace(plan(number, *videos, about=settings_), input="s3://a bucket/ü*.mp4")
    assert put_plan(folder, stored)
    found = read_plan(folder, number)
    assert found.rows.equals(stored.rows)
    assert found.rows.schema == schema.PLAN_SCHEMA
    assert (found.number, found.fingerprint, found.settings, found.input) == (
        number,
        stored.fingerprint,
        settings_,
        "s3://a bucket/ü*.mp4",
    )


def test_a_plan_keeps_the_columns_that_its_job_added(folder: Folder) -> None:
    rows = packed(video("a"), video("b"))
    rows = rows.add_column(0, "file", pa.array(["x", "y"]))
    assert put_plan(folder, Plan(0, rows, MARK, SETTINGS, ""))
    found = read_plan(folder, 0).rows
    assert found.column_names == [*schema.PLAN_SCHEMA.names, "file"]
    assert found.select(rows.column_names).equals(rows)


def test_a_plan_number_is_used_once(folder: Folder) -> None:
    assert put_plan(folder, plan(0, video("first")))
    assert not put_plan(folder, plan(0, video("second")))
    assert put_plan(folder, plan(1, video("second")))
    assert plans.plan_numbers(folder) == [0, 1]
    assert read_plan(folder, 0).rows[schema.VIDEO_ID].to_pylist() == ["first"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@QUICK
@given(tree=st.dictionaries(st.text(max_size=5), JSON, max_size=5))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(tree: dict[str, Any]) -> None:
    def turned(value: object) -> object:
        return {key: turned(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    assert fingerprint({key: turned(tree[key]) for key in reversed(tree)}) == fingerprint(tree)


def are_the_same(one: object, other: object) -> bool:
    """Return whether two settings are the same. 1, 1.0 and True are equal in Python but different settings."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(are_the_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(are_the_same, one, other))
    return repr(one) == repr(other)


@QUICK
@given(tree=st.dictionaries(st.text(max_size=5), JSON, max_size=5), key=st.text(max_size=5), value=JSON)
def test_any_change_changes_the_fingerprint(tree: dict[str, object], key: str, value: object) -> None:
    changed = {**tree, key: value}
    assert (fingerprint(changed) == fingerprint(tree)) == are_the_same(changed, tree)
    assert fingerprint({name: changed[name] for name in changed if name != key}) != fingerprint(changed)


def test_other_settings_are_refused_and_named() -> None:
    check_fingerprint(plan(), {key: SETTINGS[key] for key in sorted(SETTINGS)})
    same = {key: SETTINGS[key] for key in ("format", "vectors")}
    with pytest.raises(FingerprintError) as caught:
        check_fingerprint(plan(), {**same, "backbone": "large", "dtype": "float32"})
    error = caught.value
    sampling = {"sampling.mode": "uniform", "sampling.num_frames": 3}
    assert error.key == "backbone"
    assert error.expected == {"backbone": "tiny", "dtype": None, **sampling}
    assert error.value == {"backbone": "large", "dtype": "float32", **dict.fromkeys(sampling)}
    named = [str(error).index(word) for word in ("backbone", "tiny", "large", "dtype", "float32", "sampling.mode")]
    assert named == sorted(named)
    assert caught.value.exit_code == 2


@QUICK
@given(number=st.integers(0, 10**9), shard=st.integers(0, 10**9))
def test_the_name_of_a_shards_file_identifies_it(number: int, shard: int) -> None:
    assert parse_data_name(plans.data_name(number, shard)) == (number, shard)


@pytest.mark.parametrize(
    "name",
    [
        "data/0-0.parquet",
        "data/00000-000000.parquet.tmp",
        "x/data/00000-000000.parquet",
        "data/000001-000000.parquet",  # a second spelling of plan 1
        "data/00000-0000000.parquet",
        "data/\u0660\u0660\u0660\u0660\u0660-000000.parquet",  # digits of another script
        f"data/{'9' * 5000}-000000.parquet",
        "data/00000-000000.parquet\n",
    ],
)
def test_a_file_with_another_name_is_ignored(name: str) -> None:
    assert parse_data_name(name) is None


def test_files_with_other_names_are_not_plans(folder: Folder) -> None:
    for name in (
        "000001.parquet",
        "x.parquet",
        "00002.parquet.bak",
        "\u0660\u0660\u0660\u0660\u0663.parquet",
        "old/00004.parquet",
    ):
        assert folder.put_new(f"plans/{name}", b"x")
    assert put_plan(folder, plan(5))
    assert plans.plan_numbers(folder) == [5]


def parquet(table: pa.Table, metadata: bytes | None = None) -> bytes:
    file = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({b"raypipe": metadata} if metadata is not None else None), file)
    return file.getvalue()


ABOUT = b'{"fingerprint": "f", "settings": {}, "input": "i"}'
GOOD = packed(video("a"), video("b"), video("c"))


def with_column(name: str, values: list[Any]) -> pa.Table:
    at = schema.PLAN_SCHEMA.get_field_index(name)
    return GOOD.set_column(at, name, pa.array(values, schema.PLAN_SCHEMA.field(name).type))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"PAR1" + b"\0" * 100 + b"PAR1",
        parquet(GOOD, ABOUT)[:-20],
        parquet(GOOD),
        parquet(GOOD, b"{"),
        parquet(GOOD, b"[]"),
        parquet(GOOD, b"7"),
        parquet(GOOD, b"{}"),
        parquet(GOOD, b"[" * 100_000),
        parquet(GOOD, b'{"fingerprint": "f", "settings": [], "input": "i"}'),
        parquet(GOOD, b'{"fingerprint": 1, "settings": {}, "input": "i"}'),
        parquet(GOOD.slice(0, 0), ABOUT),
        parquet(GOOD.drop_columns([schema.ETAG]), ABOUT),
        parquet(pa.table({"x": [1]}), ABOUT),
        parquet(with_column(schema.VIDEO_URI, ["a", None, "c"]), ABOUT),
        parquet(with_column(schema.SHARD, [0, 0, 2]), ABOUT),
        parquet(with_column(schema.SHARD, [1, 1, 2]), ABOUT),
        parquet(with_column(schema.SHARD, [0, 1, 0]), ABOUT),
        parquet(with_column(schema.SHARD, [0, 1, 2**31 - 1]), ABOUT),
    ],
    ids=lambda data: str(data)[-20:],
)
def test_a_foreign_file_under_a_plans_name_is_named(folder: Folder, data: bytes) -> None:
    assert folder.put_new("plans/00000.parquet", data)
    with pytest.raises(CommitError) as caught:
        read_plan(folder, 0)
    assert caught.value.key == f"{folder.uri}/plans/00000.parquet"
    assert caught.value.key in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_valid_plan_file_is_accepted(folder: Folder) -> None:
    assert folder.put_new("plans/00000.parquet", parquet(GOOD, ABOUT))
    assert read_plan(folder, 0).rows.equals(GOOD)
