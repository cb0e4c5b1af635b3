import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.errors import IndexVersionError, ObjectMissingError, ObjectTooLargeError
from raypipe.search import versions as versions_module
from raypipe.search.versions import FILES, MANIFEST, Versions, new_version_id
from raypipe.storage import Folder, read_object, s3
from support.folders import keys
from support.properties import examples

SAID = {"num_videos": 3, "dim": 2, "embedding_dim": 4, "kind": "flat", "recall_at_10": 1.0, "columns": {"x": "string"}}


def put(folder: Folder, local: Path, *, sizes: Sequence[int] = (0, 7, 14, 21, 28)) -> str:
    """Put a version whose files hold these numbers of random bytes."""
    local.mkdir(parents=True, exist_ok=True)
    for name, size_bytes in zip(FILES, sizes, strict=True):
        (local / name).write_bytes(secrets.token_bytes(size_bytes))
    version = new_version_id()
    Versions(folder).put(version, local, SAID)
    return version


def test_a_version_is_fetched_as_it_was_put(folder: Folder, tmp_path: Path) -> None:
    versions = Versions(folder)
    assert (versions.current(), versions.list()) == (None, [])
    version = put(folder, tmp_path / "work")
    assert versions.current() is None  # a new version is not live yet
    assert versions.list() == [version]
    fetched = versions.fetch(version, tmp_path / "cache")
    for name in FILES:
        assert (fetched / name).read_bytes() == (tmp_path / "work" / name).read_bytes()
    manifest = json.loads((fetched / MANIFEST).read_bytes())
    assert manifest == versions.read_manifest(version)
    assert manifest == {**SAID, "format": 1, "id": version, "previous": None, "files": manifest["files"]}
    assert set(manifest["files"]) == set(FILES)
    assert keys(folder) == sorted(f"versions/{version}/{name}" for name in (*FILES, MANIFEST))
    versions.set_current(version)
    assert versions.current() == versions.require_current() == version
    assert folder.read("CURRENT") == f"{version}\n".encode()


def test_a_local_index_is_used_where_it_is(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "index"))
    version = put(folder, tmp_path / "work")
    assert Versions(folder).fetch(version, tmp_path / "cache") == tmp_path / "index" / "versions" / version
    assert not (tmp_path / "cache").exists()


def test_a_cached_version_is_not_downloaded_again(bucket: str, tmp_path: Path) -> None:
    folder = Folder(bucket)
    version = put(folder, tmp_path / "work")
    fetched = Versions(folder).fetch(version, tmp_path / "cache")
    for name in FILES:
        folder.delete(f"versions/{version}/{name}")
    assert Versions(folder).fetch(version, tmp_path / "cache") == fetched
    (fetched / FILES[2]).write_bytes(b"")
    with pytest.raises(IndexVersionError) as raised:  # the cached file fails its check, and the original is gone
        Versions(folder).fetch(version, tmp_path / "cache")
    assert isinstance(raised.value.__cause__, ObjectMissingError)


