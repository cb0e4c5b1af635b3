"""Label spreading: labels reach similar videos, and no other ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raypipe.models.label_spreading import neighbor_graph, spread_labels

UNKNOWN = -1


def two_groups(size: int) -> torch.Tensor:
    """Return ``size`` vectors near each of two directions."""
    noise = 0.1 * torch.randn((2 * size, 8), generator=torch.Generator().manual_seed(3))
    return noise + torch.eye(8)[:2].repeat_interleave(size, dim=0)


def test_one_label_per_group_reaches_the_whole_group() -> None:
    labels = torch.full((60,), UNKNOWN)
    labels[5], labels[40] = 1, 0
    found = spread_labels(neighbor_graph(two_groups(30), num_neighbors=5), labels, num_labels=3)
    assert found[:30].argmax(dim=1).tolist() == [1] * 30
    assert found[30:].argmax(dim=1).tolist() == [0] * 30


def test_a_video_that_no_label_reaches_may_have_any() -> None:
    far = torch.cat([torch.eye(8)[:2].repeat(3, 1), -torch.eye(8)[:1].repeat(4, 1)])
    graph = neighbor_graph(far, num_neighbors=2)
    found = spread_labels(graph, torch.tensor([0, 1, *[UNKNOWN] * 8]), num_labels=2)
    assert found[6:].flatten().tolist() == [0.5] * 8


@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 99))
def test_probabilities_add_up_and_ignore_the_order_of_videos(size: int, near: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn((size, 6), generator=random)
    labels = torch.randint(UNKNOWN, 3, (size,), generator=random)
    graph = neighbor_graph(inputs, num_neighbors=near)
    assert torch.allclose(graph.to_dense(), graph.to_dense().T, atol=1e-6)
    found = spread_labels(graph, labels, num_labels=3)
    assert found.sum(dim=1).tolist() == pytest.approx([1.0] * size, abs=1e-5)
    order = torch.randperm(size, generator=random)
    moved = spread_labels(neighbor_graph(inputs[order], num_neighbors=near), labels[order], num_labels=3)
    assert torch.allclose(moved, found[order], atol=1e-4)
