import io
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.errors import (
    ConfigError,
    ObjectChangedError,
    ObjectMissingError,
    ObjectTooLargeError,
    ObjectUnreadableError,
    StorageError,
)
from raypipe.storage import Folder, list_videos, read_object, read_range, s3_client
from support.folders import fill, keys

ODD_NAMES = [
    "a b.mp4",
    "#1?versionId=2.mp4",
    "100%20+x.mp4",
    "new\nline.mp4",
    "é/日本 😀.mp4",
    "x[1]*.mp4",
    "a::b",
    "c//d",
]
ANY_SIZE = 1 << 40


def test_put_new_creates_an_object_once_and_leaves_it(folder: Folder) -> None:
    assert folder.put_new("data/0.parquet", b"first")
    assert not folder.put_new("data/0.parquet", b"second")
    assert folder.read("data/0.parquet") == b"first"
    assert keys(folder) == ["data/0.parquet"]


@pytest.mark.parametrize("kind", ["local", "s3"])
@settings(max_examples=5)
@given(contents=st.lists(st.binary(max_size=5000), min_size=2, max_size=8, unique=True))
def test_of_concurrent_puts_exactly_one_wins(
    kind: str, contents: list[bytes], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = Folder(str(tmp_path) if kind == "local" else request.getfixturevalue("bucket"))
    name = secrets.token_hex(8)
    together = Barrier(len(contents))

    def put(data: bytes) -> bool:
        together.wait()
        return folder.put_new(name, data)

    with ThreadPoolExecutor(len(contents)) as threads:
        won = list(threads.map(put, contents))
    assert sum(won) == 1
    assert folder.read(name) == contents[won.index(True)]


def test_list_finds_every_object_with_its_size_and_etag(folder: Folder) -> None:
    fill(folder, "a.mp4", "b/c.mp4", "b/d/e.mp4")
    found = {stored.key: stored for stored in folder.list()}
    assert sorted(found) == ["a.mp4", "b/c.mp4", "b/d/e.mp4"]
    assert found["b/c.mp4"].uri == f"{folder.uri}/b/c.mp4"
    assert found["b/c.mp4"].size_bytes == len("content of b/c.mp4")
    stat = folder.stat("b/c.mp4")
    assert stat
    assert (stat.uri, stat.key, stat.size_bytes) == (f"{folder.uri}/b/c.mp4", "c.mp4", len("content of b/c.mp4"))
    assert stat.etag == found["b/c.mp4"].etag
    assert '"' not in found["b/c.mp4"].etag


def test_list_of_nothing_is_empty(folder: Folder) -> None:
    assert keys(folder) == []


def test_list_by_prefix(folder: Folder) -> None:
    fill(folder, "plans/1", "plans/10", "plans/2", "plans-old/1")
    assert keys(folder, "plans/1") == ["plans/1", "plans/10"]
    assert keys(folder, "plans") == ["plans-old/1", "plans/1", "plans/10", "plans/2"]
    assert keys(folder, "plans/") == ["plans/1", "plans/10", "plans/2"]
    assert keys(folder, "none/x") == []


def test_every_call_asks_the_storage(folder: Folder) -> None:
    assert not folder.exists("new")
    assert keys(folder) == []
    fill(folder, "new")
    assert folder.exists("new")
    assert keys(folder) == ["new"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_read_as_they_were_listed(folder: Folder, name: str) -> None:
    fill(folder, name)
    [stored] = folder.list()
    assert stored.key == name.replace("//", "/")  # both storages treat a double slash as one
    into = io.BytesIO()
    assert read_object(stored.uri, etag=stored.etag, max_size_bytes=ANY_SIZE, into=into) == stored.size_bytes
    assert into.getvalue() == f"content of {name}".encode()


def test_read_tail(folder: Folder) -> None:
    folder.put_new("ten", b"0123456789")
    folder.put_new("empty", b"")
    assert folder.read_tail("ten", 3) == b"789"
    assert folder.read_tail("ten", 30) == b"0123456789"
    assert folder.read_tail("empty", 3) == b""


def test_read_of_nothing_is_an_object_error(folder: Folder) -> None:
    fill(folder, "there")
    for read in (folder.read, folder.open_input, lambda name: folder.read_tail(name, 3)):
        with pytest.raises(ObjectMissingError, match="missing"):
            read("missing")


def test_open_input_gives_random_access(folder: Folder) -> None:
    table = pa.table({"a": range(20_000), "b": [secrets.token_hex(40)] * 20_000})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=5_000)
    folder.put_new("t.parquet", buffer.getvalue())
    with folder.open_input("t.parquet") as file:
        assert file.seek(-4, io.SEEK_END) == len(buffer.getvalue()) - 4
        assert file.read() == b"PAR1"
        assert pq.ParquetFile(file).read_row_group(2, columns=["a"])["a"].to_pylist() == list(range(10_000, 15_000))


def overwrite(uri: str, data: bytes) -> None:
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        s3_client.wait(s3_client.client().put_object(Bucket=bucket, Key=key, Body=data))
    else:
        Path(uri).write_bytes(data)


def test_read_object_refuses_one_that_changed(folder: Folder) -> None:
    fill(folder, "v.mp4")
    [stored] = folder.list()
    overwrite(stored.uri, b"other content")
    into = io.BytesIO()
    with pytest.raises(ObjectChangedError, match=re.escape(stored.uri)):
        read_object(stored.uri, etag=stored.etag, max_size_bytes=ANY_SIZE, into=into)
    assert into.getvalue() == b""


def test_read_object_refuses_one_that_is_gone_or_too_large(folder: Folder) -> None:
    fill(folder, "v.mp4")
    [stored] = folder.list()
    with pytest.raises(ObjectMissingError):
        read_object(stored.uri + "x", etag=stored.etag, max_size_bytes=ANY_SIZE, into=io.BytesIO())
    into = io.BytesIO()
    with pytest.raises(ObjectTooLargeError) as caught:
        read_object(stored.uri, etag=stored.etag, max_size_bytes=15, into=into)
    assert (caught.value.key, caught.value.value) == (stored.uri, 16)
    assert "15" in str(caught.value).replace(stored.uri, "")
    assert into.getvalue() == b""
    assert read_object(stored.uri, etag=stored.etag, max_size_bytes=16, into=into) == 16


def test_read_range_gives_a_part_of_what_was_listed(folder: Folder) -> None:
    folder.put_new("v.mp4", b"0123456789")
    [stored] = folder.list()
    assert read_range(stored.uri, etag=stored.etag, start=0, stop=10) == b"0123456789"
    assert read_range(stored.uri, etag=stored.etag, start=3, stop=4) == b"3"
    with pytest.raises(ObjectUnreadableError):
        read_range(stored.uri, etag=stored.etag, start=8, stop=12)
    with pytest.raises(ObjectUnreadableError):
        read_range(stored.uri, etag=stored.etag, start=10, stop=12)
    with pytest.raises(ObjectMissingError):
        read_range(stored.uri + "x", etag=stored.etag, start=0, stop=1)
    overwrite(stored.uri, b"9876543210")
    with pytest.raises(ObjectChangedError, match=re.escape(stored.uri)):
        read_range(stored.uri, etag=stored.etag, start=0, stop=1)


def test_check_writable_leaves_one_marker(folder: Folder) -> None:
    folder.check_writable()
    folder.check_writable()
    assert keys(folder) == [".raypipe"]


def test_check_writable_refuses_a_storage_that_overwrites(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "put_new", lambda *_: True)
    with pytest.raises(StorageError, match=r"If-None-Match: \*") as caught:
        folder.check_writable()
    assert caught.value.key == folder.uri


def test_a_folder_is_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Folder("videos/").uri == f"{tmp_path}/videos"
    assert Folder(f"file://{tmp_path}//videos").uri == f"{tmp_path}/videos"
    assert Folder("s3a://videos/a//b//").uri == "s3://videos/a//b"
    assert Folder("s3://videos").child("x") == Folder("s3://videos/").child("x") == "s3://videos/x"
    assert Folder("/").child("x") == "/x"


@pytest.mark.parametrize(
    "uri", ["memory://x", "gs://bucket/x", "simplecache::s3://bucket", "http://host/x", "s3://", ""]
)
def test_other_kinds_of_storage_are_refused_with_the_choices(uri: str) -> None:
    with pytest.raises(ConfigError, match="s3://BUCKET"):
        Folder(uri)
    if uri:
        with pytest.raises(ConfigError, match="s3://BUCKET"):
            list(list_videos(uri))


def test_put_replaces_and_delete_deletes(folder: Folder) -> None:
    folder.put("metrics.jsonl", b"one")
    folder.put("metrics.jsonl", b"one\ntwo")
    assert folder.read("metrics.jsonl") == b"one\ntwo"
    assert keys(folder) == ["metrics.jsonl"]
    folder.delete("metrics.jsonl")
    folder.delete("metrics.jsonl")
    assert keys(folder) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as caught:
        Folder(str(tmp_path / "file")).put("name", b"data")
    assert caught.value.key == f"{tmp_path}/file/name"
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
