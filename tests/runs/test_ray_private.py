"""The private names of Ray that raypipe uses do what raypipe needs."""

import logging
import os
import socket
from pathlib import Path

import pytest
import ray.data
from ray._private import ray_constants
from ray._private.authentication import authentication_token_setup

from raypipe.runs import ray_private


def test_the_token_setup_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    name = "maybe_enable_token_auth_if_token_available"
    assert callable(getattr(authentication_token_setup, name))
    monkeypatch.setattr(authentication_token_setup, name, lambda: calls.append(True))
    ray_private.enable_token_authentication()
    assert calls == [True]
    assert authentication_token_setup.logger.name == authentication_token_setup.__name__


@pytest.fixture
def no_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


def is_private() -> bool:
    """Return whether Ray would listen on loopback. All names are restored afterwards."""
    before = ray_constants.ENABLE_RAY_CLUSTER, authentication_token_setup.generate_and_save_token, dict(os.environ)
    with ray_private.local_ray_is_private():
        inside = not ray_constants.ENABLE_RAY_CLUSTER
        assert (os.environ.get(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR) == "0") == inside
    after = ray_constants.ENABLE_RAY_CLUSTER, authentication_token_setup.generate_and_save_token, dict(os.environ)
    assert after == before
    return inside


@pytest.mark.usefixtures("no_address")
def test_a_new_ray_is_private() -> None:
    assert is_private()


@pytest.mark.usefixtures("no_address")
def test_a_ray_of_several_machines_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.1.2.3:6379")
    assert not is_private()
    monkeypatch.delenv("RAY_ADDRESS")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray/ray_current_cluster").write_text("10.1.2.3:6379")  # left by ``ray start``
    assert not is_private()


@pytest.mark.usefixtures("no_address")
@pytest.mark.parametrize(("host", "private"), [("127.0.0.1", True), ("", False)])  # "": on all interfaces
def test_a_running_ray_is_used_as_it_was_started(monkeypatch: pytest.MonkeyPatch, host: str, *, private: bool) -> None:
    with socket.create_server((host, 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        assert is_private() == private


def test_only_the_user_can_read_a_new_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    with ray_private.local_ray_is_private():
        authentication_token_setup.generate_and_save_token()
    path = tmp_path / ".ray/auth_token"
    assert path == ray_private.token_path() == authentication_token_setup._get_default_token_path()
    assert path.stat().st_mode & 0o777 == 0o600
    token = path.read_text()
    assert len(token) >= 64
    with ray_private.local_ray_is_private():
        authentication_token_setup.generate_and_save_token()  # as a second process at the same time
    assert path.read_text() == token
    assert list(path.parent.iterdir()) == [path]


def test_the_logger_of_ray_data_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("ray.data")
    monkeypatch.setattr(logger, "level", logging.INFO)
    ray_private.silence_data_logs()
    assert logger.level == logging.ERROR
    assert any(name.startswith("ray.data.") for name in logging.root.manager.loggerDict)


@pytest.mark.slow
def test_whole_blocks_are_mapped_on_a_gpu(ray_address: str) -> None:
    """If the public method accepts this one day, raypipe can use it instead."""

    class Step:
        def __call__(self, block: object) -> object:
            return block

    assert ray_address
    options = {"batch_size": None, "num_gpus": 1, "compute": ray.data.ActorPoolStrategy(size=1)}
    shards = ray.data.range(1)
    with pytest.raises(ValueError, match="batch_size"):
        shards.map_batches(Step, **options)
    assert isinstance(ray_private.map_whole_blocks(shards, Step, **options), ray.data.Dataset)
