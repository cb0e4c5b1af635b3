"""The bytes that answer a header Range, compared with RFC 9110 on every byte."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.endpoint.byte_ranges import Part, part_of
from raypipe.endpoint.http import HttpError
from support.properties import examples

_SIZES = st.integers(0, 40)
_BOUNDS = st.none() | st.integers(0, 50)


def wanted(size: int, first: int | None, last: int | None) -> list[int]:
    """Return the numbers of the bytes that a range names, by the definition in the RFC."""
    if first is None:
        return list(range(size))[-last:] if last else []
    return [number for number in range(size) if first <= number and (last is None or number <= last)]


@settings(max_examples=examples(400))
@given(size=_SIZES, first=_BOUNDS, last=_BOUNDS, most=st.integers(1, 45))
def test_a_range_gives_its_first_bytes(size: int, first: int | None, last: int | None, most: int) -> None:
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    is_malformed = (first is None and last is None) or (first is not None and last is not None and last < first)
    numbers = list(range(size)) if is_malformed else wanted(size, first, last)
    if len(numbers) > most if is_malformed else not numbers:
        with pytest.raises(HttpError) as caught:
            part_of(size, header, max_bytes=most)
        assert (caught.value.status, caught.value.headers["Content-Range"]) == (416, f"bytes */{size}")
        return
    part = part_of(size, header, max_bytes=most)
    assert part.is_whole == is_malformed
    assert list(range(part.start, part.stop)) == numbers[:most]


@settings(max_examples=examples(100))
@given(size=st.integers(1, 200), most=st.integers(1, 50))
def test_a_player_that_asks_for_the_rest_gets_every_byte_once(size: int, most: int) -> None:
    got: list[int] = []
    while len(got) < size:
        part = part_of(size, f"bytes={len(got)}-", max_bytes=most)
        got += range(part.start, part.stop)
    assert got == list(range(size))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=5-2",
        "bytes=0-1,3-4",
        "items=0-1",
        "bytes=+1-2",
        "bytes=a-b",
        "bytes=٣-٤",
    ],
)
def test_other_headers_are_ignored(header: str) -> None:
    assert part_of(10, header) == Part(0, 10, is_whole=True)
    assert part_of(10, None) == Part(0, 10, is_whole=True)


def test_numbers_of_any_length_are_no_problem() -> None:
    assert part_of(10, f"bytes=3-{'9' * 30}") == Part(3, 10, is_whole=False)
    assert part_of(10, f"bytes=-{'9' * 30}") == Part(0, 10, is_whole=False)
    assert part_of(10, f"bytes=3-{'9' * 5000}") == Part(0, 10, is_whole=True)
    with pytest.raises(HttpError):
        part_of(10, f"bytes={'9' * 30}-")
