"""A plan is sealed only when every shard is committed and holds what the plan says."""

from collections.abc import Callable

import pytest

from raypipe.dataset.commit import missing_shards, read_manifest, seal, unsealed_plans
from raypipe.dataset.plan import StoredPlans, data_name
from raypipe.errors import CommitError
from raypipe.storage import Folder
from support.embed_outputs import content, finish, places, plan_new, replace_object, upload

FIRST, SECOND = "data/00000-000000.parquet", "data/00000-000001.parquet"
MANIFEST = "manifests/00000.json"


def test_a_plan_is_sealed_when_nothing_is_missing(folder: Folder) -> None:
    source, output = places(folder)
    upload(source, {f"{number}.mp4": content(seed=number) for number in range(5)})
    plan_new(source.uri, output)
    assert not seal(StoredPlans(output), 0, versions={})
    finish(output, sealed=False)
    assert unsealed_plans(output) == [0]
    assert seal(StoredPlans(output), 0, versions={"raypipe": "1"})
    assert unsealed_plans(output) == []
    manifest = read_manifest(output, 0)
    assert (manifest["num_videos"], manifest["num_frames"], manifest["statuses"]) == (5, 15, {"ok": 5})
    assert [file["num_rows"] for file in manifest["files"]] == [2, 2, 1]
    before = output.stat(MANIFEST)
    assert seal(StoredPlans(output), 0, versions={"raypipe": "2"})  # what another driver does
    assert output.stat(MANIFEST) == before


@pytest.mark.parametrize("missing", [[0], [1], [2], [0, 2], [1, 2], [0, 1, 2]], ids=str)
def test_any_missing_shard_is_found_and_prevents_the_seal(output: Folder, missing: list[int]) -> None:
    replace_object(output, MANIFEST, None)
    for shard in missing:
        replace_object(output, data_name(0, shard), None)
    assert [rows["shard"][0].as_py() for rows in missing_shards(StoredPlans(output), [0])] == missing
    assert not seal(StoredPlans(output), 0, versions={})
    assert unsealed_plans(output) == [0]


@pytest.mark.parametrize(
    ("corrupt", "key", "expected", "value"),
    [
        (lambda output: replace_object(output, FIRST, b"hello"), FIRST, None, None),
        (lambda output: replace_object(output, FIRST, output.read(SECOND)), FIRST, (0, 0), (0, 1)),  # plan and shard
        (
            lambda output: output.put_new("data/00000-000099.parquet", b""),
            "plans/00000.parquet",
            (6, 3),  # videos and shards
            (6, 4),
        ),
    ],
)
def test_a_broken_file_is_not_sealed(
    output: Folder, corrupt: Callable[[Folder], object], key: str, expected: object, value: object
) -> None:
    replace_object(output, MANIFEST, None)
    corrupt(output)
    with pytest.raises(CommitError) as caught:
        seal(StoredPlans(output), 0, versions={})
    assert caught.value.key == output.child(key)
    fields = (caught.value.expected, caught.value.value)
    assert tuple(field and field[:2] for field in fields) == (expected, value)
    assert unsealed_plans(output) == [0]


def test_a_stray_file_does_not_stand_in_for_a_missing_shard(output: Folder) -> None:
    replace_object(output, MANIFEST, None)
    replace_object(output, SECOND, None)
    output.put_new("data/00000-000099.parquet", b"")
    assert not seal(StoredPlans(output), 0, versions={})
