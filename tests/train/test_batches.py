"""A worker's samples: each once per pass and in one batch per epoch, whether or not they fit into memory."""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.jobs.train.batches import Collective, WorkerSamples, epoch_batches
from raypipe.jobs.train.classifier.video_task import FramesWindow, moments
from support.properties import examples
from support.tiny_models import DIM, random_videos
from support.train_loops import block_of, read_of


def counted(blocks: list[pa.Table]) -> tuple[Callable[[], Iterable[pa.Table]], list[int]]:
    """Return a reader of blocks, and a list that grows by one with each read."""
    reads: list[int] = []

    def read() -> Iterable[pa.Table]:
        reads.append(1)
        return iter(blocks)

    return read, reads


def assert_holds(window: FramesWindow, videos: list[npt.NDArray[np.float16]], numbers: list[int]) -> None:
    assert window.index == numbers
    assert [frames.tolist() for frames in window.frames] == [videos[number].tolist() for number in numbers]
    assert [targets.tolist() for targets in window.targets] == [[number % 3] for number in numbers]


@settings(max_examples=examples(30))
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=9), data=st.data())
def test_a_window_copies_what_any_slice_of_a_block_holds(lengths: list[int], data: st.DataObject) -> None:
    videos = random_videos(lengths)
    whole = block_of(videos)
    start = data.draw(st.integers(0, len(videos)))
    stop = data.draw(st.integers(start, len(videos)))
    window = FramesWindow()
    window.add(whole.slice(start, stop - start))
    assert_holds(window, videos, list(range(start, stop)))
    assert window.size_bytes == sum(videos[at].nbytes for at in range(start, stop))
    assert all(frames.dtype == np.float16 for frames in window.frames)


def test_a_window_takes_blocks_of_several_chunks() -> None:
    videos = random_videos([2, 1, 3, 2])
    whole = block_of(videos)
    window = FramesWindow()
    window.add(pa.concat_tables([whole.slice(2, 2), whole.slice(0, 1)]))
    window.add(whole.slice(1, 1))
    window.sort()
    assert_holds(window, videos, [0, 1, 2, 3])


def test_several_targets_and_none_are_kept() -> None:
    window = FramesWindow()
    window.add(block_of(random_videos([1, 2, 1]), targets=[[2, 5], [], [0]]))
    assert [targets.tolist() for targets in window.targets] == [[2, 5], [], [0]]
    assert all(targets.dtype == np.int64 for targets in window.targets)


@settings(max_examples=examples(40))
@given(
    lengths=st.lists(st.integers(1, 6), max_size=20),
    rows=st.integers(1, 5),
    cache_bytes=st.sampled_from([1, 100, 300, 10**6]),
)
def test_a_pass_gives_every_sample_once_whatever_fits(lengths: list[int], rows: int, cache_bytes: int) -> None:
    videos = random_videos(lengths)
    read, reads = counted([block_of(videos).slice(at, rows) for at in range(0, len(videos), rows)])
    samples = WorkerSamples(read, empty=FramesWindow, cache_bytes=cache_bytes)
    passes = [[window.index for window in samples.windows()] for _ in range(3)]
    for windows in passes:
        assert sorted(number for index in windows for number in index) == list(range(len(videos)))
    assert passes[0] == passes[1] == passes[2]
    assert len(reads) == (1 if len(passes[0]) == 1 else 3)
    if cache_bytes == 10**6:
        assert len(passes[0]) == 1


def test_a_window_ends_when_it_is_full() -> None:
    videos = random_videos([5] * 8)
    samples = WorkerSamples(read_of(videos, rows=1), empty=FramesWindow, cache_bytes=3 * videos[0].nbytes)
    assert [window.index for window in samples.windows()] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_what_is_kept_is_the_same_in_whatever_order_it_came() -> None:
    videos = random_videos([1, 2, 3, 4])
    readers = [read_of(videos, numbers=numbers, rows=1) for numbers in ([0, 1, 2, 3], [2, 0, 3, 1])]
    (first,), (other,) = (
        list(WorkerSamples(read, empty=FramesWindow, cache_bytes=10**6).windows()) for read in readers
    )
    assert first.index == other.index == [0, 1, 2, 3]
    assert [frames.tolist() for frames in first.frames] == [frames.tolist() for frames in other.frames]


