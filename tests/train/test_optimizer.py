"""What the optimizer decays, and the schedule of its learning rate."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.jobs.train.loop import make_optimizer, rate_at, set_rate
from raypipe.models.gpt2 import freeze
from support.tiny_models import tiny_classifier


def test_matrices_decay_and_nothing_else_does() -> None:
    model = tiny_classifier()
    freeze(model, "all_but_last_1")
    groups = make_optimizer(model, weight_decay=0.3).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        expected = 0.3 if parameter.ndim > 1 else 0.0
        assert decay.get(id(parameter)) == (expected if parameter.requires_grad else None), name
    assert sorted(set(decay.values())) == [0.0, 0.3]


def test_every_group_takes_the_rate() -> None:
    optimizer = make_optimizer(tiny_classifier(), weight_decay=0.3)
    set_rate(optimizer, 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


@given(num_steps=st.integers(1, 1000), warmup_fraction=st.floats(0, 0.99))
def test_the_rate_goes_up_in_a_line_and_then_down(num_steps: int, warmup_fraction: float) -> None:
    middles = [(step + 0.5) / num_steps for step in range(num_steps)]
    rates = [rate_at(middle, warmup_fraction=warmup_fraction) for middle in middles]
    up = sum(middle < warmup_fraction for middle in middles)
    assert rates[:up] == pytest.approx([middle / warmup_fraction for middle in middles[:up]])
    assert rates[up:] == sorted(rates[up:], reverse=True)
    assert all(0 < rate <= 1 for rate in rates)  # no step is wasted


def test_the_rate_falls_by_a_cosine() -> None:
    assert rate_at(0.1, warmup_fraction=0.1) == 1.0
    assert rate_at(0.55, warmup_fraction=0.1) == pytest.approx(0.5)
    assert rate_at(0.325, warmup_fraction=0.1) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert rate_at(1.0, warmup_fraction=0.1) == pytest.approx(0.0)
