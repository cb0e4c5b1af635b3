"""The model that learns the order of frames: what its loss depends on, and that it can be learned."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from raypipe.models.pretraining import FrameOrderModel, backwards
from support.tiny_models import DIM, tiny_config


def mask_of(lengths: list[int]) -> torch.Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def tiny_frame_order() -> FrameOrderModel:
    torch.manual_seed(0)
    return FrameOrderModel(tiny_config(gpt2_reads="changes")).eval()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_backwards_twice_is_forwards(lengths: list[int]) -> None:
    mask = mask_of(lengths)
    frames = torch.arange(mask.numel()).reshape(mask.shape)[..., None] + torch.zeros(DIM)
    reverse = backwards(frames, mask)
    assert torch.equal(backwards(reverse, mask), frames)
    for row, length in enumerate(lengths):
        assert torch.equal(reverse[row, :length], frames[row, :length].flip(0))
        assert torch.equal(reverse[row, length:], frames[row, length:])


def test_a_loss_depends_on_its_own_frames_alone() -> None:
    model, mask = tiny_frame_order(), mask_of([5, 1, 3])
    frames = torch.randn((3, 5, DIM), generator=torch.Generator().manual_seed(1))
    hidden = torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
    losses = model(frames, mask, hidden).losses
    assert losses[1] == 0  # one frame has no order
    assert losses[0] > 0
    padded = torch.cat([torch.where(mask[..., None] > 0, frames, 7.0), torch.full((3, 2, DIM), -3.0)], dim=1)
    wider = [torch.nn.functional.pad(each, (0, 2)) for each in (mask, hidden)]
    assert torch.allclose(model(padded, *wider).losses, losses, atol=1e-5)
    assert torch.allclose(model(frames[2:], mask[2:], hidden[2:]).losses, losses[2:], atol=1e-5)


def test_the_direction_of_time_is_learned() -> None:
    """All videos drift along one direction, so that each tells how it is played."""
    model = tiny_frame_order().train()
    random = torch.Generator().manual_seed(2)
    drift = torch.linspace(-1, 1, 8)[:, None] * torch.ones(DIM)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    mask = torch.ones((16, 8), dtype=torch.long)
    history = []
    for _ in range(40):
        frames = drift + torch.randn((16, 1, DIM), generator=random)
        loss = model(frames, mask, torch.rand((16, 8), generator=random) < 0.5).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert sum(history[-10:]) / 10 < history[0] / 3
