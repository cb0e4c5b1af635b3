"""The Jinja2 environment of reports. It escapes printed values and makes their control characters visible."""

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING

from raypipe import text
from raypipe.records import (
    AnomalyRecord,
    CompressionRecord,
    EvaluationRecord,
    RunRecord,
    SuggestionRecord,
    TrainingRecord,
)
from raypipe.status import NOT_FAILED

if TYPE_CHECKING:
    from jinja2 import Environment

Tile = tuple[str, str, str]  # name, large number, note

_FILTERS = (
    *("finite", "format_count", "format_metric", "format_parameters", "format_score", "format_seconds"),
    *("format_share", "heading", "metric_name", "plural", "redact", "shorten"),
)  # functions in raypipe.text
_MAX_MARKDOWN_CHARS = 120
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~&@:$]|(?<=www)\.)", re.IGNORECASE)


def render_page(
    template: str,
    record: RunRecord | TrainingRecord | EvaluationRecord | AnomalyRecord | CompressionRecord | SuggestionRecord,
    *,
    job: str,
    headline: str,
    uris: tuple[str, str],
    tiles: list[Tile],
    bad_tile: str,
    run: Mapping[str, object],
    **sections: object,
) -> str:
    """Return a report as one HTML document that loads nothing from outside and runs no script.

    ``run`` is shown next to the settings of the record, and ``bad_tile`` names the tile to highlight.
    """
    groups = {"Run": run, "Settings": record.settings, "Machine": record.machine, "Versions": record.versions}
    shown = {name: [(key, value) for key, value in leaves(values) if value] for name, values in groups.items()}
    return render(
        template,
        record=record,
        job=job,
        headline=headline,
        uris=[uri for uri in uris if uri],
        started=f"{datetime.fromtimestamp(record.started_at, UTC):%-d %B %Y, %H:%M}",
        tiles=tiles,
        bad_tile=bad_tile,
        settings={name: rows for name, rows in shown.items() if rows},
        version=record.versions.get("raypipe", ""),
        **sections,
    )


def render(template: str, **context: object) -> str:
    """Render a template of this package."""
    return _environment().get_template(template).render(context)


def leaves(mapping: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested settings, and yield each one as (dotted name, displayed value)."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            yield f"{prefix}{key}", text.NOTHING if value is None else shown


def markdown_text(words: str) -> str:
    """Shorten and escape a text so that Markdown displays it literally, in a paragraph or in a table."""
    shown = text.shorten(text.visible(text.redact(words.strip())), max_chars=_MAX_MARKDOWN_CHARS)
    return _MARKDOWN.sub(r"\\\1", shown) or text.NOTHING


def markdown_code(words: str) -> str:
    """Format a text as inline code of Markdown. The delimiters are longer than any run of backticks in the text."""
    shown = text.shorten(text.visible(text.redact(words)), max_chars=2 * _MAX_MARKDOWN_CHARS)
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    padded = f" {shown} " if "`" in shown or shown != shown.strip() else shown
    return f"{fence}{padded}{fence}"


@cache
def _environment() -> "Environment":
    # Jinja2 is imported by the first report, so that importing a job stays cheap.
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape  # noqa: PLC0415

    environment = Environment(
        loader=PackageLoader("raypipe.report"),
        autoescape=select_autoescape(disabled_extensions=("md",), default=True),
        finalize=_printed,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({name: getattr(text, name) for name in _FILTERS})
    environment.filters.update(leaves=leaves, markdown_text=markdown_text, markdown_code=markdown_code, base64=_base64)
    environment.globals.update(NOTHING=text.NOTHING, NOT_FAILED=NOT_FAILED)
    style = environment.get_template("report.css").render()
    environment.globals["style_hash"] = _base64(sha256(style.encode()).digest())
    return environment


def _base64(content: bytes) -> str:
    return b64encode(content).decode("ascii")


def _printed(value: object) -> object:
    """Return the text that a template prints for ``value``. In HTML, Jinja2 escapes it unless a macro already did."""
    if hasattr(value, "__html__"):
        return value
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return text.visible(str(value))
