"""Format numbers and untrusted text for people: in reports, on the terminal and in ``summary.json``."""

import datetime as dt
import math
import re
from collections.abc import Mapping

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
# What varies between errors with the same cause: addresses, quoted names, long words that contain a digit, numbers.
_PARTICULAR = re.compile(r"\b\w+://\S+|'[^']*'|\"[^\"]*\"|\b(?=\w*\d)\w{6,}\b|(?<!\w)\d+(?:\.\d+)?")
_KIND_LENGTH = 90
FLAG_TEXTS = {
    "num_corrupt_videos": "corrupt video",
    "num_corrupt_frames": "corrupt frame",
    "num_interlaced_videos": "deinterlaced video",
    "num_repaired_timelines": "repaired timeline",
}
_METRIC_NAMES = {
    "loss": "validation loss",
    "validation_loss": "validation loss",
    "train_loss": "training loss",
    "top5_accuracy": "top-5 accuracy",
    "macro_f1": "macro-F1",
    "hr_at_10": "HR@10",
    "ndcg_at_10": "NDCG@10",
    "coverage_at_10": "coverage@10",
}
_MAX_RATE = 1e15  # a larger rate comes from a division by almost zero
_PLAIN_LOSSES = (0.01, 1000)  # between these, three decimals are precise enough


def visible(text: str) -> str:
    """Escape the control, format, surrogate and unusual space characters in ``text``."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def redact(text: str) -> str:
    """Return ``text`` without the passwords and signatures that a URL may contain."""
    return _SECRET.sub(r"\1***", _USERINFO.sub("***@", text))


def one_line(value: object) -> str:
    """Return the text of a value, such as an exception, on one line. Each run of white space becomes one space."""
    return " ".join(str(value).split())


def shorten(text: str, *, max_chars: int) -> str:
    """Shorten ``text`` by replacing its middle with an ellipsis. Names usually differ at their ends."""
    if len(text) <= max_chars:
        return text
    head = (max_chars - 1) // 3
    return f"{text[:head]}…{text[head + 1 - max_chars :]}"


def error_kind(error: str) -> str:
    """Return an error without its numbers, quoted names and addresses.

    Errors with the same cause usually give the same result.
    """
    first_line = next(iter(error.strip().splitlines()), "")
    return shorten(_PARTICULAR.sub("…", first_line), max_chars=_KIND_LENGTH)


def finite(number: float) -> float:
    """Return ``number``, or 0 if it is NaN or infinite."""
    return number if math.isfinite(number) else 0.0


def format_count(count: int) -> str:
    """Format a count with thousands separators: ``4,800``."""
    return f"{count:,}"


def format_skipped(skipped: Mapping[str, int]) -> str:
    """Format counts by reason in descending order, such as ``12 (9 .json, 2 .jpg, 1 hidden)``, or "" for no counts."""
    ordered = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{format_count(count)} {reason}" for reason, count in ordered)
    return f"{format_count(sum(skipped.values()))} ({reasons})" if skipped else ""


def plural(count: int, noun: str) -> str:
    """Return a count with a noun, such as ``1 shard`` or ``2 shards``."""
    return f"{format_count(count)} {noun}" if count == 1 else f"{format_count(count)} {noun}s"


def format_rate(per_second: float) -> str:
    """Format a rate to three significant digits: ``0.042``, ``12.3``, ``4,810``."""
    if per_second <= 0:
        return "0"
    rounded = float(f"{per_second:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(rounded)))
    return f"{per_second:,.{min(decimals, 4)}f}"


def format_share(share: float) -> str:
    """Format a fraction from 0 to 1 as a percentage. Only exactly 0 and 1 become ``0%`` and ``100%``."""
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
    if seconds < 9.95:  # noqa: PLR2004  from ten seconds on, tenths do not matter
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


def heading(words: str) -> str:
    """Capitalize the first letter and leave the rest unchanged: ``macro-F1`` becomes ``Macro-F1``."""
    return f"{words[:1].upper()}{words[1:]}"


def flag_texts(flags: Mapping[str, int]) -> list[str]:
    """Describe each nonzero count of ``FLAG_TEXTS`` in words, such as ``2 repaired timelines``."""
    return [plural(flags[name], text) for name, text in FLAG_TEXTS.items() if flags.get(name)]


def metric_name(name: str) -> str:
    """Return the displayed name of a metric: ``train_loss`` becomes ``training loss``."""
    return _METRIC_NAMES.get(name, name)


def format_metric(name: str, value: float | None) -> str:
    """Format a metric by its kind: accuracy as a percentage, F1 and losses as numbers. None becomes an en dash."""
    if value is None:
        return NOTHING
    if math.isfinite(value) and (name.endswith("accuracy") or name == "coverage_at_10"):
        return format_share(value)
    if math.isfinite(value) and name.endswith("_at_10"):
        return f"{value:.4f}"
    return format_score(value) if math.isfinite(value) and name == "macro_f1" else format_loss(value)


def format_score(value: float) -> str:
    """Format a number between 0 and 1: ``0.842``."""
    return f"{finite(value):.3f}"


def format_loss(value: float) -> str:
    """Format a loss: ``0.412``, ``0.00034``, ``1.2e+05``."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    smallest, largest = _PLAIN_LOSSES
    return f"{value:.3f}" if value == 0 or smallest <= abs(value) < largest else f"{value:.2g}"


def format_speed(per_second: float) -> str:
    """Format a rate that a worker measured. NaN, infinity and implausibly large rates become an en dash."""
    return format_rate(per_second) if abs(per_second) < _MAX_RATE else NOTHING


def format_parameters(count: int) -> str:
    """Format a number of weights: ``820``, ``1.23M``, ``124M``."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{format_rate(count / size)}{unit}"
    return str(count)


def iso_seconds(text: str) -> float:
    """Return an ISO date or time as Unix time. A time without a zone is UTC.

    Raises:
        ValueError: the text is neither a date nor a time.
    """
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        msg = f"{text!r} is not an ISO date or time, like 2026-05-31 or 2026-05-31T12:00:00"
        raise ValueError(msg) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
