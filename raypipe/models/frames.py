"""Videos of different lengths as one padded batch, and what a classifier says of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Frames = npt.NDArray[np.float16] | npt.NDArray[np.float32]  # [T, D]
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a classifier says of V videos."""

    probabilities: Array  # [V, C]: of one label each they add up to 1
    frame_scores: list[Array] | None  # V times [T]


@dataclass(frozen=True, slots=True)
class PaddedFrames:
    """B videos side by side, padded behind their end."""

    frames: torch.Tensor  # [B, T, D], the type of the videos'
    mask: torch.Tensor  # [B, T] int64: 1 where there is a frame
    kept: list[npt.NDArray[np.int64]]  # of each video the frames that are in the batch
    num_frames: list[int]  # of each video, with those that were left out

    def to(self, device: torch.device) -> "PaddedFrames":
        """The same on another device."""
        frames, mask = self.frames.to(device, non_blocking=True), self.mask.to(device, non_blocking=True)
        return PaddedFrames(frames, mask, self.kept, self.num_frames)

    def spread(self, rows: npt.NDArray[Any]) -> list[Array]:
        """Numbers for the frames of the batch ``[B, T]`` as numbers for all frames of each video, 0 where left out."""
        spread = []
        for row, kept, num_frames in zip(rows, self.kept, self.num_frames, strict=True):
            whole = np.zeros(num_frames, dtype=np.float32)
            whole[kept] = row[: len(kept)]
            spread.append(whole)
        return spread


def thin(num_frames: int, *, max_frames: int) -> npt.NDArray[np.int64]:
    """Which of a video's frames are taken: all, or ``max_frames`` spread evenly, the first and the last among them."""
    if num_frames <= max_frames:
        return np.arange(num_frames)
    return np.linspace(0, num_frames - 1, max_frames).round().astype(np.int64)


def pad_frames(videos: Sequence[Frames], *, max_frames: int) -> PaddedFrames:
    """Put videos ``[T, D]`` side by side, at least one, long ones thinned."""
    kept = [thin(len(video), max_frames=max_frames) for video in videos]
    longest = max(1, *(len(rows) for rows in kept))
    padded = np.zeros((len(videos), longest, videos[0].shape[1]), dtype=np.result_type(*videos))
    mask = np.zeros((len(videos), longest), dtype=np.int64)
    for at, (video, rows) in enumerate(zip(videos, kept, strict=True)):
        padded[at, : len(rows)] = video if len(rows) == len(video) else video[rows]
        mask[at, : len(rows)] = 1
    return PaddedFrames(torch.from_numpy(padded), torch.from_numpy(mask), kept, [len(video) for video in videos])


def by_length(lengths: Sequence[int], *, batch_size: int) -> list[list[int]]:
    """Positions in batches of videos of similar length, so that little is padded."""
    order = np.argsort(np.asarray(lengths), kind="stable").tolist()
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
