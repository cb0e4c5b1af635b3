"""A parser for report pages, and hostile text to put into them."""

from html.parser import HTMLParser

HOSTILE = [
    "<script>alert(1)</script>",
    "</title></style><img src=x onerror=alert(1)>",
    "\" onmouseover='alert(1)' x=\"",
    "'><svg/onload=alert(1)>",
    "&lt;b&gt;&#60;i&#62;",
    "--><!-- ]]>",
    "javascript:alert(1)",
    "\x00\x1b[2J\x07\r\n\t",
    "invoice\u202egpj.exe",
    "\ud800 lone surrogate",
    "zero\u200bwidth\ufeff\u2028",
    "日本語の動画🎬.mp4",
]


class Page(HTMLParser):
    """A parsed report: its elements, their attributes, and its texts."""

    def __init__(self, content: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(content.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.texts.append(f"COMMENT {data}")

    def style(self) -> str:
        return next(text for text in self.texts if ":root" in text)
