"""Where to divide what is left of a listing, so that its parts can be asked for side by side.

It is a guess from the keys seen, and only speed depends on it: whatever the boundary, each key is on one side of it.
"""

from itertools import takewhile

_DIGITS = frozenset("0123456789")
_LAST_BEFORE_SURROGATES = "\ud7ff"


def boundary(*, first: str, last: str, until: str, prefix: str) -> str:
    """A string between ``last`` and ``until`` for the keys left to lie on both sides of; "" where none is found.

    ``first`` is the first key of the whole listing, ``last`` the last that was seen; the keys left are greater, not
    greater than ``until`` unless that is "", and begin with ``prefix``.
    """
    if not until and (behind := _behind(last[: _num_shared(first, last)], prefix)):
        return behind
    shared = _num_shared(last, until) if until else len(prefix)
    seen = frozenset(first[len(prefix) :] + last[len(prefix) :])
    for at in range(shared, len(last)):
        most = until[at] if at == shared < len(until) else ""
        for alphabet in (_DIGITS if last[at] in _DIGITS else frozenset(), seen):
            signs = sorted(sign for sign in alphabet if sign > last[at] and (not most or sign <= most))
            middle = last[:at] + signs[len(signs) // 2] if signs else ""
            if middle and (not until or middle < until):
                return middle
    return ""


def _num_shared(one: str, other: str) -> int:
    """How many signs two strings begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _behind(common: str, prefix: str) -> str:
    """The string behind all keys that begin as every key so far: few requests tell how far that holds."""
    if len(common) <= len(prefix) or not " " <= common[-1] < _LAST_BEFORE_SURROGATES:
        return ""
    return common[:-1] + chr(ord(common[-1]) + 1)
