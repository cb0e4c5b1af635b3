"""Removing the frames with the highest scores is compared with removing random frames."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from raypipe.evaluation.deletion import (
    FRACTIONS,
    MAX_FRAMES,
    MAX_VIDEOS,
    MIN_VIDEOS,
    Probabilities,
    deletion_curve,
    measure_deletion,
)
from raypipe.models.classifier import VideoClassifier, VideoClassifierConfig

NUM_FRAMES, DIM = 10, 4
Floats = npt.NDArray[np.floating]


def depends_on(keys: Sequence[int]) -> Probabilities:
    """Return a model of videos: its label is likely only while one frame of the video is kept."""
    return lambda kept: np.array([0.9 if mask[key] else 0.2 for mask, key in zip(kept, keys, strict=True)])


def some_keys(seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(NUM_FRAMES, size=50).tolist()


def test_right_scores_are_better_than_random_ones() -> None:
    keys = some_keys()
    curve = deletion_curve([np.eye(NUM_FRAMES)[key] for key in keys], depends_on(keys))
    assert curve.by_score == pytest.approx([0.9] + [0.2] * 9)
    assert curve.at_random == pytest.approx([0.9 - 0.7 * fraction for fraction in FRACTIONS], abs=0.1)
    assert curve.at_random == tuple(sorted(curve.at_random, reverse=True))
    area = np.trapezoid(np.subtract(curve.at_random, curve.by_score), FRACTIONS)
    assert curve.difference == pytest.approx(area)
    assert curve.is_better
    assert curve == deletion_curve([np.eye(NUM_FRAMES)[key] for key in keys], depends_on(keys))


def test_the_opposite_scores_are_worse() -> None:
    keys = some_keys()
    curve = deletion_curve([-np.eye(NUM_FRAMES)[key] for key in keys], depends_on(keys))
    assert curve.by_score == pytest.approx([0.9] * 10)
    assert curve.difference_high < 0
    assert not curve.is_better


@pytest.mark.parametrize(
    "score", [lambda random: random.normal(size=NUM_FRAMES), lambda _: np.zeros(NUM_FRAMES)], ids=["random", "equal"]
)
def test_scores_without_information_are_not_better(score: Callable[[np.random.Generator], Floats]) -> None:
    """An interval of 95 % is wrong in one direction for one seed of forty. The first frame would be a lucky guess."""
    num_better = 0
    for seed in range(20):
        random = np.random.default_rng(seed + 100)
        curve = deletion_curve([score(random) for _ in range(50)], depends_on([0] * 50), seed=seed)
        num_better += curve.is_better
    assert num_better <= 2


def test_one_frame_is_always_kept() -> None:
    def at_least_one(kept: Sequence[npt.NDArray[np.bool_]]) -> Floats:
        assert all(mask.any() for mask in kept)
        return np.array([mask.mean() for mask in kept])

    curve = deletion_curve([np.arange(length, dtype=float) for length in (1, 2, 3, 30)], at_least_one)
    assert curve.by_score[0] == 1
    assert curve.by_score == pytest.approx(curve.at_random)  # the model counts frames
    assert not curve.is_better


def sensitive_model(*, dim: int = DIM, max_frames: int = 256) -> VideoClassifier:
    """Return a probe whose second label depends on the sum of the first numbers of the frames."""
    config = VideoClassifierConfig(
        embedding_dim=dim,
        probe="mean",
        has_gpt2=False,
        max_frames=max_frames,
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
        problem_type="single_label_classification",
    )
    model = VideoClassifier(config)
    model.load_state_dict(
        {
            "probe.mean": torch.zeros(dim),
            "probe.std": torch.ones(dim),
            "probe.linear.weight": torch.tensor([[0.0] * dim, [3.0] + [0.0] * (dim - 1)]),
            "probe.linear.bias": torch.zeros(2),
        }
    )
    return model


def videos_with_one_bright_frame(num_videos: int, num_frames: int = 8) -> list[npt.NDArray[np.float16]]:
    random = np.random.default_rng(0)
    videos = []
    for _ in range(num_videos):
        video = random.normal(size=(num_frames, DIM)).astype(np.float16)
        video[:, 0] = 0
        video[random.integers(num_frames), 0] = num_frames
        videos.append(video)
    return videos


def test_a_model_that_depends_on_one_frame() -> None:
    curve = measure_deletion(sensitive_model(), [*videos_with_one_bright_frame(20), np.ones((1, DIM), np.float16)])
    assert curve is not None
    assert (curve.num_videos, curve.is_better) == (20, True)
    assert curve.by_score[0] == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-3)
    assert curve.by_score[2] == pytest.approx(0.5, abs=1e-3)  # the bright frame is gone
    assert curve.at_random[2] > 0.7


def test_too_few_videos_are_not_measured() -> None:
    videos = videos_with_one_bright_frame(MIN_VIDEOS - 1)
    assert measure_deletion(sensitive_model(), [*videos, np.ones((1, DIM), np.float16)]) is None


def test_the_cost_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many long videos: at most MAX_VIDEOS of MAX_FRAMES frames, 38 times."""
    model, num_frames = sensitive_model(), 0
    forward = model.probe.forward

    def counted(frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        nonlocal num_frames
        num_frames += mask.numel()
        return forward(frames, mask)

    monkeypatch.setattr(model.probe, "forward", counted)
    curve = measure_deletion(model, videos_with_one_bright_frame(MAX_VIDEOS + 50, MAX_FRAMES + 5))
    assert curve is not None
    assert curve.num_videos == MAX_VIDEOS
    assert num_frames == MAX_VIDEOS * MAX_FRAMES * 38
