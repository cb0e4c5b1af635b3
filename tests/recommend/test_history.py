"""A file of histories is streamed in blocks of equal length, with the same rows from every format."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.errors import ConfigError
from raypipe.storage import Folder
from raypipe.tables.history import HISTORY, USER_ID, HistoryFile, User, parse
from support.embed_outputs import replace_object
from support.properties import examples

Rows = list[tuple[str, list[str]]]
texts = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), min_size=1)


def encoded(rows: Rows, ending: str, *, row_group_size: int = 3) -> bytes:
    names = [user for user, _ in rows], [history for _, history in rows]
    if ending == ".parquet":
        kinds = pa.array(names[0], pa.string()), pa.array(names[1], pa.list_(pa.string()))
        file = pa.BufferOutputStream()
        pq.write_table(pa.table(dict(zip((USER_ID, HISTORY), kinds, strict=True))), file, row_group_size=row_group_size)
        return file.getvalue().to_pybytes()
    if ending == ".jsonl":
        return "\n\n".join(json.dumps({USER_ID: user, HISTORY: history}) for user, history in rows).encode()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["more", HISTORY, USER_ID])
    writer.writerows(["x", json.dumps(history), user] for user, history in rows)
    return text.getvalue().encode()


def users_of(file: HistoryFile, num_rows: int, **options: Any) -> list[list[User]]:  # noqa: ANN401
    return [list(parse(block)) for block in file.blocks(num_rows, **options)]


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_every_format_gives_the_same_rows(folder: Folder, ending: str) -> None:
    rows = [(f"user {number}", [f"{name}/ü, {number}.mp4" for name in "ab"[: number % 3]]) for number in range(11)]
    name = f"history{ending.upper()}"
    assert folder.put_new(name, encoded(rows, ending))
    file = HistoryFile.find(folder, name)
    blocks = users_of(file, 4)
    assert [len(block) for block in blocks] == [4, 4, 3]
    assert [user for block in blocks for user in block] == [User(user, tuple(history)) for user, history in rows]
    ids = [user.user_id for block in users_of(file, 100, only_ids=True) for user in block]
    assert ids == [user for user, _ in rows]


def test_a_mark_blank_lines_and_spaces_in_the_header_are_accepted(folder: Folder) -> None:
    assert folder.put_new("history.csv", "\ufeff\nuser_id, history\n\nu1,a b\n".encode())
    (users,) = users_of(HistoryFile.find(folder, "history.csv"), 10)
    assert users == [User("u1", ("a", "b"))]


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
@settings(max_examples=examples(20))
@given(
    rows=st.lists(st.tuples(texts, st.lists(texts, max_size=3)), max_size=9),
    num_rows=st.integers(1, 10),
    row_group_size=st.integers(1, 10),
)
def test_no_row_is_lost_or_changed(
    tmp_path_factory: pytest.TempPathFactory, ending: str, rows: Rows, num_rows: int, row_group_size: int
) -> None:
    path = tmp_path_factory.mktemp("history") / f"h{ending}"
    path.write_bytes(encoded(rows, ending, row_group_size=row_group_size))
    blocks = users_of(HistoryFile.find(Folder(str(path.parent)), path.name), num_rows)
    assert [user for block in blocks for user in block] == [User(user, tuple(history)) for user, history in rows]
    assert all(len(block) == num_rows for block in blocks[:-1])


def written(tmp_path: Path, name: str, data: bytes) -> HistoryFile:
    (tmp_path / name).write_bytes(data)
    return HistoryFile.find(Folder(str(tmp_path)), name)


def test_a_bad_row_of_csv_is_a_separate_error(tmp_path: Path) -> None:
    data = b'user_id,history\na,x y\nb\nc,x,y\n\nd,\xff\n"e\nf",x\n'
    found = [user for block in users_of(written(tmp_path, "h.csv", data), 3) for user in block]
    assert found[0] == User("a", ("x", "y"))
    assert [(user.user_id, user.video_ids, set(re.findall(r"\d+|UTF-8", user.error or ""))) for user in found[1:]] == [
        ("b", (), {"3", "1", "2"}),  # the line, its number of fields, the header's number of fields
        ("c", (), {"4", "3", "2"}),
        ("d", (), {"6", "UTF-8"}),
        (None, (), {"7"}),  # the line where the row starts
    ]


def test_a_bad_line_of_json_is_an_error_with_its_number(tmp_path: Path) -> None:
    data = b'{"user_id": "a", "history": ["x"]}\n\n{"user_id": "b"}\n{"user_id": "c", "user_id": "d"}\n{"user_id": "e'
    found = [user for block in users_of(written(tmp_path, "h.jsonl", data), 2) for user in block]
    assert found[0] == User("a", ("x",))
    assert [re.search(r"\d+", user.error or "")[0] for user in found[1:]] == ["3", "4", "5"]


def test_a_long_history_is_one_field(tmp_path: Path) -> None:
    history = [f"{number:06d}.mp4" for number in range(30_000)]
    file = written(tmp_path, "h.csv", encoded([("a", history)], ".csv"))
    assert users_of(file, 1) == [[User("a", tuple(history))]]


@pytest.mark.parametrize(
    ("name", "data", "wrong", "columns"),
    [
        ("h.csv", b"user,history\n", ("user_id", 0, 1), "user, history"),
        ("h.csv", b"", ("user_id", 0, 1), ""),
        ("h.csv", b"user_id,history,history\n", ("history", 2, 1), "user_id, history, history"),
        ("h.parquet", encoded([], ".csv"), None, ""),
        ("h.csv", b'user_id,history\na,x\nb,"y\nc,z\n', None, "3"),  # the quote swallows the other users
        ("h.csv", b'user_id,history\na,x\nb,"y\nc,"z"\n', None, "3"),
        ("h.csv", "user_id,history\na,x\n".encode("utf-16"), None, "1"),
    ],
)
def test_an_invalid_history_file_is_one_line(
    tmp_path: Path, name: str, data: bytes, wrong: tuple[str, int, int] | None, columns: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        users_of(written(tmp_path, name, data), 1)
    error, uri = caught.value, str(tmp_path / name)
    assert (error.key, error.value, error.expected) == (wrong or (uri, None, None))
    assert uri in str(error)
    assert columns in str(error)
    assert str(error).isprintable()


def test_a_file_that_changes_is_refused(folder: Folder) -> None:
    assert folder.put_new("h.csv", b"user_id,history\na,x\nb,y\n")
    file = HistoryFile.find(folder, "h.csv")
    blocks = file.blocks(1)
    assert list(parse(next(blocks))) == [User("a", ("x",))]
    replace_object(folder, "h.csv", b"user_id,history\na,x\nb,other\n")
    now = HistoryFile.find(folder, "h.csv").stored.etag
    for rest in (blocks, file.blocks(1)):
        with pytest.raises(ConfigError) as caught:
            list(rest)
        error = caught.value
        assert (error.key, error.value, error.expected) == (folder.child("h.csv"), now, file.stored.etag)
    replace_object(folder, "h.csv", None)
    with pytest.raises(ConfigError) as caught:
        HistoryFile.find(folder, "h.csv")
    assert all(ending in caught.value.remedy for ending in (".parquet", ".csv", ".jsonl"))
    assert (caught.value.key, caught.value.value) == ("history", folder.child("h.csv"))
