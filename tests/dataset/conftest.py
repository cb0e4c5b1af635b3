import shutil
from pathlib import Path

import pytest

from raypipe.storage import Folder
from support.embed_outputs import make_output


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    make_output(Folder(str(folder)))
    return folder / "out"


@pytest.fixture
def output(template: Path, tmp_path: Path) -> Folder:
    """Return a sealed output to corrupt: a copy with the same modification times, which are its etags."""
    shutil.copytree(template, tmp_path / "out")
    return Folder(str(tmp_path / "out"))
