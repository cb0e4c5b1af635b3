"""The probe: statistics of frames over time, and what each frame adds to a logit."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.models.frame_probe import NUM_STATISTICS, FrameProbe, ProbeFeatures, frame_statistics
from support.properties import examples

pytestmark = pytest.mark.usefixtures("one_thread")

DIM, NUM_LABELS = 5, 3
# One mask per video. Frames may be missing anywhere, but every video has at least one.
MASKS = st.integers(1, 9).flatmap(
    lambda longest: st.lists(
        st.lists(st.booleans(), min_size=longest, max_size=longest).filter(any), min_size=1, max_size=5
    )
)
FEATURES = st.sampled_from(sorted(NUM_STATISTICS))


def draw_frames(masks: list[list[bool]], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random frames ``[B, T, DIM]`` and the mask. The frames that are left out are huge."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.tensor(masks)
    frames = 3 * torch.randn(*mask.shape, DIM, generator=random) + 1
    return torch.where(mask[..., None], frames, 1e4), mask.long()


def statistics_of(frames: Any, times: Any) -> list[Any]:  # noqa: ANN401 - arrays
    """Compute the mean, the slope and the deviation of one video by definition."""
    mean, deviation = frames.mean(axis=0), frames.std(axis=0)
    if len(frames) == 1:
        return [mean, np.zeros(DIM), np.zeros(DIM)]
    covariance = np.array([np.cov(times, column, bias=True)[0, 1] for column in frames.T])
    return [mean, covariance / times.std(), deviation]


@settings(max_examples=examples(100))
@given(masks=MASKS, seed=st.integers(0, 99))
def test_statistics_are_those_of_the_frames_there_are(masks: list[list[bool]], seed: int) -> None:
    frames, mask = draw_frames(masks, seed)
    found = frame_statistics(frames, mask).numpy()
    assert found.shape == (len(masks), 3, DIM)
    for video, statistics in enumerate(found):
        times = np.flatnonzero(masks[video])
        expected = statistics_of(frames[video].double().numpy()[times], times)
        np.testing.assert_allclose(statistics, expected, atol=2e-4)


def test_one_frame_has_no_slope_and_no_deviation() -> None:
    frames, mask = draw_frames([[True, False, False], [False, False, True]], 0)
    _, slope, deviation = frame_statistics(frames, mask).unbind(dim=1)
    assert not slope.any()
    assert not deviation.any()


def test_a_slope_has_the_unit_of_the_embeddings_at_any_length() -> None:
    for num_frames in (2, 3, 40):
        ramp = torch.linspace(-1, 1, num_frames)[None, :, None]
        _, slope, deviation = frame_statistics(ramp, torch.ones(1, num_frames)).flatten().tolist()
        assert slope == pytest.approx(deviation, rel=1e-5)  # a straight line
        assert frame_statistics(-ramp, torch.ones(1, num_frames))[0, 1] == pytest.approx(-slope)


def probe_of(features: ProbeFeatures, seed: int) -> FrameProbe:
    """Return a probe with random weights and a random standardisation."""
    random = torch.Generator().manual_seed(seed)
    probe = FrameProbe(features, embedding_dim=DIM, num_labels=NUM_LABELS)
    for tensor in (*probe.parameters(), probe.mean):
        tensor.copy_(torch.randn(tensor.shape, generator=random))
    probe.std.copy_(0.5 + torch.rand(probe.std.shape, generator=random))
    return probe


@settings(max_examples=examples(100))
@given(masks=MASKS, seed=st.integers(0, 99), features=FEATURES, still=st.booleans())
def test_contributions_add_up_to_the_logit(
    masks: list[list[bool]], seed: int, features: ProbeFeatures, *, still: bool
) -> None:
    frames, mask = draw_frames(masks, seed)
    if still:  # every frame of a video is the same
        frames = frames[:, :1].expand(frames.shape).where(mask[..., None] > 0, 1e4)
    probe = probe_of(features, seed)
    labels = torch.arange(len(masks)) % NUM_LABELS
    found = probe.contributions(frames, mask, labels)
    assert found.shape == mask.shape
    assert not found[mask == 0].any()
    expected = probe(frames, mask)[torch.arange(len(masks)), labels]
    torch.testing.assert_close(found.sum(dim=1), expected, rtol=1e-4, atol=1e-3)


def test_contributions_of_a_mean_are_those_of_each_frame_alone() -> None:
    frames, mask = draw_frames([[True] * 4], 3)
    probe, label = probe_of("mean", 3), torch.tensor([1])
    one_by_one = torch.stack([probe(frames[:, [at]], mask[:, [at]])[0, 1] for at in range(4)])
    torch.testing.assert_close(probe.contributions(frames, mask, label)[0], one_by_one / 4)


def test_a_frame_far_from_the_mean_adds_to_the_deviation() -> None:
    frames = torch.zeros(1, 5, DIM)
    frames[0, 3] = 2
    probe = FrameProbe("mean_slope_std", embedding_dim=DIM, num_labels=NUM_LABELS)
    torch.nn.init.zeros_(probe.linear.weight)[:, 2 * DIM :] = 1
    torch.nn.init.zeros_(probe.linear.bias)
    (scores,) = probe.contributions(frames, torch.ones(1, 5), torch.tensor([0])).tolist()
    # The squared differences from the mean of 0.4 are 1.6² and four times 0.4².
    assert np.array(scores) / sum(scores) == pytest.approx([0.05, 0.05, 0.05, 0.8, 0.05])


def test_a_probe_is_never_trained_by_gradient_descent() -> None:
    assert not any(one.requires_grad for one in probe_of("mean", 0).parameters())
