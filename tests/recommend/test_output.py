"""Shards are committed once, and an output is of one index, history and ranking."""

import json
from typing import Any

import pyarrow as pa
import pytest

from raypipe.errors import CommitError, FingerprintError, RaypipeError
from raypipe.jobs.recommend import output as stored
from raypipe.jobs.recommend.output import Run, ShardCounts
from raypipe.jobs.recommend.unknown import UnknownIds
from raypipe.storage import Folder
from support.embed_outputs import replace_object

SETTINGS: dict[str, Any] = {
    "job": "recommend",
    "index": "s3://index",
    "index_version": "20240531T120000-0a1b2c3d",
    "ranking": {"top_k": 20, "diversity": 0.0},
}
RUN = Run(SETTINGS, 5, 3)


def put(
    output: Folder, shard: int, ids: list[str], *, fingerprint: str = RUN.fingerprint, counts_unknown: bool = True
) -> bool:
    rows = pa.table({"user_id": ids})
    unknown = UnknownIds.of(("x", f"only {shard}"), (f"only {shard}",)) if counts_unknown else None
    counts = ShardCounts({"ok": len(ids)}, unknown)
    return stored.put_shard(output, rows, shard=shard, fingerprint=fingerprint, counts=counts)


def test_a_run_is_what_came_first(folder: Folder) -> None:
    assert stored.read_run(folder) is None
    assert stored.put_run(folder, RUN) == RUN
    assert stored.read_run(folder) == RUN
    later = Run(SETTINGS | {"index_version": "20240601T120000-0a1b2c3d"}, 5, 3)
    assert stored.put_run(folder, later) == RUN, "the version of the first driver stays"
    changes: tuple[tuple[dict[str, Any], tuple[str, object, object]], ...] = (
        ({"index": "s3://other"}, ("index", "s3://index", "s3://other")),
        ({"ranking": {"top_k": 7, "diversity": 0.0}}, ("ranking.top_k", 20, 7)),
    )
    for change, (key, before, after) in changes:
        with pytest.raises(FingerprintError) as caught:
            stored.put_run(folder, Run(SETTINGS | change, 5, 3))
        error = caught.value
        assert (error.key, error.expected, error.value) == (key, before, after)
        for token in (key, before, after):
            assert str(token) in str(error)
        assert "diversity" not in str(error)


def test_a_shard_is_committed_once_and_sealed_when_all_are_there(folder: Folder) -> None:
    stored.put_run(folder, RUN)
    assert put(folder, 0, ["a", "b"])
    assert put(folder, 2, ["e"])
    assert not put(folder, 0, ["a", "b"])
    assert stored.committed_shards(folder) == {0, 2}
    with pytest.raises(RaypipeError):
        stored.seal(folder, RUN, versions={})
    assert stored.read_manifest(folder) is None
    assert put(folder, 1, ["c", "d"])
    manifest = stored.seal(folder, RUN, versions={"ray": "1"})
    assert stored.read_manifest(folder) == manifest
    assert (manifest["num_users"], manifest["counts"]) == (5, {"ok": 5})
    assert UnknownIds.from_json(manifest["unknown"]) == UnknownIds(6, 3, 3, ("only 0", "only 1", "only 2"))
    assert [(file["name"], file["num_rows"]) for file in manifest["files"]] == [
        ("data/000000.parquet", 2),
        ("data/000001.parquet", 2),
        ("data/000002.parquet", 1),
    ]


def test_a_shard_that_did_not_count_unknown_ids_is_sealed(folder: Folder) -> None:
    stored.put_run(folder, RUN)
    for shard, ids in enumerate((["a", "b"], ["c", "d"], ["e"])):
        assert put(folder, shard, ids, counts_unknown=shard != 1)
    manifest = stored.seal(folder, RUN, versions={})
    assert (manifest["counts"], manifest["unknown"]) == ({"ok": 5}, None)
    assert stored.read_manifest(folder) == manifest


def test_a_file_of_something_else_is_refused(folder: Folder) -> None:
    assert put(folder, 0, ["a"], fingerprint="other")
    assert folder.put_new(stored.data_name(1), b"no Parquet")
    assert put(folder, 3, ["a"])
    assert folder.put_new(stored.data_name(2), folder.read(stored.data_name(3)))
    for shard in range(3):
        with pytest.raises(CommitError) as caught:
            put(folder, shard, ["a"])
        assert caught.value.key == folder.child(f"data/00000{shard}.parquet")


def test_rows_that_do_not_add_up_are_not_sealed(folder: Folder) -> None:
    for shard in range(3):
        assert put(folder, shard, ["a"])
    with pytest.raises(CommitError) as caught:
        stored.seal(folder, RUN, versions={})
    assert (caught.value.key, caught.value.value, caught.value.expected) == (folder.uri, 3, 5)
    assert stored.read_manifest(folder) is None


@pytest.mark.parametrize("name", [stored.RUN, stored.MANIFEST])
@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"settings": 1}', b"[" * 100_000])
def test_what_is_not_ours_is_refused(tmp_path_factory: pytest.TempPathFactory, name: str, data: bytes) -> None:
    folder = Folder(str(tmp_path_factory.mktemp("output")))
    assert folder.put_new(name, data)
    read = stored.read_run if name == stored.RUN else stored.read_manifest
    with pytest.raises(CommitError) as caught:
        read(folder)
    assert caught.value.key == folder.child(name)


def test_a_run_whose_settings_were_edited_is_refused(folder: Folder) -> None:
    stored.put_run(folder, RUN)
    edited = json.loads(folder.read(stored.RUN))
    edited["settings"]["ranking"]["top_k"] = 21
    replace_object(folder, stored.RUN, json.dumps(edited).encode())
    with pytest.raises(CommitError) as caught:
        stored.read_run(folder)
    assert caught.value.key == folder.child(stored.RUN)


def test_names_that_are_no_shards_are_not_counted(folder: Folder) -> None:
    for name in ("data/0000001.parquet", "data/1.parquet", "data/000001.parquet.tmp", "data/x", "data/1000000.parquet"):
        assert folder.put_new(name, b"")
    assert stored.committed_shards(folder) == {1_000_000}