class OtherWorkers(Collective):
    """Workers of which another one reports this number."""

    def __init__(self, said: float) -> None:
        super().__init__(device=torch.device("cpu"))
        self._said = said

    def max(self, number: float) -> float:
        return max(number, self._said)


@pytest.mark.parametrize(("other_must_read", "reads_after"), [(False, 1), (True, 2)])
def test_samples_are_kept_only_where_all_workers_keep_theirs(other_must_read: bool, reads_after: int) -> None:  # noqa: FBT001
    read, reads = counted([block_of(random_videos([1, 2]))])
    samples = WorkerSamples(read, empty=FramesWindow, cache_bytes=10**6)
    for _ in range(2):
        assert sum(len(window.index) for window in samples.windows()) == 2
        samples.settle(OtherWorkers(float(other_must_read)))
    assert len(reads) == reads_after


def test_moments_are_those_of_all_frames() -> None:
    videos = random_videos([3, 1, 4])
    sums, num_frames = moments(WorkerSamples(read_of(videos, rows=2), empty=FramesWindow, cache_bytes=1), DIM)
    together = np.concatenate(videos).astype(np.float64)
    assert num_frames == 8
    np.testing.assert_allclose(sums, [together.sum(axis=0), (together**2).sum(axis=0)])


EPOCH = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 30), max_size=300),
        "batch_size": st.integers(1, 5),
        "seed": st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)),
    }
)


def batches_of(
    lengths: list[int], batch_size: int, seed: tuple[int, ...], seen: npt.NDArray[np.bool_] | None = None
) -> list[list[int]]:
    index = [7 * number % 1009 for number in range(len(lengths))]  # "seen" holds sample numbers, not positions
    flags = np.zeros(1009, dtype=bool) if seen is None else seen
    found = epoch_batches(index, lengths, batch_size=batch_size, seed=seed, seen=flags)
    return [[index[at] for at in batch] for batch in found]


@given(epoch=EPOCH, data=st.data())
def test_an_epoch_holds_every_unseen_sample_once_and_resumes_where_it_stopped(
    epoch: dict[str, object], data: st.DataObject
) -> None:
    whole = batches_of(**epoch)  # type: ignore[arg-type]
    lengths, batch_size = epoch["lengths"], epoch["batch_size"]
    assert isinstance(lengths, list)
    assert isinstance(batch_size, int)
    assert sorted(number for batch in whole for number in batch) == sorted(7 * n % 1009 for n in range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in whole)
    assert len(whole) == -(-len(lengths) // batch_size)
    done = data.draw(st.integers(0, len(whole)))
    seen = np.zeros(1009, dtype=bool)
    seen[[number for batch in whole[:done] for number in batch]] = True
    assert batches_of(**epoch, seen=seen) == whole[done:]  # type: ignore[arg-type]


@given(seen=st.lists(st.booleans(), min_size=40, max_size=40))
def test_samples_already_seen_are_not_seen_again(seen: list[bool]) -> None:
    flags = np.array(seen)
    found = epoch_batches(range(40), [1] * 40, batch_size=4, seed=[0], seen=flags)
    assert sorted(np.concatenate([[], *found]).tolist()) == np.flatnonzero(~flags).tolist()


def test_epochs_windows_and_seeds_differ() -> None:
    lengths = list(range(1, 25)) * 4
    orders = {
        str(batches_of(lengths, 4, (seed, epoch, number))) for seed in (0, 1) for epoch in (0, 1) for number in (0, 1)
    }
    assert len(orders) == 8


def test_little_is_padded() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 400)
    found = epoch_batches(range(400), lengths.tolist(), batch_size=8, seed=[0], seen=np.zeros(400, dtype=bool))
    padded = sum(len(batch) * lengths[batch].max() for batch in found)
    assert padded < 1.1 * lengths.sum()
