"""A share of each label is held out: never none, never all, and always the same."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import ConfigError
from raypipe.jobs.train.inputs import stratified

NAMES = [f"label {number}" for number in range(9)]
COUNTS = st.lists(st.integers(2, 40), min_size=1, max_size=9)
FRACTION = st.floats(0.01, 0.99)
SEED = st.integers(0, 2**40)


def one_each(counts: list[int], *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return a label for each video, in random order."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def split(
    videos: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], *, fraction: float = 0.1, seed: int = 0
) -> npt.NDArray[np.bool_]:
    return stratified(videos, labels, fraction=fraction, seed=seed, names=NAMES)


@given(counts=COUNTS, fraction=FRACTION, seed=SEED)
def test_each_label_is_in_both_splits_and_its_share_is_right(counts: list[int], fraction: float, seed: int) -> None:
    labels = one_each(counts)
    held_out = split(np.arange(len(labels)), labels, fraction=fraction, seed=seed)
    for label, count in enumerate(counts):
        number = held_out[labels == label].sum()
        assert 1 <= number < count
        assert abs(number - fraction * count) < 1 or number in {1, count - 1}


@given(counts=COUNTS, fraction=FRACTION, seed=SEED)
def test_the_same_seed_gives_the_same_split(counts: list[int], fraction: float, seed: int) -> None:
    labels = one_each(counts)
    videos = np.arange(len(labels))
    first, again = (split(videos, labels, fraction=fraction, seed=seed) for _ in range(2))
    assert (first == again).all()


def test_the_order_of_the_pairs_does_not_matter() -> None:
    videos, labels = pairs([{at % 3, at % 4} for at in range(40)])
    order = np.random.default_rng(0).permutation(len(videos))
    assert (split(videos, labels) == split(videos[order], labels[order])).all()


def test_another_seed_gives_another_split() -> None:
    labels = one_each([50, 50])
    splits = {tuple(split(np.arange(100), labels, seed=seed)) for seed in range(5)}
    assert len(splits) == 5


def test_every_video_may_be_held_out() -> None:
    labels = one_each([3, 5])
    seen = np.any([split(np.arange(8), labels, seed=seed) for seed in range(60)], axis=0)
    assert seen.all()


def test_a_fraction_of_zero_holds_nothing_out() -> None:
    assert not split(np.arange(3), np.array([0, 1, 2]), fraction=0.0).any()


def test_a_label_of_one_video_is_refused_by_name() -> None:
    with pytest.raises(ConfigError) as caught:
        split(np.arange(4), np.array([0, 1, 0, 0]))
    assert (caught.value.key, caught.value.value) == ("label", "label 1")
    assert "data.validation_fraction=0" in caught.value.remedy


def pairs(several: list[set[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return pairs of video and label numbers from the labels of each video."""
    found = [(video, label) for video, labels in enumerate(several) for label in sorted(labels)]
    videos, labels = np.array(found, dtype=np.int64).T
    return videos, labels


def test_a_label_that_is_the_rarest_of_one_video_alone_is_no_label_of_one_video() -> None:
    # Label 0 has three videos, but it is the rarest label of only one of them.
    several = [{0, 1}, {0, 2}, {0, 3}, {1, 3}, {2, 3}, {3}, {3}, {3}]
    videos, labels = pairs(several)
    held_out = split(videos, labels, fraction=0.25)
    assert 0 < held_out.sum() < len(several)


@given(
    several=st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=10, max_size=80),
    fraction=st.floats(0.05, 0.5),
    seed=SEED,
)
def test_of_several_labels_each_the_share_of_the_rarest_is_right(
    several: list[set[int]], fraction: float, seed: int
) -> None:
    several += [{label} for label in range(5) for _ in range(2)]
    videos, labels = pairs(several)
    held_out = split(videos, labels, fraction=fraction, seed=seed)
    assert 0 < held_out.sum() < len(several)
    counts = np.bincount(labels)
    rarest = int(counts.argmin())
    number = held_out[videos[labels == rarest]].sum()
    assert 1 <= number < counts[rarest]
    assert abs(number - fraction * counts[rarest]) < 1


def test_of_several_labels_each_about_the_fraction_is_held_out() -> None:
    random = np.random.default_rng(0)
    several = [set(random.choice(9, size=3, replace=False).tolist()) for _ in range(600)]
    videos, labels = pairs(several)
    held_out = split(videos, labels, fraction=0.1)
    assert 0.08 < held_out.mean() < 0.12
    shares = [held_out[videos[labels == label]].mean() for label in range(9)]
    assert min(shares) > 0.07
    assert max(shares) < 0.16
