"""Every row of a history is one user, or one error that says what is wrong with it."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.recommend.users import HISTORY, IS_REPEATED, LINE, USER_ID, User, parse, parse_history, repeated_rows

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


@settings(deadline=None)
@given(st.lists(ids))
def test_a_json_array_holds_any_ids(video_ids: list[str]) -> None:
    assert parse_history(json.dumps(video_ids)) == parse_history(video_ids) == tuple(video_ids)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ('["a"', "history '[\"a\"' is not a JSON array: "),
        ("[" * 100_000, "is not a JSON array: "),
        ({"a": 1}, "history is {'a': 1}; it should be a list of video ids"),
        (7, "history is 7; it should be a list"),
        (["a", None], "history holds None, which is no id"),
        ([1.5], "history holds 1.5, which is no id"),
        ([True], "history holds True, which is no id"),
        ('["\\ud800"]', "history holds '\\ud800', which is no id"),
        ([["a" * 1000]], "history holds ['aaa"),
    ],
)
def test_what_is_no_history_is_an_error_of_its_row(history: Any, expected: str) -> None:  # noqa: ANN401
    line = json.dumps({USER_ID: "u", HISTORY: history}).encode()
    (user,) = parse(pa.table({LINE: pa.array([line], pa.large_binary())}))
    assert user.error is not None
    assert (user.user_id, user.video_ids) == ("u", ())
    assert expected in user.error
    assert len(user.error) < 250
    assert user.error.isprintable()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{", User(None, error="the line is not JSON: Expecting property name")),
        (b"[1]", User(None, error="the line holds [1], not user_id and history")),
        (b"\xff", User(None, error="the line is not JSON: 'utf-8' codec")),
        (b"{}", User(None, error="it has no history")),
        (b'{"history": []}', User(None, error="it has no user_id")),
        (b'{"user_id": "", "history": []}', User(None, error="it has no user_id")),
        (b'{"user_id": null, "history": []}', User(None, error="it has no user_id")),
        (b'{"user_id": 1.5, "history": []}', User(None, error="user_id is 1.5; it should be a text or a whole number")),
        (b'{"user_id": "\\ud800", "history": []}', User(None, error="user_id is '\\ud800'; it should")),
        (b'{"user_id": "u"}', User("u", error="it has no history")),
        (b'\xef\xbb\xbf{"user_id": 7, "history": ["a"]}', User("7", ("a",))),
        (b'{"user_id": "u", "history": null}', User("u")),
    ],
)
def test_a_line_of_json_is_a_user_or_an_error(line: bytes, expected: User) -> None:
    (user,) = parse(pa.table({LINE: pa.array([line], pa.large_binary())}))
    assert (user.user_id, user.video_ids) == (expected.user_id, expected.video_ids)
    assert (user.error or "").startswith(expected.error or "")
    assert bool(user.error) == bool(expected.error)


@pytest.mark.parametrize("kind", [pa.int64(), pa.int32()])
def test_numbers_of_parquet_are_ids(kind: pa.DataType) -> None:
    block = pa.table({USER_ID: pa.array([1, None], kind), HISTORY: pa.array([[7, 8], [9]], pa.list_(kind))})
    assert list(parse(block)) == [User("1", ("7", "8")), User(None, error="it has no user_id")]


def test_a_repeated_user_is_an_error() -> None:
    block = pa.table({USER_ID: ["a", "a"], HISTORY: [["x"], ["y"]], IS_REPEATED: [False, True]})
    assert list(parse(block)) == [User("a", ("x",)), User("a", error="this user_id stands in an earlier row too")]


@settings(deadline=None)
@given(st.lists(st.none() | st.sampled_from(["a", "b", "c", "d"])))
def test_the_first_row_of_a_user_counts(users: list[str | None]) -> None:
    num_rows, repeated = repeated_rows(users)
    assert num_rows == len(users)
    assert repeated == {at for at, user in enumerate(users) if user is not None and user in users[:at]}
