"""How fast a run is going just now, and how long it will take."""

from collections import deque

from raypipe.records import RunRecord

WINDOW_SECONDS = 120.0
_MIN_SAMPLES = 8  # large shards finish rarely: a window holds this many however old they are


class RecentRate:
    """Videos and frames per second over the last two minutes of one run, or its last eight steps if they are longer."""

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self._samples: deque[tuple[float, int, int]] = deque([self._sample()])

    def update(self) -> None:
        """Take in what the record has counted, at most once per second."""
        sample = self._sample()
        if len(self._samples) > 1 and sample[0] - self._samples[-2][0] < 1:
            self._samples.pop()
        self._samples.append(sample)
        while len(self._samples) > _MIN_SAMPLES and sample[0] - self._samples[1][0] > WINDOW_SECONDS:
            self._samples.popleft()

    def per_second(self) -> tuple[float, float]:
        """Return videos and frames per second up to now, so that a standstill shows; 0 before any time has passed."""
        (then, videos, frames), (now, videos_now, frames_now) = self._samples[0], self._sample()
        seconds = now - then
        return ((videos_now - videos) / seconds, (frames_now - frames) / seconds) if seconds > 0 else (0.0, 0.0)

    def eta_seconds(self) -> float | None:
        """Return the seconds until the plan is done at the recent rate; None while nothing has finished."""
        left = self._record.num_planned_videos - self._record.num_done_videos
        videos_per_second, _ = self.per_second()
        if left <= 0:
            return 0.0
        return left / videos_per_second if videos_per_second > 0 else None

    def _sample(self) -> tuple[float, int, int]:
        return self._record.elapsed_seconds, self._record.num_videos, self._record.num_frames
