"""The scores of GPT-2 for frames: what leaving out a frame changes, in a bounded number of passes."""

import numpy as np
import pytest
import torch

from raypipe.models.classifier import MAX_LEFT_OUT, pad_frames
from support.tiny_models import random_videos, tiny_classifier

LENGTHS = (1, 3, MAX_LEFT_OUT, MAX_LEFT_OUT + 1, 2 * MAX_LEFT_OUT + 5)


def logit_without(model: object, video: np.ndarray, label: int, left_out: range) -> float:
    padded = pad_frames([video], max_frames=200)
    mask = padded.mask.clone()
    mask[0, list(left_out)] = 0
    with torch.inference_mode():
        return float(model.order_logits(padded.frames, mask)[0, label])  # type: ignore[attr-defined]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_neighbors_of_a_long_video_are_left_out_together(batch_size: int) -> None:
    """Blocks depend on a video's own length, not on its batch, and share the difference evenly."""
    model = tiny_classifier(max_frames=200)
    videos = random_videos(LENGTHS)
    found = model.classify(videos, frame_scores=True, batch_size=batch_size)
    assert found.order_scores is not None
    for video, probabilities, scores in zip(videos, found.probabilities, found.order_scores, strict=True):
        label, size = int(probabilities.argmax()), -(-len(video) // MAX_LEFT_OUT)
        whole = logit_without(model, video, label, range(0))
        for start in (0, len(video) // 2 // size * size, (len(video) - 1) // size * size):
            block = range(start, min(start + size, len(video)))
            difference = whole - logit_without(model, video, label, block)
            assert scores[list(block)] == pytest.approx([difference / len(block)] * len(block), abs=1e-5)


def test_the_number_of_passes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, num_passes = tiny_classifier(max_frames=200), 0
    order_logits = model.order_logits

    def counted(*args: torch.Tensor, **kwargs: torch.Tensor | None) -> torch.Tensor:
        nonlocal num_passes
        num_passes += 1
        return order_logits(*args, **kwargs)

    monkeypatch.setattr(model, "order_logits", counted)
    model.classify(random_videos([200]), frame_scores=True)
    assert num_passes == MAX_LEFT_OUT + 2  # the label, and the logit with all frames
