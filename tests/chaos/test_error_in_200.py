"""A gateway in front of the storage that sends errors with status 200: no traceback, and no wrong advice."""

import io
import secrets

import pytest

from chaos.fault_proxy import FaultProxy
from raypipe.dataset.commit import read_shard_file
from raypipe.errors import CommitError, ObjectUnreadableError, StorageError
from raypipe.storage import Folder, read_object


@pytest.fixture
def folder(proxy: FaultProxy) -> Folder:
    folder = Folder(f"s3://videos/{secrets.token_hex(8)}")
    assert folder.put_new("a", b"some bytes")
    proxy.tell(lambda _: "error_in_200")
    return folder


def test_asking_for_an_object(folder: Folder) -> None:
    with pytest.raises(StorageError):
        folder.exists("a")


def test_reading_a_video(folder: Folder) -> None:
    with pytest.raises(ObjectUnreadableError):
        read_object(folder.child("a"), etag="e", max_size_bytes=100, into=io.BytesIO())


def test_reading_a_footer(folder: Folder, proxy: FaultProxy) -> None:
    proxy.tell(lambda call: "error_in_200" if call.operation == "get" else "")
    with pytest.raises((CommitError, ObjectUnreadableError)) as caught:
        read_shard_file(folder, "a")
    assert "Move it away" not in str(caught.value)
