import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typing_extensions import Buffer

from raypipe.errors import (
    ObjectChangedError,
    ObjectUnreadableError,
    StorageError,
)
from raypipe.storage import Folder, read_object
from support.folders import fill, keys

ANY_SIZE = 1 << 40


PUT_AND_BE_KILLED = """
import os, random, signal, sys, time
from raypipe.storage import Folder

folder, data = Folder(sys.argv[1]), b"x" * 30_000_000
began = time.monotonic()
folder.put_new("whole", data)
seconds = time.monotonic() - began
for number in range(25):
    child = os.fork()
    if child == 0:
        folder.put_new(str(number), data)
        os._exit(0)
    time.sleep(random.random() * seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_a_killed_put_leaves_a_whole_file_or_none(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", PUT_AND_BE_KILLED, str(tmp_path)], check=True)
    sizes = {stored.key: stored.size_bytes for stored in Folder(str(tmp_path)).list()}
    assert "whole" in sizes
    assert len(sizes) < 26, "nothing was killed in time"
    assert set(sizes.values()) == {30_000_000}


def test_a_local_name_that_is_not_utf8_is_skipped_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4")).touch()
    assert keys(Folder(str(tmp_path))) == []
    [record] = caplog.records
    assert "UTF-8" in record.getMessage()
    assert r"/\udcff.mp4" in record.getMessage()


def test_a_link_to_a_folder_above_ends(tmp_path: Path) -> None:
    fill(Folder(str(tmp_path)), "a/b.mp4")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    assert keys(Folder(str(tmp_path))) == ["a/b.mp4", "linked/b.mp4"]


def test_a_local_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    [stored] = fill(Folder(str(tmp_path)), "v.mp4").list()

    class ChangesIt(io.BytesIO):
        def write(self, data: Buffer) -> int:
            Path(stored.uri).write_bytes(b"other")
            return super().write(data)

    with pytest.raises(ObjectChangedError):
        read_object(stored.uri, etag=stored.etag, max_size_bytes=ANY_SIZE, into=ChangesIt())


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.mp4")
    with pytest.raises(ObjectUnreadableError, match=r"/v\.mp4"):
        read_object(str(tmp_path / "v.mp4"), etag="", max_size_bytes=ANY_SIZE, into=io.BytesIO())


def test_check_writable_says_why_a_local_folder_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=os.strerror(errno.ENOTDIR)) as caught:
        Folder(str(tmp_path / "file" / "out")).check_writable()
    assert caught.value.key == f"{tmp_path}/file/out/.raypipe"
    with pytest.raises(StorageError, match=os.strerror(errno.EEXIST)) as caught:
        Folder(str(tmp_path / "file")).check_writable()
    assert caught.value.key == f"{tmp_path}/file/.raypipe"
