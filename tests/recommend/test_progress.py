"""What recommend shows: how far, how fast, and how users were answered."""

import io

from rich.console import Console

from raypipe.jobs.recommend.progress import UserProgress
from raypipe.records import ShardSummary


def summary(**counts: int) -> ShardSummary:
    return ShardSummary(0, 0, counts, 0, 0, {}, 0.0)


def test_lines_say_how_far_and_how_fast() -> None:
    times = iter([0.0, 0.0, 5.0, 11.0, 11.0, 11.0, 16.0])
    out = io.StringIO()
    console = Console(file=out, width=200)
    with UserProgress(num_users=2000, num_done_before=500, console=console, clock=lambda: next(times)) as progress:
        progress.update(summary(ok=100))
        progress.update(summary(ok=400, popular=50))
    assert out.getvalue().splitlines() == [
        "recommend 500/2,000 users (25.0%) · 0 users/s · 500 done before · ETA unknown",
        "recommend 1,050/2,000 users (52.5%) · 50.0 users/s · ok 500 · popular 50 · 500 done before · ETA 19s",
        "recommend 1,050/2,000 users (52.5%) · 34.4 users/s · ok 500 · popular 50 · 500 done before · ETA 28s",
    ]
    assert progress.counts.total() == 550
