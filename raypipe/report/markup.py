"""HTML and SVG by function calls: whatever is not already markup is escaped, so nothing can be forgotten."""

from html import escape

from raypipe.text import visible

_VOID = frozenset({"img", "meta", "br"})


class Html(str):
    """Markup that ``tag``, ``join`` or this package's own source has made; any other text is escaped."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | float) -> Html:
    """Return an element; ``class_`` is written ``class``, and ``stroke_width`` ``stroke-width``."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(visible(_text(value)))}"' for key, value in attributes.items()
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str) -> Html:
    """Return the children one after the other, each escaped unless it is markup."""
    return Html("".join(child if isinstance(child, Html) else escape(visible(child)) for child in children))


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
