"""Find words that the prose of this project avoids: ``python -m support.english`` in ``tests/``; part of ``make lint``.

In Python files it reads comments, strings and the names of tests; of other files every line.
"""

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from support import TESTS

ROOT = TESTS.parent
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".html", ".js", ".css", ".j2", ".patch"}
SKIPPED = {"tests/support/english.py", "LICENSE"}
WORDS = {  # a pattern, and what to write instead
    r"mend(s|ed|ing)?": "fix",
    r"(hold|holds|held|holding) (\w+ )?against": "check, compare with",
    r"the very": "exactly the, the same",
    r"(?<!there )(is|are|was|were) none": "there is no …",
    r"tell(s|ing)? of|told of": "report, say that",
    r"whatever comes of": "whatever happens",
    r"beside": "next to, in parallel with, in addition to",
    r"behind it": "say what is behind what",
    r"lie|lies|lay|lain": "is, is stored",
    r"seen red": "fails",
    r"at work on": "in-flight, works on",
    r"let(s|ting)? go": "release",
    r"one of its own": "its own",
    r"anew": "again, from scratch",
    r"sooner": "earlier",
    r"whoever|whomever": "name the caller",
}
_PATTERN = re.compile("|".join(rf"(?P<w{number}>\b({words})\b)" for number, words in enumerate(WORDS)))
_CODE = re.compile(r"``[^`]*``|`[^`]*`|\{\{.*?\}\}")


def main() -> int:
    """Print each hit; the exit code is 1 if there is one."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.splitlines() if Path(name).suffix in SUFFIXES and name not in SKIPPED]
    hits = [hit for name in names if (ROOT / name).is_file() for hit in find(name, (ROOT / name).read_text("utf-8"))]
    sys.stdout.writelines(f"{hit}\n" for hit in hits)
    return int(bool(hits))


def find(name: str, text: str) -> Iterator[str]:
    """Yield a line for each word to avoid in a file."""
    for line, prose in _prose(text) if name.endswith(".py") else enumerate(text.splitlines(), start=1):
        for hit in _PATTERN.finditer(_CODE.sub("", prose)):
            instead = list(WORDS.values())[int(str(hit.lastgroup).removeprefix("w"))]
            yield f"{name}:{line}: {hit[0]!r}: write {instead}"


def _prose(code: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a Python file that are prose, with their numbers."""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type in {tokenize.COMMENT, tokenize.STRING}:
            yield from enumerate(token.string.splitlines(), start=token.start[0])
        elif token.type == tokenize.NAME and token.string.startswith("test_"):
            yield token.start[0], token.string.replace("_", " ")


if __name__ == "__main__":
    sys.exit(main())
