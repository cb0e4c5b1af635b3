from collections.abc import Iterator

import pytest

from raypipe.config.serve import LimitsConfig
from raypipe.endpoint.index_watcher import IndexWatcher
from raypipe.endpoint.uploads import Prefixes
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.routes import Ask, FakeEmbedder, fake_classify, serve
from support.served_index import make_items, put_index

NEVER_SECONDS = 1e6


@pytest.fixture(scope="session")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return a local index of one version; no test changes it."""
    folder = Folder(str(tmp_path_factory.mktemp("index")))
    put_index(folder)
    return folder


@pytest.fixture(scope="session")
def live_index(index_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[IndexWatcher]:
    """Serve that index and never poll CURRENT."""
    cache = tmp_path_factory.mktemp("cache")
    live = IndexWatcher(Versions(index_folder), cache, reload_seconds=NEVER_SECONDS)
    live.start()
    yield live
    live.close()


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture
def ask(live_index: IndexWatcher, embedder: FakeEmbedder) -> Ask:
    """Return a function that queries a server with every feature."""
    limits = LimitsConfig(max_history=10, max_batch=4)
    prefixes = Prefixes(["s3://videos/open"])
    return serve(live_index, limits=limits, prefixes=prefixes, embedder=embedder, classify=fake_classify)


@pytest.fixture
def ids() -> list[str]:
    found: list[str] = make_items(200)[0]["video_id"].to_pylist()
    return found
