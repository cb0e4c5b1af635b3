import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from helpers import Configure, Driver, StartDriver
from pydantic import BaseModel
from served_apps import Endpoint, Source, make_source, serve_config, served_here
from train_runs import Trained, embed_all, train_config, video_ids

from raypipe.batch import cluster
from raypipe.config import EmbedConfig, load_config
from raypipe.demo.s3_server import S3Server
from raypipe.storage import Folder

CHEAP = ("backbone.name=resnet18", "backbone.weights=random", "sampling.num_frames=2", "resources.concurrency=1")


@pytest.fixture(scope="session")
def ray_address(s3: S3Server) -> Iterator[str]:  # noqa: ARG001 - its workers inherit the server's variables
    """A real Ray of two processors, which this process and every driver that a test starts share."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    cluster.configure_data()
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def configure(ray_address: str) -> Configure:  # noqa: ARG001 - what is configured runs there
    """Make a cheap configuration of embed: ``configure(input, output, "key=value", …)``."""

    def make(input_uri: str, output_uri: str, *overrides: str, retry: str | None = None) -> EmbedConfig:
        values = {"input": input_uri, "output": output_uri, "retry": retry}
        return load_config(EmbedConfig, values=values, overrides=(*CHEAP, *overrides))

    return make


@pytest.fixture
def start_driver(ray_address: str, tmp_path: Path) -> Iterator[StartDriver]:
    """Start drivers; those that still run at the end are killed."""
    drivers: list[Driver] = []

    def start(config: BaseModel, *, job: str = "embed") -> Driver:
        drivers.append(Driver(job, config, ray_address, tmp_path / f"driver-{len(drivers)}.log"))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.kill()


@pytest.fixture(scope="session")
def trained(s3: S3Server, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:  # noqa: ARG001
    """One training on S3 that nothing disturbs, for the tests to look at and to hold others against."""
    place = Folder(f"s3://videos/{secrets.token_hex(8)}")
    embeddings, output = embed_all(Folder(place.child("embeddings")), video_ids()), Folder(place.child("model"))
    config = train_config(embeddings, output)
    driver = Driver("train", config, ray_address, tmp_path_factory.mktemp("train") / "driver.log")
    try:
        assert driver.wait() == 0, driver.log.read_text()
    finally:
        driver.kill()
    return Trained(config, embeddings, output, driver.log.read_text())


@pytest.fixture(scope="session")
def source(s3: S3Server, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Source:  # noqa: ARG001
    """An index in a bucket, of which a few videos are real."""
    return make_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def endpoint(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """That index on a real Ray Serve, with everything that it can do, for all tests to ask."""
    with served_here(serve_config(source, tmp_path_factory.mktemp("cache")), source) as endpoint:
        yield endpoint