@pytest.mark.parametrize("kind", ["local", "s3"])
@settings(max_examples=examples(25))
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_changed_byte_is_seen(
    kind: str, name: str, place: float, change: int, request: pytest.FixtureRequest
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if kind == "s3":
            request.getfixturevalue("s3")
        folder = Folder(str(root / "index") if kind == "local" else f"s3://videos/{secrets.token_hex(8)}")
        version = put(folder, root / "work", sizes=[1, 7, 14, 21, 28])
        stored = f"versions/{version}/{name}"
        data = bytearray(folder.read(stored))
        data[int(place * len(data))] ^= change
        folder.put(stored, bytes(data))
        with pytest.raises(IndexVersionError) as raised:
            Versions(folder).fetch(version, root / "cache")
        error, put_ones = raised.value, Versions(folder).read_manifest(version)["files"]
        assert Path(error.key).name == name
        assert (error.value, error.expected) == (hashlib.sha256(data).hexdigest(), put_ones[name]["sha256"])
        assert error.remedy == versions_module.REMEDY
        assert not (root / "cache" / version).exists()


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_detected(folder: Folder, name: str, tmp_path: Path) -> None:
    version = put(folder, tmp_path / "work")
    folder.delete(f"versions/{version}/{name}")
    with pytest.raises(IndexVersionError) as raised:
        Versions(folder).fetch(version, tmp_path / "cache")
    if name == MANIFEST:
        assert (raised.value.key, raised.value.value) == (str(folder), version)
    else:
        assert raised.value.key == folder.child(f"versions/{version}/{name}")
        assert isinstance(raised.value.__cause__, ObjectMissingError | FileNotFoundError)
    assert str(raised.value).isprintable()
    with pytest.raises(IndexVersionError):
        Versions(folder).set_current(version)
    assert not folder.exists("CURRENT")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("more", [-1, 1])
def test_a_file_of_another_size_is_detected(folder: Folder, name: str, more: int, tmp_path: Path) -> None:
    version = put(folder, tmp_path / "work")
    stored = f"versions/{version}/{name}"
    data = folder.read(stored)
    changed = data + b"x" if more > 0 else data[:-1]
    folder.put(stored, changed)
    if changed == data:
        return  # an empty file cannot be cut
    with pytest.raises(IndexVersionError) as raised:
        Versions(folder).fetch(version, tmp_path / "cache")
    if isinstance(raised.value.__cause__, ObjectTooLargeError):  # noticed before the download
        assert raised.value.__cause__.value == len(changed)
    else:
        assert (raised.value.value, raised.value.expected) == (len(changed), len(data))
    with pytest.raises(IndexVersionError) as raised:
        Versions(folder).set_current(version)
    assert (raised.value.key, raised.value.remedy) == (folder.child(stored), versions_module.REMEDY)
    assert (raised.value.value, raised.value.expected) == (len(changed), len(data))


BAD_MANIFESTS: list[Callable[[dict[str, Any]], Any]] = [
    lambda _: "",
    lambda _: "[]",
    lambda _: "[" * 100_000,
    lambda said: json.dumps(said)[:-1],
    lambda said: {**said, "format": 2},
    lambda said: {**said, "id": "20240101T000000-00000000"},
    lambda said: {**said, "previous": "../x"},
    lambda said: {**said, "num_videos": 0},
    lambda said: {**said, "num_videos": "3"},
    lambda said: {key: value for key, value in said.items() if key != "dim"},
    lambda said: {**said, "files": []},
    lambda said: {**said, "files": {FILES[0]: said["files"][FILES[0]]}},
    lambda said: {**said, "files": {**said["files"], "../../x": {"size_bytes": 0, "sha256": "0" * 64}}},
    lambda said: {**said, "files": {**said["files"], "..": {"size_bytes": 0, "sha256": "0" * 64}}},
    lambda said: {**said, "files": {**said["files"], "/etc/passwd": {"size_bytes": 0, "sha256": "0" * 64}}},
    lambda said: {**said, "files": {**said["files"], "a\n": {"size_bytes": 0, "sha256": "0" * 64}}},
    lambda said: {**said, "files": {**said["files"], MANIFEST: {"size_bytes": 0, "sha256": "0" * 64}}},
    lambda said: {**said, "files": {**said["files"], "x": {"size_bytes": -1, "sha256": "0" * 64}}},
    lambda said: {**said, "files": {**said["files"], "x": {"size_bytes": 0, "sha256": "0" * 63}}},
]


@pytest.mark.parametrize("change", BAD_MANIFESTS)
def test_a_manifest_that_promises_nothing_is_refused(change: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "index"))
    version = put(folder, tmp_path / "work")
    bad = change(Versions(folder).read_manifest(version))
    folder.put(f"versions/{version}/{MANIFEST}", (bad if isinstance(bad, str) else json.dumps(bad)).encode())
    for ask in (Versions(folder).read_manifest, Versions(folder).set_current):
        with pytest.raises(IndexVersionError) as raised:
            ask(version)
        assert raised.value.key == folder.child(f"versions/{version}/{MANIFEST}")
        assert raised.value.remedy == versions_module.REMEDY
        assert str(raised.value).isprintable()
    with pytest.raises(IndexVersionError):
        Versions(folder).fetch(version, tmp_path / "cache")


@pytest.mark.parametrize(
    "version", ["", "..", "../x", "20240101T000000-0000000", "20240101T000000-00000000/..", "x" * 900]
)
def test_an_invalid_version_id_is_refused(version: str, tmp_path: Path) -> None:
    versions = Versions(Folder(str(tmp_path)))
    with pytest.raises(IndexVersionError) as raised:
        versions.fetch(version, tmp_path / "cache")
    assert (raised.value.key, raised.value.value) == (str(tmp_path / "versions"), version)
    assert len(str(raised.value)) < len(str(tmp_path)) + 300
    (tmp_path / "CURRENT").write_text(f"{version}\n")
    with pytest.raises(IndexVersionError) as raised:
        versions.current()
    assert (raised.value.key, raised.value.value) == (str(tmp_path / "CURRENT"), version)


def test_a_missing_version_is_reported_with_the_existing_ones(folder: Folder, tmp_path: Path) -> None:
    version = put(folder, tmp_path / "work")
    with pytest.raises(IndexVersionError) as raised:
        Versions(folder).read_manifest("20200101T000000-00000000")
    assert (raised.value.key, raised.value.value) == (str(folder), "20200101T000000-00000000")
    assert raised.value.choices == (version,)
    with pytest.raises(IndexVersionError) as raised:
        Versions(folder).require_current()
    assert raised.value.key == str(folder)
    assert "raypipe index" in raised.value.remedy


def test_rollback_goes_back_version_by_version(folder: Folder, tmp_path: Path) -> None:
    versions = Versions(folder)
    put_ones = []
    for number in range(3):
        put_ones.append(put(folder, tmp_path / str(number)))
        versions.set_current(put_ones[-1])
    assert versions.list() == sorted(put_ones)
    assert versions.rollback() == versions.current() == put_ones[1]
    assert versions.rollback() == versions.current() == put_ones[0]
    with pytest.raises(IndexVersionError) as raised:
        versions.rollback()
    assert raised.value.key == folder.child(f"versions/{put_ones[0]}/{MANIFEST}")
    assert raised.value.choices == tuple(sorted(put_ones[1:], reverse=True))
    after = put(folder, tmp_path / "after")
    versions.set_current(after)
    assert versions.rollback() == put_ones[0]  # the version that was live when it was put


