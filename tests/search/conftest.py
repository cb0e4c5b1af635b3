from pathlib import Path

import pytest

from raypipe.config import IndexSettings
from raypipe.storage import Folder
from support.catalogues import Catalogue, make_catalogue


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    """Return 600 videos in five clusters."""
    return make_catalogue(600)


@pytest.fixture(scope="session")
def index_folder(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a whole version of the catalogue: flat, with 16 dimensions."""
    root = tmp_path_factory.mktemp("index")
    return catalogue.build(Folder(str(root / "index")), root / "work", settings=IndexSettings(dim=16))
