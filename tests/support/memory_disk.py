"""A disk of a few pages in memory, to be full when a test needs it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE_KB = 4  # the minimum size


class MemoryDisk:
    """A disk mounted at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, kilobytes: int) -> None:
        """Change the size of the disk."""
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(self.path)], check=True)


@contextmanager
def memory_disk(path: Path) -> Iterator[MemoryDisk]:
    """Mount a disk of one page at ``path`` until the block ends; skip the test if this user may not mount."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={PAGE_KB}k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a disk of memory needs root, and the right to")
    try:
        yield MemoryDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