def test_rollback_to_a_broken_version_leaves_the_live_one(folder: Folder, tmp_path: Path) -> None:
    versions = Versions(folder)
    first = put(folder, tmp_path / "1")
    versions.set_current(first)
    second = put(folder, tmp_path / "2")
    versions.set_current(second)
    folder.delete(f"versions/{first}/{FILES[3]}")
    with pytest.raises(IndexVersionError) as raised:
        versions.rollback()
    assert (raised.value.key, raised.value.value) == (folder.child(f"versions/{first}/{FILES[3]}"), None)
    assert versions.current() == second


def test_a_version_is_never_put_over_another(folder: Folder, tmp_path: Path) -> None:
    version = put(folder, tmp_path / "work")
    said = Versions(folder).put(version, tmp_path / "work", SAID)  # a retry after a lost reply
    assert said == Versions(folder).read_manifest(version)
    (tmp_path / "work" / FILES[2]).write_bytes(b"other")
    with pytest.raises(IndexVersionError) as raised:
        Versions(folder).put(version, tmp_path / "work", SAID)
    assert raised.value.key == folder.child(f"versions/{version}/{FILES[2]}")


def test_large_files_are_put_in_parts_and_never_read_whole(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (versions_module, s3):
        monkeypatch.setattr(module, "SINGLE_PUT_BYTES", 1_000)
    monkeypatch.setattr(s3, "PART_BYTES", 5_242_880)  # S3's minimum
    version = put(folder, tmp_path / "work", sizes=[10, 6_000_000, 1_000, 1_001, 0])
    fetched = Versions(folder).fetch(version, tmp_path / "cache")
    assert all((fetched / name).read_bytes() == (tmp_path / "work" / name).read_bytes() for name in FILES)


def test_a_killed_download_leaves_no_partial_version(bucket: str, tmp_path: Path) -> None:
    """The process is killed between two files; the next process starts over, whatever is in the cache."""
    version = put(Folder(bucket), tmp_path / "work")
    program = f"""
import os, pathlib, signal
from raypipe.search import versions
from raypipe.search.versions import Versions
from raypipe.storage import Folder, read_object
left = 2
def read(uri, **options):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_object(uri, **options)
versions.read_object = read
Versions(Folder({bucket!r})).fetch({version!r}, pathlib.Path({str(tmp_path / "cache")!r}))
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False, env=dict(os.environ), timeout=120)
    assert killed.returncode == -9
    assert not (tmp_path / "cache" / version).exists()
    assert (tmp_path / "cache" / f".{version}.tmp").exists()
    fetched = Versions(Folder(bucket)).fetch(version, tmp_path / "cache")
    assert sorted(path.name for path in fetched.iterdir()) == sorted([*FILES, MANIFEST])
    assert not (tmp_path / "cache" / f".{version}.tmp").exists()


def test_concurrent_fetches_download_once(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = put(Folder(bucket), tmp_path / "work")
    downloads: list[str] = []

    def read(uri: str, **options: Any) -> int:  # noqa: ANN401 - passed on
        downloads.append(uri)
        return read_object(uri, **options)

    monkeypatch.setattr(versions_module, "read_object", read)
    together = Barrier(4)

    def fetch(_: int) -> Path:
        together.wait()
        return Versions(Folder(bucket)).fetch(version, tmp_path / "cache")

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(fetch, range(4))) == {tmp_path / "cache" / version}
    assert len(downloads) == len(set(downloads)) == len(FILES)


def test_a_cache_that_cannot_be_written_is_one_line(bucket: str, tmp_path: Path) -> None:
    version = put(Folder(bucket), tmp_path / "work")
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(IndexVersionError) as raised:
        Versions(Folder(bucket)).fetch(version, tmp_path / "cache")
    assert raised.value.key == str(tmp_path / "cache" / version)
    assert str(raised.value).isprintable()


def test_a_file_that_changes_during_a_download_is_refused(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(bucket)
    version = put(folder, tmp_path / "work")

    def read(uri: str, **options: Any) -> int:  # noqa: ANN401 - passed on
        folder.put(uri.removeprefix(f"{folder.uri}/"), b"another")
        return read_object(uri, **options)

    monkeypatch.setattr(versions_module, "read_object", read)
    with pytest.raises(IndexVersionError) as raised:
        Versions(folder).fetch(version, tmp_path / "cache")
    assert (Path(raised.value.key).name, raised.value.remedy) == (FILES[0], versions_module.REMEDY)
    assert str(raised.value).isprintable()


def test_ids_sort_by_time_and_differ() -> None:
    ids = [new_version_id() for _ in range(200)]
    assert len(set(ids)) == 200
    assert all(re.fullmatch(r"\d{8}T\d{6}-[0-9a-f]{8}", version) for version in ids)
    assert [version[:15] for version in ids] == sorted(version[:15] for version in ids)
