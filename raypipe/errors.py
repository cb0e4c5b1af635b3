"""Every exception raypipe raises on purpose.

    RaypipeError                 catch this for all of them
    ├── SetupError               arguments, configuration or environment are wrong: exit code 2
    │   ├── ConfigError          a key, a value or an argument
    │   ├── StorageError         a bucket or folder that cannot be listed, read or written
    │   ├── WeightsError         weights that cannot be found, read or fitted to the model
    │   ├── FingerprintError     the output holds rows of other settings
    │   └── IndexVersionError    no version of an index, or one that is not whole
    ├── JobError                 the work itself failed; the same command resumes it: exit code 1
    │   ├── CommitError          a file of the output is not what its name promises
    │   └── VerifyError          what is stored breaks a promise
    ├── QueryError               a request that an index cannot answer: an unknown column, a value of another type
    └── ObjectError              one object of a bucket could not be read: it becomes a row, never an exit
        ├── ObjectMissingError
        ├── ObjectChangedError
        ├── ObjectDeniedError
        ├── ObjectTooLargeError
        └── ObjectUnreadableError

Bad data is a row; bad setup is an exception. A message is one line: what happened, the value, the choices, what to do.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

_MAX_SHOWN_CHOICES = 40
_MAX_SHOWN_SETTINGS = 3


class RaypipeError(Exception):
    """Base class of all; ``exit_code`` is what the command line ends with.

    ``str(error)`` is one line for people: ``message``, then the choices, then ``remedy``. The fields hold the same
    facts for programs, which must not depend on the wording:

    Attributes:
        key: The configuration key, column, argument or file that is wrong.
        value: What it holds.
        expected: What it should hold or held before, if that is one value.
        choices: What it may hold, if that is a list; a close match to ``value`` is suggested.
        remedy: What to do, as a sentence.
    """

    exit_code = 1

    def __init__(
        self,
        message: str = "",
        *,
        key: str = "",
        value: object = None,
        expected: object = None,
        choices: Iterable[str] = (),
        remedy: str = "",
    ) -> None:
        self.key = key
        self.value = value
        self.expected = expected
        self.choices = tuple(choices)
        self.remedy = remedy
        super().__init__(" ".join(part for part in (message, offer(value, self.choices), remedy) if part))


def offer(value: object, choices: tuple[str, ...]) -> str:
    """Return the sentences that suggest a close match to ``value`` and list the choices; empty without choices."""
    if not choices:
        return ""
    near = difflib.get_close_matches(value.rpartition(".")[2], choices, n=1) if isinstance(value, str) else []
    hint = f"Did you mean {near[0]!r}? " if near else ""
    more = f" and {len(choices) - _MAX_SHOWN_CHOICES} more" if len(choices) > _MAX_SHOWN_CHOICES else ""
    return f"{hint}Choose one of {', '.join(choices[:_MAX_SHOWN_CHOICES])}{more}."


class SetupError(RaypipeError):
    """The arguments, the configuration or the environment are wrong."""

    exit_code = 2


class ConfigError(SetupError):
    """A key, a value or an argument is wrong."""


class StorageError(SetupError):
    """A bucket or folder cannot be listed, read or written."""


class WeightsError(SetupError):
    """Weights cannot be found, read or fitted to the model."""


class FingerprintError(SetupError):
    """The output was made with other settings.

    Where settings differ, ``key`` is the first of them by name; ``expected`` and ``value`` hold all of them by their
    dotted names, as they were and as they are now.
    """


class IndexVersionError(SetupError):
    """There is no such version of an index, or it is not whole."""


class JobError(RaypipeError):
    """The work failed; what is committed stays, and the same command resumes."""


class CommitError(JobError):
    """A file of the output is not what its name promises."""


class VerifyError(JobError):
    """What is stored breaks a promise."""


class QueryError(RaypipeError):
    """An index cannot answer this request: a filter names an unknown column, or holds a value of another type."""


class ObjectError(RaypipeError):
    """One object could not be read; the others are unharmed."""


class ObjectMissingError(ObjectError):
    """The object is gone (404)."""


class ObjectChangedError(ObjectError):
    """The object's etag is not the planned one (412)."""


class ObjectDeniedError(ObjectError):
    """This one object may not be read (403)."""


class ObjectTooLargeError(ObjectError):
    """The object is larger than the limit."""


class ObjectUnreadableError(ObjectError):
    """The storage kept failing on this object after every retry."""


def leaves(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name: ``{"a": {"b": 1}}`` is ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def refuse_other_settings(before: Mapping[str, Any], now: Mapping[str, Any], *, subject: str) -> None:
    """Refuse to mix results that do not compare.

    Raises:
        FingerprintError: the settings differ; ``subject`` says what was made with them before, such as "The output
            holds rows".
    """
    was, is_now = leaves(before), leaves(now)
    keys = [key for key in sorted(was.keys() | is_now.keys()) if was.get(key) != is_now.get(key)]
    if not keys:
        return
    differ = [f"{key} was {_short(was.get(key))} and is now {_short(is_now.get(key))}" for key in keys]
    more = f"; and {len(keys) - _MAX_SHOWN_SETTINGS} more" if len(keys) > _MAX_SHOWN_SETTINGS else ""
    msg = f"{subject} of other settings: {'; '.join(differ[:_MAX_SHOWN_SETTINGS])}{more}."
    raise FingerprintError(
        msg,
        key=keys[0],
        value={key: is_now.get(key) for key in keys},
        expected={key: was.get(key) for key in keys},
        remedy="Choose another output, or use those settings.",
    )


def _short(value: object) -> str:
    """Return a setting for a message; a digest is shortened."""
    text = str(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else text
