"""Every exception that raypipe raises on purpose.

    RaypipeError                 the base class of all exceptions
    ├── SetupError               arguments, configuration or environment are wrong: exit code 2
    │   ├── ConfigError          a key, a value or an argument
    │   ├── StorageError         a bucket or folder that cannot be listed, read or written
    │   ├── WeightsError         weights that cannot be found or read, or that do not fit the model
    │   ├── FingerprintError     the output contains rows that were made with other settings
    │   └── IndexVersionError    a version of an index that is missing or corrupt
    ├── JobError                 the work itself failed, and the same command resumes it: exit code 1
    │   ├── CommitError          a file of the output that does not contain what its name says
    │   └── VerifyError          an output that is not intact
    ├── QueryError               a request that an index cannot answer: an unknown column, a value of another type
    └── ObjectError              one object could not be read: this becomes the status of a row and never stops a job
        ├── ObjectMissingError
        ├── ObjectChangedError
        ├── ObjectDeniedError
        ├── ObjectTooLargeError
        └── ObjectUnreadableError

Bad data becomes a row of the output, and a bad setup raises an exception. A message is one line: what happened, the
value, the choices, and what to do.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

_MAX_SHOWN_CHOICES = 40
_MAX_SHOWN_SETTINGS = 3


class RaypipeError(Exception):
    """The base class of all exceptions of raypipe. ``exit_code`` is the exit code of the command line.

    ``str(error)`` is one line for people: ``message``, then the choices, then ``remedy``. The attributes contain the
    same facts for programs. Programs must not depend on the wording of the line.

    Attributes:
        key: The configuration key, column, argument or file that is wrong.
        value: The value of ``key``.
        expected: The required value or the earlier value, if there is exactly one.
        choices: The allowed values, if they can be listed. The line suggests a close match to ``value``.
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
    """Return the sentences that suggest a close match to ``value`` and list the choices, if there are any."""
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
    """Weights cannot be found or read, or they do not fit the model."""


class FingerprintError(SetupError):
    """The output was made with other settings.

    If settings differ, ``expected`` maps the dotted name of each differing setting to its old value, and ``value`` maps
    it to its current value. ``key`` is the first of these names in alphabetical order.
    """


class IndexVersionError(SetupError):
    """The version of an index does not exist, or it is corrupt."""


class JobError(RaypipeError):
    """The work failed. Committed work is kept, and running the same command again resumes it."""


class CommitError(JobError):
    """A file of the output does not contain what its name says."""


class VerifyError(JobError):
    """The output is not intact."""


class QueryError(RaypipeError):
    """An index cannot answer this request. For example, a filter has an unknown column or a value of another type."""


class ObjectError(RaypipeError):
    """One object could not be read. Other objects are not affected."""


class ObjectMissingError(ObjectError):
    """The object does not exist (404)."""


class ObjectChangedError(ObjectError):
    """The object's etag differs from the planned etag (412)."""


class ObjectDeniedError(ObjectError):
    """Access to the object is denied (403)."""


class ObjectTooLargeError(ObjectError):
    """The object is larger than the limit."""


class ObjectUnreadableError(ObjectError):
    """Reading the object still failed at the last retry."""


def leaves(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def refuse_other_settings(before: Mapping[str, Any], now: Mapping[str, Any], *, subject: str) -> None:
    """Check that settings have not changed, so that results which are not comparable are never mixed.

    ``subject`` starts the error message and names what was made with the old settings, such as "The output holds rows".

    Raises:
        FingerprintError: the settings differ.
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
        remedy="Choose another output." if "format" in keys else "Choose another output, or use those settings.",
    )


def _short(value: object) -> str:
    """Return a setting as text for a message. A digest is shortened."""
    text = str(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else text
