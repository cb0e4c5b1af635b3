"""Every row of a history is one user, or one error that says what is wrong."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.tables.history import (
    HISTORY,
    IS_REPEATED,
    LINE,
    LINE_NUMBER,
    USER_ID,
    User,
    other_readings,
    parse,
    parse_history,
    repeated_rows,
)


def user_of(line: bytes) -> User:
    """Parse the line as the only one of a block."""
    (user,) = parse(pa.table({LINE_NUMBER: [12], LINE: pa.array([line], pa.large_binary())}))
    return user


def columns_in(error: str) -> list[str]:
    """Return the columns that an error names."""
    return [name for name in (USER_ID, HISTORY) if name in error]


ids = st.text(st.characters(codec="utf-8"), min_size=1)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (None, ()),
        ("", ()),
        ("  ", ()),
        ("[]", ()),
        ([], ()),
        ("a b/c.mp4\td", ("a", "b/c.mp4", "d")),
        ("a b | c||d", ("a b", "c", "d")),
        ("a|", ("a",)),
        ('["a b", "c|d", 7]', ("a b", "c|d", "7")),
        (["a", 7, "a"], ("a", "7", "a")),
        ("007", ("007",)),
    ],
)
def test_a_history_is_a_list_or_a_text(history: Any, expected: tuple[str, ...]) -> None:  # noqa: ANN401
    assert parse_history(history) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b,c", {("a,b,c",), ("a", "b", "c")}),
        ("a;b", {("a;b",), ("a", "b")}),
        ("a b.mp4", {("a b.mp4",), ("a", "b.mp4")}),
        ("a, b|c", {("a, b|c",), ("a", "b|c"), ("a, b", "c"), ("a,", "b|c")}),
        ('["a,b"]', set()),
        (" ", set()),
    ],
)
def test_a_text_may_mean_something_else(text: str, expected: set[tuple[str, ...]]) -> None:
    assert set(other_readings(text)) == expected


@given(st.lists(ids))
def test_a_json_array_holds_any_ids(video_ids: list[str]) -> None:
    assert parse_history(json.dumps(video_ids)) == parse_history(video_ids) == tuple(video_ids)


@pytest.mark.parametrize(
    ("history", "kind", "shown"),
    [
        ('["a"', ValueError, "'[\"a\"'"),
        ("[" * 100_000, ValueError, "'[[["),
        ({"a": 1}, TypeError, "{'a': 1}"),
        (7, TypeError, "7"),
        (["a", None], ValueError, "None"),
        ([1.5], ValueError, "1.5"),
        ([True], ValueError, "True"),
        ('["\\ud800"]', ValueError, "'\\ud800'"),
        ([["a" * 1000]], ValueError, "['aaa"),
    ],
)
def test_an_invalid_history_is_an_error_of_its_row(history: Any, kind: type[Exception], shown: str) -> None:  # noqa: ANN401
    with pytest.raises(kind):
        parse_history(history)
    line = json.dumps({USER_ID: "u", HISTORY: history}).encode()
    user = user_of(line)
    assert user.error is not None
    assert (user.user_id, user.video_ids) == ("u", ())
    assert HISTORY in user.error
    assert shown in user.error
    assert len(user.error) < 250
    assert user.error.isprintable()


@pytest.mark.parametrize(
    ("line", "user_id", "columns", "shown"),
    [
        (b"{", None, [USER_ID, HISTORY], "12"),
        (b"[1]", None, [USER_ID, HISTORY], "[1]"),
        (b"\xff", None, [USER_ID, HISTORY], "12"),
        (b'{"user_id": "u", "history": [], "history": ["a"]}', None, [USER_ID, HISTORY], "'history'"),
        (b"{}", None, [HISTORY], ""),
        (b'{"history": []}', None, [USER_ID], ""),
        (b'{"user_id": "", "history": []}', None, [USER_ID], ""),
        (b'{"user_id": null, "history": []}', None, [USER_ID], ""),
        (b'{"user_id": 1.5, "history": []}', None, [USER_ID], "1.5"),
        (b'{"user_id": "\\ud800", "history": []}', None, [USER_ID], "'\\ud800'"),
        (b'{"user_id": "u"}', "u", [HISTORY], ""),
    ],
)
def test_a_line_of_json_without_a_user_is_an_error(
    line: bytes, user_id: str | None, columns: list[str], shown: str
) -> None:
    user = user_of(line)
    assert user.error
    assert (user.user_id, user.video_ids) == (user_id, ())
    assert columns_in(user.error) == columns
    assert shown in user.error


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'\xef\xbb\xbf{"user_id": 7, "history": ["a"]}', User("7", ("a",))),
        (b'{"user_id": "u", "history": null}', User("u")),
    ],
)
def test_a_line_of_json_is_a_user(line: bytes, expected: User) -> None:
    assert user_of(line) == expected


@pytest.mark.parametrize("kind", [pa.int64(), pa.int32()])
def test_numbers_of_parquet_are_ids(kind: pa.DataType) -> None:
    block = pa.table({USER_ID: pa.array([1, None], kind), HISTORY: pa.array([[7, 8], [9]], pa.list_(kind))})
    known, unknown = parse(block)
    assert known == User("1", ("7", "8"))
    assert (unknown.user_id, unknown.video_ids, columns_in(unknown.error or "")) == (None, (), [USER_ID])


def test_a_repeated_user_is_an_error() -> None:
    block = pa.table({USER_ID: ["a", "a"], HISTORY: [["x"], ["y"]], IS_REPEATED: [False, True]})
    first, second = parse(block)
    assert first == User("a", ("x",))
    assert (second.user_id, second.video_ids, columns_in(second.error or "")) == ("a", (), [USER_ID])


@given(st.lists(st.none() | st.sampled_from(["a", "b", "c", "d"])))
def test_the_first_row_of_a_user_counts(users: list[str | None]) -> None:
    num_rows, repeated = repeated_rows(users)
    assert num_rows == len(users)
    assert repeated == {at for at, user in enumerate(users) if user is not None and user in users[:at]}
