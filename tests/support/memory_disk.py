"""A disk of a few pages in memory: it is full when a test wants it to be."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE_KB = 4  # the least that it holds


class MemoryDisk:
    """Mounted at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, kilobytes: int) -> None:
        """Give it more room, or less."""
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(self.path)], check=True)


@contextmanager
def memory_disk(path: Path) -> Iterator[MemoryDisk]:
    """A new one at ``path``, of one page, until the block ends; skips where this user may not mount."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={PAGE_KB}k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a disk of memory needs root, and the right to")
    try:
        yield MemoryDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
