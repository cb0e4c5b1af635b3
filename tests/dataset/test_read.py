"""What training reads: from sealed plans alone, the row that counts of each video."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import schema
from raypipe.dataset.read import read_embeddings, sealed_manifests
from raypipe.errors import CommitError, JobError
from raypipe.storage import Folder
from support.embed_outputs import (
    DIM,
    commit_statuses,
    content,
    embed_all,
    finish,
    places,
    plan_new,
    replace_object,
    upload,
)
from support.properties import examples


def rows(output: Folder, *columns: str) -> list[tuple[object, ...]]:
    found = pa.concat_tables(read_embeddings(output, columns=columns))
    return sorted(tuple(row[name] for name in columns) for row in found.to_pylist())


def test_each_video_has_the_row_of_its_highest_generation(folder: Folder) -> None:
    source, output = places(folder)
    upload(source, {"a.mp4": content(seed=1), "b.mp4": content("crashed"), "c.mp4": content("crashed", seed=1)})
    embed_all(source, output)
    replace_object(source, "a.mp4", content(num_frames=5, seed=2))
    embed_all(source, output)
    upload(source, {"d.mp4": content()})
    plan_new(source.uri, output, retry="all")
    commit_statuses(output, {"c.mp4": "timeout"})
    assert rows(output, "video_id", "generation", "status", "num_frames") == [
        ("a.mp4", 1, "ok", 5),
        ("b.mp4", 2, "ok", 3),
        ("c.mp4", 2, "timeout", 0),
        ("d.mp4", 2, "ok", 3),
    ]
    assert [manifest["plan"] for manifest in sealed_manifests(output)] == [0, 1, 2]


def test_all_columns_are_read_unless_some_are_chosen(output: Folder) -> None:
    assert next(read_embeddings(output)).schema.remove_metadata() == schema.embeddings_schema(DIM)
    for columns in (["embedding", "status"], ["status", "video_id"], ["video_id"], ["num_frames"], []):
        found = list(read_embeddings(output, columns=columns))
        assert [table.column_names for table in found] == [columns] * len(found)
        assert columns == [] or sum(table.num_rows for table in found) == 7


def test_an_unsealed_output_is_refused(folder: Folder) -> None:
    source, output = places(folder)
    upload(source, {"a.mp4": content()})
    embed_all(source, output)
    upload(source, {"b.mp4": content(seed=1)})
    plan_new(source.uri, output)
    finish(output, sealed=False)
    with pytest.raises(JobError) as caught:
        next(read_embeddings(output))
    assert (caught.value.key, caught.value.value) == (output.uri, [1])
    assert "raypipe embed" in caught.value.remedy


def test_an_empty_folder_is_refused(folder: Folder) -> None:
    with pytest.raises(JobError) as caught:
        next(read_embeddings(folder))
    assert (caught.value.key, caught.value.value) == (folder.uri, None)
    assert "raypipe embed" in caught.value.remedy
    assert "--output" in caught.value.remedy


@pytest.mark.parametrize(
    ("number", "lost"),
    [
        (0, ["plans/00000.parquet"]),
        (1, ["plans/00001.parquet"]),
        (0, ["plans/00000.parquet", "manifests/00000.json"]),  # only the gap in the numbers reveals it
    ],
)
def test_an_output_that_lost_a_plan_is_refused(output: Folder, number: int, lost: list[str]) -> None:
    for name in lost:
        replace_object(output, name, None)
    with pytest.raises(JobError) as caught:
        next(read_embeddings(output))
    assert (caught.value.key, caught.value.value) == (output.uri, [1 - number])
    assert "raypipe verify" in caught.value.remedy


def test_an_invalid_manifest_is_refused(output: Folder) -> None:
    replace_object(output, "manifests/00001.json", b"{}")
    with pytest.raises(CommitError) as caught:
        next(read_embeddings(output))
    assert caught.value.key == output.child("manifests/00001.json")


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=examples(60))
def test_no_changed_byte_of_a_page_becomes_another_row(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    source, output = places(Folder(str(tmp_path_factory.mktemp("output"))))
    upload(source, {"a.mp4": content(seed=1), "b.mp4": content(seed=2)})
    embed_all(source, output)
    expected = pa.concat_tables(read_embeddings(output)).remove_column(0)
    name = "data/00000-000000.parquet"
    whole = bytearray(output.read(name))
    footer_bytes = int.from_bytes(whole[-8:-4], "little")
    whole[int(place * (len(whole) - 8 - footer_bytes))] ^= 1 << bit
    replace_object(output, name, bytes(whole))
    try:
        found = pa.concat_tables(read_embeddings(output)).remove_column(0)
    except CommitError as error:
        assert error.key == output.child(name)  # noqa: PT017 - a successful read is fine too
    else:
        assert found.replace_schema_metadata() == expected.replace_schema_metadata()
