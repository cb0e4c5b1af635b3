"""A disk that is full: the command ends with one line, and once there is room the same command goes on."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.job import run_job, vectors_of
from embed_outputs import content, upload

from raypipe.errors import RaypipeError
from raypipe.storage import Folder

_PAGE_KB = 4  # the least that a disk of memory holds


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of some pages in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_PAGE_KB}k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a disk of memory needs root, and the right to")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_until_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    source, output, whole = (Folder(str(path)) for path in (tmp_path / "in", small_disk / "out", tmp_path / "whole"))
    upload(source, {f"{number}.mp4": content(seed=number) for number in range(7)})
    run_job(source, whole)
    endings: list[str] = []
    num_pages = 1
    while True:
        remount = f"remount,size={_PAGE_KB * num_pages}k"
        subprocess.run(["mount", "-o", remount, str(small_disk)], check=True)
        try:
            run_job(source, output)
        except RaypipeError as error:
            endings.append(str(error))
        else:
            break
        num_pages += 1 + num_pages // 4
    assert len(endings) > 5
    assert all("No space left" in ending and "\n" not in ending for ending in endings), endings
    assert vectors_of(output) == vectors_of(whole)
