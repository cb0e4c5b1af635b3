"""A confusion matrix as inline SVG: a row for each true label, coloured by the share of the row."""

from collections.abc import Sequence
from unicodedata import east_asian_width

from raypipe.report.markup import Html, join, tag
from raypipe.text import format_count, format_share, shorten, visible

MAX_LABELS = 25
_LABEL_CHARS = 18
_CHAR = 6.6  # pixels of a letter, about
_WIDE_CHAR = 12.0
_LARGE, _SMALL = 44, 30  # pixels of a cell, of few labels and of many
_FEW = 12
_DARK = 0.55  # the share from which a cell's number is written in the page's colour


def confusion_matrix(label_names: Sequence[str], confusion: Sequence[Sequence[int]]) -> Html:
    """Draw counts, rows true and columns predicted, of at most ``MAX_LABELS`` labels."""
    names = [shorten(visible(name), max_chars=_LABEL_CHARS) for name in label_names]
    cell = _LARGE if len(names) <= _FEW else _SMALL
    margin = max(map(_text_width, names)) + 12
    # Labels of columns lean to the right, so the last one needs room beside the cells.
    top, lean = margin * 0.72 + 16, margin * 0.72
    width, height = margin + cell * len(names) + lean, top + cell * len(names) + 4
    heads = [
        tag(
            "text",
            tag("title", label),
            name,
            transform=f"translate({margin + cell * (index + 0.5):.1f} {top - 8:.1f}) rotate(-45)",
        )
        for index, (label, name) in enumerate(zip(label_names, names, strict=True))
    ]
    rows = [
        _row(label_names, names, confusion, row, cell=cell, left=margin, y=top + cell * row)
        for row in range(len(names))
    ]
    return tag(
        "svg",
        *heads,
        *rows,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=round(width),
        height=round(height),
        role="img",
        aria_label=f"confusion of {len(names)} labels",
        class_="matrix",
    )


def _row(
    label_names: Sequence[str],
    names: Sequence[str],
    confusion: Sequence[Sequence[int]],
    row: int,
    *,
    cell: int,
    left: float,
    y: float,
) -> Html:
    counts = confusion[row]
    whole = sum(counts)
    middle = y + cell / 2 + 4
    pieces = [tag("text", tag("title", label_names[row]), names[row], x=left - 8, y=middle, class_="end")]
    for column, count in enumerate(counts):
        share = count / whole if whole else 0.0
        x = left + cell * column
        said = (
            f"true {label_names[row]}, predicted {label_names[column]}: {format_count(count)} of {format_count(whole)}"
        )
        title = tag("title", f"{said} ({format_share(share)})" if whole else said)
        place = {"x": x + 1, "y": y + 1, "width": cell - 2, "height": cell - 2}
        pieces.append(tag("rect", class_="empty", **place))
        if count:
            kind = "right" if row == column else "wrong"
            pieces.append(tag("rect", class_=kind, fill_opacity=max(0.08, share), **place))
            on = "mid on" if share >= _DARK else "mid"
            pieces.append(tag("text", _short_count(count), x=x + cell / 2, y=middle, class_=on))
        pieces.append(tag("rect", title, class_="hit", **place))
    return join(*pieces)


def _short_count(count: int) -> str:
    """Write a count in at most four letters, which a cell has room for."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= max(size, 10**4):
            return f"{count // size}{unit}"
    return str(count)


def _text_width(text: str) -> float:
    return sum(_WIDE_CHAR if east_asian_width(char) in "WF" else _CHAR for char in text)
