"""What every report's page has: one self-contained HTML document, its headline, tiles, table heads and last line."""

from base64 import b64encode
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from importlib.resources import files

from raypipe.report.markup import Html, join, tag
from raypipe.text import format_seconds, redact


def document(*, title: str, body: Sequence[Html], styles: Sequence[str] = ("style.css",)) -> str:
    """Return one HTML document that loads nothing and runs no script; ``styles`` are files of this package."""
    folder = files("raypipe.report")
    style = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in styles)
    style_hash = b64encode(sha256(style.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{style_hash}'; img-src data:; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Html(style)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', *body), lang='en')}\n"


def header(
    *, job: str, outcome: str, headline: str, uris: Iterable[str], started_at: float, elapsed_seconds: float
) -> Html:
    """Return the top of a page: what ran, how it ended, from where to where, and when."""
    started = datetime.fromtimestamp(started_at, UTC)
    when = f"{started:%-d %B %Y, %H:%M} UTC, {format_seconds(elapsed_seconds)}"
    where = [tag("bdi", redact(uri), class_="uri") for uri in uris if uri]
    route = tag("p", *_between(where, tag("span", " → ", class_="arrow")), class_="route") if where else Html("")
    return tag(
        "header",
        tag("p", f"raypipe {job}", tag("span", outcome, class_=f"pill {outcome}"), class_="brow"),
        tag("h1", headline),
        route,
        tag("p", when, class_="when"),
    )


def tiles(numbers: Iterable[tuple[str, str, str]], *, bad: Collection[str] = ()) -> Html:
    """Return (name, number, note) as large numbers side by side; those whose name is in ``bad`` stand out."""
    return tag(
        "dl",
        *(
            tag(
                "div",
                tag("dt", name),
                tag("dd", number, class_="number"),
                tag("dd", note, class_="note"),
                class_="tile bad" if name in bad else "tile",
            )
            for name, number, note in numbers
        ),
        class_="tiles",
    )


def table_head(*names: str, roomy: Collection[str] = (), left: Collection[str] = ()) -> Html:
    """Return a table's head: numbers to the right, but for the first column and ``left``; a phone has no ``roomy``."""
    cells = []
    for index, name in enumerate(names):
        kind = "" if index == 0 or name in left else "num"
        cells.append(tag("th", name, class_=f"{kind} roomy".strip() if name in roomy else kind, scope="col"))
    return tag("thead", tag("tr", *cells))


def footer(version: str) -> Html:
    """Return the last line of a page."""
    return tag(
        "footer", join(f"raypipe {version}".strip(), " · the same numbers for programs are in summary.json beside this")
    )


def _between(items: list[Html], separator: Html) -> list[Html]:
    return [piece for item in items for piece in (separator, item)][1:]
