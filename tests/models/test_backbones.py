import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.models.backbones import Crops
from support.properties import examples

SIZE = 2


def videos_of(lengths: list[int]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (length, SIZE, SIZE, 3), dtype=np.uint8) for length in lengths]


@settings(max_examples=examples(200))
@given(lengths=st.lists(st.integers(0, 4), max_size=6), start=st.integers(0, 20), length=st.integers(0, 20))
def test_a_slice_is_that_of_all_frames_in_one_array(lengths: list[int], start: int, length: int) -> None:
    videos = videos_of(lengths)
    whole = np.concatenate([np.empty((0, SIZE, SIZE, 3), np.uint8), *videos])
    crops = Crops(videos, crop_size=SIZE)
    assert (len(crops), crops.shape, crops.ndim, crops.dtype) == (len(whole), whole.shape, whole.ndim, whole.dtype)
    assert np.array_equal(crops[start : start + length], whole[start : start + length])
    assert np.array_equal(crops[:], whole)


@pytest.mark.parametrize("span", [slice(0, 3), slice(1, 2), slice(3, 5), slice(4, None)])
def test_a_slice_of_one_video_is_no_copy(span: slice) -> None:
    videos = videos_of([3, 2])
    assert any(np.shares_memory(Crops(videos, crop_size=SIZE)[span], video) for video in videos)
