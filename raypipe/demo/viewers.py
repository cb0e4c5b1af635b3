"""The demo's viewers: synthetic watch histories with known preferences."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raypipe.demo.clips import Clip, write_csv

NUM_VIEWERS = 500
_FIRST_DAY = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
_NUM_WATCHED = (5, 13)  # clips per viewer
_STAYS, _NEXT_TAKE = 0.75, 0.6  # how often a viewer stays in a class, and then watches the next take of it


def write_histories(path: Path, clips: Sequence[Clip], *, seed: int = 0) -> None:
    """Write the events of 500 viewers: ``user_id``, ``video_id`` and ``watched_at``.

    A viewer prefers one class most of the time, watches a second one now and then, and often watches the next take of
    the class. Some takes are more popular than others.
    """
    by_class: dict[str, list[str]] = {}
    for clip in clips:
        by_class.setdefault(clip.label, []).append(clip.video_id)
    rows = []
    for viewer in range(NUM_VIEWERS):
        random = np.random.default_rng([seed, viewer])
        start = _FIRST_DAY + dt.timedelta(days=float(random.uniform(0, 60)))
        for number, video_id in enumerate(_watched(by_class, random)):
            rows.append((f"viewer-{viewer:03d}", video_id, (start + dt.timedelta(hours=number)).isoformat()))
    write_csv(path, ("user_id", "video_id", "watched_at"), rows)


def _watched(by_class: dict[str, list[str]], random: np.random.Generator) -> list[str]:
    favorite, second = random.choice(list(by_class), 2, replace=False).tolist()
    label, take = favorite, -1
    watched: list[str] = []
    for _ in range(int(random.integers(*_NUM_WATCHED))):
        if watched and random.random() > _STAYS:
            label, take = (second if label == favorite else favorite), -1
        takes = by_class[label]
        popularity = 1 / np.arange(2, len(takes) + 2)
        follows = take >= 0 and random.random() < _NEXT_TAKE
        take = (take + 1) % len(takes) if follows else int(random.choice(len(takes), p=popularity / popularity.sum()))
        watched.append(takes[take])
    return list(dict.fromkeys(watched))
