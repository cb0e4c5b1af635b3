"""One user after the other: what each watched, or what is wrong with the row that should say it."""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

USER_ID, HISTORY = "user_id", "history"
LINE, ERROR = "line", "error"  # of a block of rows: one that is still JSON, and what is wrong with it
IS_REPEATED = "is_repeated"  # of a block: its user stands in an earlier row of the file
_MAX_SHOWN = 80


@dataclass(frozen=True, slots=True)
class User:
    """One row: what somebody watched, the newest last, or what is wrong with it."""

    user_id: str | None
    video_ids: tuple[str, ...] = ()
    error: str | None = None


def parse(block: pa.Table) -> Iterator[User]:
    """Read the rows of a block, each for itself; one whose user stands in an earlier row is an error."""
    users = map(_user_of_json, block[LINE].to_pylist()) if LINE in block.column_names else _users_of_columns(block)
    if IS_REPEATED not in block.column_names:
        yield from users
        return
    for user, is_repeated in zip(users, block[IS_REPEATED].to_pylist(), strict=True):
        error = user.error or f"this {USER_ID} is in an earlier row too"
        yield User(user.user_id, error=error) if is_repeated else user


def _users_of_columns(block: pa.Table) -> Iterator[User]:
    nothing = [None] * block.num_rows
    columns = (block[name].to_pylist() if name in block.column_names else nothing for name in (USER_ID, HISTORY, ERROR))
    return itertools.starmap(_user, zip(*columns, strict=True))


def _user_of_json(line: bytes) -> User:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return User(None, error=f"the line is not JSON: {error}")
    if not isinstance(row, dict):
        return User(None, error=f"the line holds {_short(row)}, not {USER_ID} and {HISTORY}")
    if HISTORY not in row:
        return _user(row.get(USER_ID), None, f"it has no {HISTORY}")
    return _user(row.get(USER_ID), row[HISTORY], None)


def _user(user_id: Any, history: Any, error: str | None) -> User:  # noqa: ANN401 - whatever the file holds
    try:
        known = _text(user_id)
    except ValueError:
        return User(None, error=error or f"{USER_ID} is {_short(user_id)}; it should be a text or a whole number")
    if error or not known:
        return User(known or None, error=error or f"it has no {USER_ID}")
    try:
        return User(known, parse_history(history))
    except (TypeError, ValueError) as problem:
        return User(known, error=str(problem))


def parse_history(history: Any) -> tuple[str, ...]:  # noqa: ANN401 - whatever the file holds
    """The ids of a history; null and an empty text are an empty one.

    Raises:
        TypeError: it is no list.
        ValueError: it holds what is no id.
    """
    if history is None:
        return ()
    ids = history
    if isinstance(history, str):
        text = history.strip()
        if text.startswith("["):
            try:
                ids = json.loads(text)
            except (ValueError, RecursionError) as error:
                msg = f"{HISTORY} {_short(history)} is not a JSON array: {error}"
                raise ValueError(msg) from None
        else:
            ids = [part.strip() for part in text.split("|")] if "|" in text else text.split()
            ids = [part for part in ids if part]
    if not isinstance(ids, list):
        msg = f"{HISTORY} is {_short(history)}; it should be a list of video ids"
        raise TypeError(msg)
    if all(type(video_id) is str for video_id in ids) and "".join(ids).isascii():  # the usual case, at once
        return tuple(ids)
    return tuple(_text(video_id, what=HISTORY) for video_id in ids)


def _text(value: Any, *, what: str = USER_ID) -> str:  # noqa: ANN401 - whatever the file holds
    """An id as text: 7 is the id ``7``.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None and what == USER_ID:
        return ""
    if not isinstance(value, str) or _utf8_of(value) != value:
        msg = f"{what} holds {_short(value)}, which is no id"
        raise ValueError(msg)
    return value


def _utf8_of(text: str) -> str:
    return text.encode(errors="replace").decode()


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def repeated_rows(users: Iterable[str | None]) -> tuple[int, frozenset[int]]:
    """How many rows there are, and the numbers of those whose user stands in an earlier one; 8 bytes a row."""
    hashes = np.fromiter((0 if user is None else hash(user) or 1 for user in users), np.int64)
    _, first = np.unique(hashes, return_index=True)
    is_first = np.zeros(len(hashes), np.bool_)
    is_first[first] = True
    return len(hashes), frozenset(np.flatnonzero(~is_first & (hashes != 0)).tolist())
