import fcntl
from pathlib import Path

import pytest

from raypipe.endpoint.index_watcher import IndexWatcher, cache_of
from raypipe.search.query import Query
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.served_index import put_index


def test_each_index_has_its_own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_of("s3://a/b", None).parent == tmp_path / "raypipe" / "index"
    assert cache_of("s3://a/b", None).name != cache_of("s3://a/c", None).name
    assert cache_of("s3://a/b", "/srv/cache").parent == Path("/srv/cache")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_of("s3://a/b", "~/x").parent == Path.home() / "x"
    assert cache_of("s3://a/b", None).parent == Path.home() / ".cache" / "raypipe" / "index"


def test_old_versions_do_not_fill_the_disk(bucket: str, tmp_path: Path) -> None:
    folder = Folder(bucket)
    live = IndexWatcher(Versions(folder), tmp_path / "cache", reload_seconds=1e6)
    put_index(folder, num_videos=20)
    live.start()
    first = live.live
    assert first is not None
    for seed in range(4):
        put_index(folder, num_videos=20, seed=seed)
        live.reload()
    kept = [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(kept) <= 4  # the newest three by id, and the live one
    assert live.live is not None
    assert live.live.version in kept
    assert len(first.index.recommend(Query(top_k=5)).results) == 5  # its files are open even if they were deleted
    locks = [path for path in (tmp_path / "cache").iterdir() if path.is_file()]
    assert len(locks) == len(kept)
    with locks[0].open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    live.close()
