"""The error lines that FFmpeg logs while it reads and decodes one video. Runs in the child process only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import av.logging


class Line(NamedTuple):
    """One logged error."""

    source: str  # FFmpeg's name of the demuxer or decoder
    message: str


class ErrorLog:
    """Collects error lines; whoever takes them empties it, so that a hostile file cannot fill the memory."""

    def __init__(self, lines: list[tuple[int, str, str]]) -> None:
        self.lines = lines  # level, source, message

    def take(self) -> list[Line]:
        """Return the lines since the last call."""
        taken = [Line(source, " ".join(message.split())) for _, source, message in self.lines]
        self.lines.clear()
        return taken


@contextmanager
def error_log() -> Iterator[ErrorLog]:
    """Collect what FFmpeg logs as an error in this thread."""
    av.logging.set_level(av.logging.ERROR)
    skipped = av.logging.get_skip_repeated()
    av.logging.set_skip_repeated(False)  # two corrupt frames in a row may have the same error
    try:
        with av.logging.Capture() as lines:
            yield ErrorLog(lines)
    finally:
        av.logging.set_skip_repeated(skipped)
        av.logging.set_level(None)
