"""A grid of trainings, as configurations."""

import pytest

from raypipe.config import Gpt2Size, TrainConfig, load_config
from raypipe.errors import ConfigError
from raypipe.jobs.train.tuning import MAX_TRIALS, grid

GIVEN = {"embeddings": "/e", "labels": "/l.csv", "output": "/o"}


def config(**search: list[object]) -> TrainConfig:
    return load_config(TrainConfig, values={**GIVEN, "search": {key.replace("__", "."): search[key] for key in search}})


def test_a_grid_is_every_combination_in_a_folder_of_its_own() -> None:
    points = grid(config(optimizer__learning_rate=[1e-3, 2e-3], model__gpt2=["gpt2", {"n_layer": 1}], seed=[0, 1, 2]))
    assert len(points) == 12
    assert len({point.config.output for point in points}) == 12
    assert points[0].config.output == "/o/trials/000"
    found = {(p.config.optimizer.learning_rate, str(p.config.model.gpt2), p.config.seed) for p in points}
    assert len(found) == 12
    assert points[-1].config.model.gpt2 == Gpt2Size(n_layer=1)
    assert points[-1].settings == {"optimizer.learning_rate": 2e-3, "model.gpt2": {"n_layer": 1}, "seed": 2}
    assert all(not point.config.search for point in points)


def test_a_key_below_sizes_changes_that_size_alone() -> None:
    points = grid(config(model__gpt2__n_layer=[1, 3]))
    assert [point.config.model.gpt2 for point in points] == [Gpt2Size(n_layer=1), Gpt2Size(n_layer=3)]


@pytest.mark.parametrize(
    ("search", "key", "value"),
    [
        ({"optimizer__epochs": [0]}, "optimizer.epochs", 0),
        ({"optimizer__epoch": [3]}, "optimizer.epoch", "optimizer.epoch"),
        ({"seed__x": [3]}, "seed.x", 0),
        ({"seed": list(range(MAX_TRIALS + 1))}, "search", 257),
    ],
)
def test_a_grid_that_cannot_be_trained_is_refused(search: dict[str, list[object]], key: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        grid(config(**search))
    assert (caught.value.key, caught.value.value) == (key, value)


@pytest.mark.parametrize(
    ("search", "key"),
    [({"data__cache_bytes": [1]}, "'data.cache_bytes'"), ({"seed": []}, "'seed'")],
)
def test_a_search_that_makes_no_sense_is_refused(search: dict[str, list[object]], key: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        config(**search)
    assert caught.value.key == "search"
