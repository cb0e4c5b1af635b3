import secrets
from collections.abc import Iterator

import pytest

from raypipe.storage import Folder
from support.cluster.network import why_impossible
from support.cluster.nodes import RayCluster, ray_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Run a head and two workers that only this file's tests use."""
    if reason := why_impossible():
        pytest.skip(reason)
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture
def place(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Return an empty place in the cluster's bucket, which this process can access too."""
    for name, value in cluster.variables.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    return Folder(f"s3://videos/{secrets.token_hex(8)}")
