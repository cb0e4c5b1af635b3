"""Numbers and untrusted text as a person reads them: in the report, on the terminal and in ``summary.json``."""

import math
import re

NOTHING = "–"  # noqa: RUF001  an en dash is what a table shows for "no value"
_KILO = 1000
_SECONDS_PER_MINUTE = 60
_SECONDS_PER_HOUR = 3600
_SECONDS_PER_DAY = 86_400
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET = re.compile(
    r"(?i)\b((?:x-amz-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig|token|secret|password)"
    r"=)[^&\s'\"]+"
)
# What differs between errors of one cause: addresses, quoted names, long words with a digit in them, numbers.
_PARTICULAR = re.compile(r"\b\w+://\S+|'[^']*'|\"[^\"]*\"|\b(?=\w*\d)\w{6,}\b|(?<!\w)\d+(?:\.\d+)?")
_KIND_LENGTH = 90


def visible(text: str) -> str:
    """Return ``text`` with control, format, surrogate and unusual space characters written as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def redact(text: str) -> str:
    """Return ``text`` without the passwords and signatures that a URL may carry."""
    return _SECRET.sub(r"\1***", _USERINFO.sub("***@", text))


def shorten(text: str, *, max_chars: int) -> str:
    """Return ``text`` with its middle left out where it is too long: the ends tell one name from another."""
    if len(text) <= max_chars:
        return text
    head = (max_chars - 1) // 3
    return f"{text[:head]}…{text[head + 1 - max_chars :]}"


def error_kind(error: str) -> str:
    """Return what errors of one cause have in common: no numbers, quoted names or addresses."""
    first_line = next(iter(error.strip().splitlines()), "")
    return shorten(_PARTICULAR.sub("…", first_line), max_chars=_KIND_LENGTH)


def finite(number: float) -> float:
    """Return ``number``, or 0 where it is not a number that can be added and compared."""
    return number if math.isfinite(number) else 0.0


def format_count(count: int) -> str:
    """Format a count: ``4,800``."""
    return f"{count:,}"


def plural(count: int, noun: str) -> str:
    """Return ``1 shard`` or ``2 shards``."""
    return f"{format_count(count)} {noun}" if count == 1 else f"{format_count(count)} {noun}s"


def format_rate(per_second: float) -> str:
    """Format a rate to three significant digits: ``0.042``, ``12.3``, ``4,810``."""
    if per_second <= 0:
        return "0"
    rounded = float(f"{per_second:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(rounded)))
    return f"{per_second:,.{min(decimals, 4)}f}"


def format_share(share: float) -> str:
    """Format a share of one as a percentage that is 0 % or 100 % only when it is exactly that."""
    percent = 100 * share
    if 0 < percent < 0.1:  # noqa: PLR2004  the smallest share that one decimal shows
        return "<0.1%"
    if 99.95 <= percent < 100:  # noqa: PLR2004
        return ">99.9%"
    return f"{percent:.0f}%" if percent in (0, 100) else f"{percent:.1f}%"


def format_bytes(size_bytes: float) -> str:
    """Format a size in decimal units: ``1.25 GB``."""
    if size_bytes < _KILO:
        return f"{size_bytes:.0f} B"
    size, unit = size_bytes / _KILO, "kB"
    for larger in ("MB", "GB", "TB", "PB"):
        if size < _KILO - 0.5:
            break
        size, unit = size / _KILO, larger
    return f"{format_rate(size)} {unit}"


def format_seconds(seconds: float) -> str:
    """Format a duration in its two largest units: ``0.8s``, ``6m20s``, ``3h05m``, ``2d04h``."""
    seconds = max(0.0, finite(seconds))
    if seconds < 9.95:  # noqa: PLR2004  from ten seconds on a tenth says nothing
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < _SECONDS_PER_MINUTE:
        return f"{whole}s"
    if whole < _SECONDS_PER_HOUR:
        return f"{whole // _SECONDS_PER_MINUTE}m{whole % _SECONDS_PER_MINUTE:02d}s"
    minutes = round(seconds / _SECONDS_PER_MINUTE)
    if minutes < _SECONDS_PER_DAY // _SECONDS_PER_MINUTE:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = round(seconds / _SECONDS_PER_HOUR)
    return f"{hours // 24}d{hours % 24:02d}h"
