import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from raypipe.demo.s3_server import S3Server, local_s3
from raypipe.storage import Folder

ASSETS = Path(__file__).parents[1].parent / "shared" / "assets"


@pytest.fixture(scope="module", autouse=True)
def _priority() -> Iterator[None]:
    """No test changes how this process is scheduled: at real-time priority it starves Ray and all others."""
    before = os.sched_getscheduler(0)
    yield
    assert os.sched_getscheduler(0) == before, "a test of this file changed the scheduling policy"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with the bucket ``videos``; the AWS environment points at it, and at nothing else."""
    with pytest.MonkeyPatch.context() as patch, local_s3(tmp_path_factory.mktemp("s3")) as server:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, os.devnull)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def bucket(s3: S3Server) -> str:  # noqa: ARG001 - the server must run
    """The URI of an empty place on the server."""
    return f"s3://videos/{secrets.token_hex(8)}"


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder: a test that takes it runs once on each kind of storage."""
    uri = str(tmp_path / "folder") if request.param == "local" else request.getfixturevalue("bucket")
    return Folder(uri)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks of a few numbers are slower on several processors than on one, by far where those are busy."""
    import torch  # noqa: PLC0415 - few tests need it

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of test videos beside the checkout."""
    if not ASSETS.is_dir():
        pytest.skip(f"no test videos at {ASSETS}")
    return ASSETS
