"""The served index follows CURRENT, and survives any content of CURRENT."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raypipe.endpoint.index_watcher import IndexWatcher
from raypipe.errors import IndexVersionError, StorageError
from raypipe.search.query import Query
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.processes import wait_until
from support.served_index import damage, put_index

Start = Callable[..., IndexWatcher]


@pytest.fixture
def start(folder: Folder, tmp_path: Path) -> Iterator[Start]:
    """Return a function that serves the index in ``folder``."""
    started: list[IndexWatcher] = []

    def make(*, reload_seconds: float = 1e6) -> IndexWatcher:
        started.append(IndexWatcher(Versions(folder), tmp_path / "cache", reload_seconds=reload_seconds))
        started[-1].start()
        return started[-1]

    yield make
    for one in started:
        one.close()


def version_of(index: IndexWatcher) -> str:
    assert index.live is not None
    assert len(index.live.index.recommend(Query(top_k=3)).results) == 3
    return index.live.version


def test_a_new_version_is_noticed_and_the_old_one_stays_usable(folder: Folder, start: Start) -> None:
    first = put_index(folder)
    index = start(reload_seconds=0.01)
    held = index.live
    assert held is not None
    assert held.version == first
    second = put_index(folder, num_videos=50, seed=1)
    wait_until(lambda: index.live is not held, what="the second version")
    assert version_of(index) == second
    assert index.broken is None
    query = Query(history=("x",), top_k=5)
    assert len(held.index.recommend(query).results) == 5
    assert held.num_videos == 200


def test_reload_loads_a_new_version_at_once(folder: Folder, start: Start) -> None:
    first = put_index(folder)
    index = start()
    loaded: list[str] = []
    index.on_load = lambda live: loaded.append(live.version)
    live, changed = index.reload()
    assert (live.version, changed) == (first, False)
    second = put_index(folder, seed=1)
    assert version_of(index) == first
    live, changed = index.reload()
    assert (live.version, changed) == (second, True)
    assert version_of(index) == second
    assert loaded == [second]


@pytest.mark.parametrize("name", ["index.faiss", "items.parquet", "manifest.json", "vectors.npy"])
def test_a_broken_version_leaves_the_old_one(folder: Folder, start: Start, name: str) -> None:
    first = put_index(folder)
    index = start(reload_seconds=0.01)
    second = put_index(folder, seed=1, live=False)
    damage(folder, second, name)
    folder.put("CURRENT", second.encode())
    wait_until(lambda: index.broken, what="the broken version")
    assert index.broken is not None
    assert index.broken["version"] == second
    assert "\n" not in index.broken["error"]
    assert version_of(index) == first
    with pytest.raises(IndexVersionError) as caught:
        index.reload()
    assert name in caught.value.key
    assert caught.value.remedy
    assert version_of(index) == first
    assert index.rollback().version == first
    assert index.broken is None
    assert Versions(folder).current() == first
    third = put_index(folder, seed=2)
    wait_until(lambda: version_of(index) == third, what="the third version")
    assert index.broken is None


def test_a_broken_version_is_not_loaded_again_and_again(
    folder: Folder, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    current, fetch = Versions.current, Versions.fetch
    monkeypatch.setattr(Versions, "current", lambda self: asked.append("current") or current(self))
    monkeypatch.setattr(Versions, "fetch", lambda self, *given: asked.append("fetch") or fetch(self, *given))
    put_index(folder)
    index = start(reload_seconds=0.01)
    second = put_index(folder, seed=1, live=False)
    damage(folder, second)  # before the server polls
    Versions(folder).set_current(second)
    wait_until(lambda: index.broken, what="the broken version")
    asked.clear()
    wait_until(lambda: asked.count("current") > 3, what="more polls")
    assert "fetch" not in asked
    with pytest.raises(IndexVersionError):
        index.reload()
    assert asked.count("fetch") == 1  # an explicit reload tries it again


def test_current_may_hold_nonsense(folder: Folder, start: Start) -> None:
    first = put_index(folder)
    index = start(reload_seconds=0.01)
    folder.put("CURRENT", b"../../etc\n")
    wait_until(lambda: index.broken, what="the broken CURRENT")
    assert version_of(index) == first
    assert index.rollback().version == first
    assert Versions(folder).current() == first
    assert index.broken is None


def test_a_start_with_a_broken_current_serves_the_newest_complete_version(folder: Folder, start: Start) -> None:
    versions = [put_index(folder, seed=seed) for seed in range(4)]
    for version in versions[2:]:
        damage(folder, version)
    index = start()
    assert version_of(index) == versions[1]
    assert index.broken is not None
    assert index.broken["version"] == versions[3]
    index.rollback()
    assert Versions(folder).current() == versions[1]


def test_rollback_goes_back_for_everyone(folder: Folder, start: Start) -> None:
    first, second = put_index(folder), put_index(folder, seed=1)
    index, other = start(), start(reload_seconds=0.01)
    assert version_of(index) == second
    assert index.rollback().version == first
    assert version_of(index) == first
    wait_until(lambda: version_of(other) == first, what="the other to follow")
    with pytest.raises(IndexVersionError) as caught:
        index.rollback()
    assert first in caught.value.key
    assert caught.value.choices == (second,)
    assert version_of(index) == first


def test_without_an_index_it_waits_for_one(folder: Folder, start: Start) -> None:
    index = start(reload_seconds=0.01)
    assert index.live is None
    assert index.broken is None
    with pytest.raises(IndexVersionError) as caught:
        index.reload()
    assert caught.value.key == "CURRENT"
    assert "raypipe index" in caught.value.remedy
    version = put_index(folder)
    wait_until(lambda: index.live, what="the first version")
    assert version_of(index) == version


def test_a_failing_storage_is_polled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path / "index"))
    first = put_index(folder)
    index = IndexWatcher(Versions(folder), tmp_path / "cache", reload_seconds=0.01)
    index.start()
    try:
        with monkeypatch.context() as patch:

            def refuse(_: Versions) -> str:
                msg = "no such host"
                raise StorageError(msg)

            patch.setattr(Versions, "current", refuse)
            wait_until(lambda: index.num_failed_polls > 1, what="two polls")
            assert index.broken is None
            assert version_of(index) == first
        second = put_index(folder, seed=1)
        wait_until(lambda: version_of(index) == second, what="the next version")
        index.check()
    finally:
        index.close()
    with pytest.raises(RuntimeError, match="CURRENT"):
        index.check()
