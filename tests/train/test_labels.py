"""Labels are taken verbatim from a table or the folder names; an invalid label is refused with the reason."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe.errors import ConfigError
from raypipe.jobs.train.inputs import folder_labels, read_labels
from raypipe.storage import Folder


def read(folder: Folder, text: str | bytes, *, name: str = "labels.csv", split_column: str = "split") -> pa.Table:
    assert folder.put_new(name, text.encode() if isinstance(text, str) else text)
    return read_labels(folder.child(name), split_column=split_column)


def rows(table: pa.Table) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in table.to_pylist()]


def problem(tmp_path: Path, text: str, *, name: str = "labels.csv") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(Folder(str(tmp_path)), text, name=name)
    assert str(caught.value).isprintable()
    assert str(tmp_path / name) in str(caught.value)
    return caught.value


def test_a_table_is_read_as_it_is_written(folder: Folder) -> None:
    expected = [("007.mp4", "1"), ("b.mp4", "null"), ("b.mp4", "ÄÖ, ü")]
    assert rows(read(folder, 'label,video_id,more\n1,007.mp4,x\nnull,b.mp4,\n"ÄÖ, ü",b.mp4,z\n')) == expected
    lines = '{"video_id": "007.mp4", "label": 1}\n\n{"video_id": "b.mp4", "label": "null"}\n'
    lines += '{"video_id": "b.mp4", "label": "\\u00c4\\u00d6, \\u00fc"}\n'
    assert rows(read(folder, lines, name="labels.jsonl")) == expected
    ids, labels = zip(*expected, strict=True)
    pq.write_table(pa.table({"label": labels, "video_id": ids}), file := pa.BufferOutputStream())
    assert rows(read(folder, file.getvalue().to_pybytes(), name="LABELS.PARQUET")) == expected


def test_a_row_that_says_the_same_twice_counts_once(tmp_path: Path) -> None:
    found = read(Folder(str(tmp_path)), "video_id,label\na,x\nb,y\na,x\na,y\n")
    assert rows(found) == [("a", "x"), ("b", "y"), ("a", "y")]


def test_labels_that_differ_only_in_case_or_spaces_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = read(Folder(str(tmp_path)), "video_id,label\na,Cat\nb,cat \nc,dog\nd,big  dog\ne,big dog\n")
    assert found["label"].to_pylist() == ["Cat", "cat ", "dog", "big  dog", "big dog"]
    assert [("'Cat', 'cat '" in said, "'big  dog', 'big dog'" in said) for said in caplog.messages] == [
        (True, False),
        (False, True),
    ]
    caplog.clear()
    read(Folder(str(tmp_path)), "video_id,label\na,cat\nb,dog\n", name="more.csv")
    assert caplog.messages == []


def test_splits_go_by_several_names(tmp_path: Path) -> None:
    text = "video_id,label,fold\na,x,train\nb,x,validation\nc,x,valid\nd,x,val\ne,x,test\na,y,train\n"
    found = read(Folder(str(tmp_path)), text, split_column="fold")
    assert found.column_names == ["video_id", "label", "split"]
    assert found["split"].to_pylist() == ["train", "validation", "validation", "validation", "test", "train"]


def test_a_column_with_another_name_is_not_a_split(tmp_path: Path) -> None:
    assert read(Folder(str(tmp_path)), "video_id,label,fold\na,x,7\n").column_names == ["video_id", "label"]


@pytest.mark.parametrize(
    ("text", "column", "columns"),
    [
        ("video_id,lable\na,x\n", "label", ("video_id", "lable")),
        ("id,label\na,x\n", "video_id", ("id", "label")),
    ],
)
def test_a_table_without_a_column_is_refused(tmp_path: Path, text: str, column: str, columns: tuple[str, ...]) -> None:
    error = problem(tmp_path, text)
    assert (error.key, error.value, error.expected) == (column, 0, 1)
    assert ", ".join(columns) in str(error)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    assert problem(tmp_path, "video_id,label\n").key == str(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("text", "column", "numbers"),
    [
        ("video_id,label\na,x\nb,\n,y\n", "video_id", ["1", "3"]),
        ("video_id,label\na,x\nb,\nc,\n", "label", ["2", "2"]),
        ("video_id,label,split\na,x,train\nb,x,\n", "split", ["1", "2"]),
    ],
)
def test_rows_without_a_value_are_counted_and_the_first_named(
    tmp_path: Path, text: str, column: str, numbers: list[str]
) -> None:
    error = problem(tmp_path, text)
    assert (error.key, error.value) == (column, None)
    assert re.findall(r"\d+", str(error).replace(str(tmp_path), "")) == numbers


@pytest.mark.parametrize(
    ("text", "key", "value", "choices"),
    [
        ("video_id,label,split\na,x,dev\n", "split", "dev", ("train", "validation", "test")),
        ("video_id,label,split\na,x,train\na,x,val\n", "video_id", "a", ()),
        ("video_id,label,split\na,x,train\na,y,test\n", "video_id", "a", ()),
    ],
)
def test_an_unknown_split_and_two_of_a_video_are_refused(
    tmp_path: Path, text: str, key: str, value: str, choices: tuple[str, ...]
) -> None:
    error = problem(tmp_path, text)
    assert (error.key, error.value, error.choices) == (key, value, choices)


def test_null_in_parquet_is_not_a_label(tmp_path: Path) -> None:
    pq.write_table(pa.table({"video_id": ["a", "b"], "label": ["x", None]}), tmp_path / "labels.parquet")
    with pytest.raises(ConfigError) as caught:
        read_labels(str(tmp_path / "labels.parquet"), split_column="split")
    assert caught.value.key == "label"
    assert re.findall(r"\d+", str(caught.value).replace(str(tmp_path), "")) == ["1", "2"]


def test_a_file_of_another_kind_is_refused_with_the_choices(tmp_path: Path) -> None:
    error = problem(tmp_path, "", name="labels.txt")
    assert (error.key, error.value) == ("labels", str(tmp_path / "labels.txt"))
    assert all(ending in error.remedy for ending in (".parquet", ".csv", ".jsonl"))


def test_a_file_that_cannot_be_read_is_named(folder: Folder) -> None:
    with pytest.raises(ConfigError) as caught:
        read_labels(folder.child("none.csv"), split_column="split")
    assert caught.value.key == folder.child("none.csv")
    with pytest.raises(ConfigError) as caught:
        read(folder, "no parquet", name="broken.parquet")
    assert caught.value.key == folder.child("broken.parquet")


def test_the_folder_of_a_video_is_its_label() -> None:
    ids = pa.chunked_array([["train/Tennis/a.mp4", "Yo Yo/b.mp4"], ["x/y/z/c.mp4"]])
    assert folder_labels(ids).to_pydict() == {"video_id": ids.to_pylist(), "label": ["Tennis", "Yo Yo", "z"]}


@pytest.mark.parametrize("video_id", ["a.mp4", "/a.mp4"])
def test_a_video_in_no_folder_is_named(video_id: str) -> None:
    with pytest.raises(ConfigError) as caught:
        folder_labels(pa.chunked_array([["x/b.mp4", video_id]]))
    assert (caught.value.key, caught.value.value) == ("labels_from", video_id)
    assert "--labels" in caught.value.remedy
