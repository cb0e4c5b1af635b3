"""The private names of Ray that raypipe uses do what raypipe needs."""

import logging

import pytest
import ray.data
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
