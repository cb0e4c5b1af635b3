"""Every sentence that raypipe prints, read from its source, and a copy of the source that rewords all of them.

``python -m support.messages`` in ``tests/`` rewrites the golden file.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from support import TESTS

SOURCE = TESTS.parent / "raypipe"
GOLDEN = TESTS / "golden" / "messages.txt"
_TWO_WORDS = re.compile(r"[A-Za-z]{2,}[,:;]? \S*[A-Za-z{]")
# Pages and displays, not errors: their tests read what they show.
_DISPLAYS = ("cli", "demo", "monitoring", "progress", "report")
_DISPLAY_FILES = (
    "metrics.py",
    "progress.py",
    "summary_tables.py",
    "launch.py",
    "records.py",
    "rewrite.py",
    "text.py",
)
_CODE = ("Bearer ", "{operator}(Tensor", "pa.", "import ", "default-src ")  # the start of a text that a program reads
# A word of prose: not part of a path, key, option, command or quoted name, and no acronym or variable.
_BEFORE, _AFTER = r"(?<![\w./:=\-'\"`<\[({%|$@\\*])(?<!raypipe )(?!raypipe\b)", r"(?![\w\-='\"`>(\[|*]|[./:]\S)"
_WORD = re.compile(f"{_BEFORE}[A-Za-z]?[a-z]+{_AFTER}")


def files() -> list[Path]:
    """Return the source files whose sentences count, sorted."""
    found = (path for path in SOURCE.rglob("*.py") if path.name not in _DISPLAY_FILES)
    return sorted(path for path in found if path.relative_to(SOURCE).parts[0] not in _DISPLAYS)


def messages(source: str) -> list[str]:
    """Return the sentences of a source file; each inserted value is ``{its expression}``."""
    return [_template(node) for node in _sentences(ast.parse(source))]


def reworded(source: str) -> str:
    """Return the same program with every word of prose in its sentences changed."""
    tree = ast.parse(source)
    for node in list(_sentences(tree)):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        for part in parts:
            if isinstance(part, ast.Constant):
                part.value = _WORD.sub(lambda word: f"{word[0]}q", part.value)
    return ast.unparse(tree)


def golden_text() -> str:
    """Return the expected content of the golden file."""
    found = {path.relative_to(SOURCE): messages(path.read_text(encoding="utf-8")) for path in files()}
    sections = ("\n".join([f"[{name}]", *(repr(one)[1:-1] for one in said)]) for name, said in found.items() if said)
    return "\n\n".join(sections) + "\n"


def _sentences(tree: ast.Module) -> Iterator[ast.Constant | ast.JoinedStr]:
    skipped = {id(node) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if id(node) in skipped and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        if isinstance(node, ast.Compare):
            continue  # another program's text that raypipe searches for
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            text = _template(node)
            if _TWO_WORDS.search(text) and not text.startswith(_CODE):
                yield node
            continue
        stack.extend(reversed(list(ast.iter_child_nodes(node))))


def _template(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(str(part.value) if isinstance(part, ast.Constant) else _filled_in(part) for part in node.values)


def _filled_in(part: ast.expr) -> str:
    assert isinstance(part, ast.FormattedValue)
    return ast.unparse(ast.JoinedStr([part])).partition("{")[2].rpartition("}")[0].join("{}")


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(golden_text(), encoding="utf-8")
