"""Progress as lines, as a live display and as counters, with a clock that the test controls."""

import io
import subprocess
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from raypipe.records import RunRecord, ShardSummary
from raypipe.runs.progress import Progress, ProgressMetrics, RecentRate
from raypipe.runs.summary_tables import Flow, final_table

START = 1_700_000_000.0


class FakeClock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def shard(videos: int = 10, *, frames: int = 160, problem: str = "", **statuses: int) -> ShardSummary:
    return ShardSummary(
        plan=1,
        shard=0,
        statuses=statuses or {"ok": videos},
        num_frames=frames,
        size_bytes=1000,
        stage_seconds={"decode": 1.5, "embed": 0.0},
        finished_at=START,
        wait_seconds=0.25,
        num_throttles=frames // 80,
        problem=problem,
    )


def file_console(width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=width, force_terminal=False), file


def terminal_console(width: int = 80) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=width, force_terminal=True, _environ={"TERM": "xterm-256color"}), file


def interrupted_run(record: RunRecord, console: Console, clock: FakeClock, summary: ShardSummary) -> None:
    with Progress(record, console=console) as progress:
        clock.now += 10
        progress.update(summary)
        raise KeyboardInterrupt


def test_lines_say_how_far_how_fast_and_how_it_ended(clock: FakeClock) -> None:
    console, file = file_console()
    record = RunRecord(clock=clock, num_planned_videos=4800)
    with Progress(record, console=console) as progress:
        clock.now += 12
        progress.update(shard(ok=118, partial=1, timeout=1, frames=1920))
        clock.now += 3
    assert file.getvalue().splitlines() == [
        "embed 0/4800 videos (0%) · 0 videos/s · 0 frames/s · ETA unknown",
        "embed 120/4800 videos (2.5%) · 10.0 videos/s · 160 frames/s · ok 118 partial 1 timeout 1 · ETA 7m48s",
        "embed 120/4800 videos (2.5%) · 8.00 videos/s · 128 frames/s · ok 118 partial 1 timeout 1 · took 15s",
    ]


def test_recommend_counts_users(clock: FakeClock) -> None:
    console, file = file_console(200)
    record = RunRecord(job="recommend", noun="user", clock=clock, num_planned_videos=2000, num_resumed_videos=500)
    with Progress(record, console=console) as progress:
        clock.now += 11
        progress.update(shard(ok=500, popular=49, error=1))
        clock.now += 5
    console.print(final_table(record))
    lines = file.getvalue().splitlines()
    assert lines[:3] == [
        "recommend 500/2000 users (25.0%) · 0 users/s · 500 done before · ETA unknown",
        "recommend 1050/2000 users (52.5%) · 50.0 users/s · ok 500 popular 49 error 1 · 500 done before · ETA 19s",
        "recommend 1050/2000 users (52.5%) · 34.4 users/s · ok 500 popular 49 error 1 · 500 done before · took 16s",
    ]
    names = [line.split()[0] for line in lines[3:] if line.strip()]
    assert names == ["outcome", "users", "left", "statuses", "wall", "rate"]


def test_there_is_at_most_one_line_per_interval_between_the_first_and_the_last(clock: FakeClock) -> None:
    console, file = file_console()
    record = RunRecord(clock=clock, num_planned_videos=10_000)
    with Progress(record, console=console, line_seconds=10) as progress:
        for _ in range(100):
            clock.now += 0.5
            progress.update(shard())
            progress.tick()
    assert len(file.getvalue().splitlines()) == 1 + 5 + 1


def test_waiting_writes_lines_too(clock: FakeClock) -> None:
    console, file = file_console()
    with Progress(RunRecord(clock=clock, num_planned_videos=10), console=console, line_seconds=10) as progress:
        clock.now += 9.9
        progress.tick()
        assert len(file.getvalue().splitlines()) == 1
        clock.now += 0.1
        progress.tick()
        assert len(file.getvalue().splitlines()) == 2


def test_the_last_line_is_written_when_the_run_breaks_off(clock: FakeClock) -> None:
    console, file = file_console()
    record = RunRecord(clock=clock, num_planned_videos=10)
    with pytest.raises(KeyboardInterrupt):
        interrupted_run(record, console, clock, shard(4, problem="refused"))
    last = file.getvalue().splitlines()[-1]
    assert last.startswith("embed 4/10 videos (40.0%)")
    assert "1 failed attempt " in last
    assert last.endswith("took 10s")


def test_lines_are_plain_where_the_output_cannot_say_more(clock: FakeClock) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    with Progress(RunRecord(clock=clock), console=Console(file=file, force_terminal=False)):
        pass
    assert raw.getvalue().decode("ascii").splitlines()[0] == (
        "embed 0/0 videos (100%) | 0 videos/s | 0 frames/s | ETA 0.0s"
    )


class BrokenFile(io.StringIO):
    """A log on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(28, text)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_display_that_fails_does_not_end_the_job(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, is_terminal: bool
) -> None:
    def fail(metrics: ProgressMetrics, summary: ShardSummary) -> None:
        raise RuntimeError(metrics, summary)

    monkeypatch.setattr(ProgressMetrics, "add", fail)
    environment = {"TERM": "xterm-256color"}
    console = Console(file=BrokenFile(), force_terminal=is_terminal, _environ=environment)
    record = RunRecord(clock=clock, num_planned_videos=20)
    with Progress(record, console=console) as progress:
        for _ in range(2):
            clock.now += 10
            progress.update(shard(10))
    assert record.num_done_videos == 20
    assert "RuntimeError" in caplog.text
    assert "OSError" in caplog.text


def test_the_time_left_after_a_resume_counts_only_work_of_this_run(clock: FakeClock) -> None:
    record = RunRecord(clock=clock, num_planned_videos=1000, num_resumed_videos=900)
    rate = RecentRate(record)
    assert rate.eta_seconds() is None
    clock.now += 10
    record.add(shard(20))
    rate.update()
    assert rate.per_second() == (2.0, 16.0)
    assert rate.eta_seconds() == 40.0
    clock.now += 30
    record.add(shard(80))
    rate.update()
    assert rate.eta_seconds() == 0.0


def test_the_recent_rate_forgets_the_start_and_shows_a_standstill(clock: FakeClock) -> None:
    record = RunRecord(clock=clock, num_planned_videos=10**6)
    rate = RecentRate(record)
    clock.now += 600  # models are loading
    for _ in range(300):
        clock.now += 1
        record.add(shard(10))
        rate.update()
    videos, _ = rate.per_second()
    assert videos == pytest.approx(10, rel=0.01)
    clock.now += 1000
    videos, _ = rate.per_second()
    assert videos < 1.2


def test_rare_and_uneven_shards_still_give_a_steady_rate(clock: FakeClock) -> None:
    record = RunRecord(clock=clock, num_planned_videos=10**6)
    rate = RecentRate(record)
    for number in range(20):
        clock.now += 300
        record.add(shard(1200 * (number % 2)))
        rate.update()
    assert rate.per_second()[0] == pytest.approx(2, rel=0.2)


@given(st.lists(st.floats(0, 30), max_size=400))
def test_the_window_stays_bounded(pauses: list[float]) -> None:
    clock = FakeClock()
    record = RunRecord(clock=clock)
    rate = RecentRate(record)
    for pause in pauses:
        clock.now += pause
        record.add(shard(1))
        rate.update()
    assert len(rate._samples) <= 260
    assert rate.per_second()[0] >= 0


def test_the_live_display_shows_counts_and_restores_the_terminal(clock: FakeClock) -> None:
    console, file = terminal_console(width=100)
    record = RunRecord(clock=clock, num_planned_videos=4800, num_resumed_videos=1200)
    with pytest.raises(KeyboardInterrupt):
        interrupted_run(record, console, clock, shard(ok=118, timeout=2))
    shown = Text.from_ansi(file.getvalue().rsplit("embed", 1)[1]).plain
    assert "1,320/4,800  27.5%" in shown
    assert "12.0 videos/s" in shown
    assert "4m50s left" in shown
    assert "ok 118  timeout 2" in shown
    assert "1,200 done before this run" in shown
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize("width", [40, 80, 140])
def test_the_final_table_fits_and_names_what_matters(clock: FakeClock, width: int) -> None:
    console, file = file_console(width)
    record = RunRecord(clock=clock, num_planned_videos=200, num_resumed_videos=20, output_uri="s3://b/out")
    clock.now += 60
    record.add(shard(ok=118, timeout=2))
    record.close(outcome="interrupted", message="Stopped by [red]Ctrl-C[/red]\x1b[2J.")
    console.print(final_table(record, report_uri="s3://b/out/reports/1/report.html"))
    lines = file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    text = "".join(line[12:].strip() for line in lines)
    for wanted in (
        "interrupted",
        "120  20 before",
        "60  the same command",
        "ok 118  timeout 2",
        "2.00 videos/s",
        "s3://b/out/reports/1/report.html",
    ):
        assert wanted in text, wanted
    assert "[red]Ctrl-C[/red]\\x1b[2J." in text


@given(st.lists(st.text("ab ", max_size=15).map(str.strip), max_size=12), st.integers(15, 60))
def test_flow_breaks_only_between_pieces_and_loses_none(pieces: list[str], width: int) -> None:
    console, file = file_console(width)
    console.print(Flow([Text(piece) for piece in pieces]))
    shown = file.getvalue()
    assert all(len(line.rstrip()) <= width for line in shown.splitlines())
    assert "  ".join(line.rstrip() for line in shown.splitlines() if line.strip()) == "  ".join(filter(None, pieces))


class FakeMetric:
    """Ray's counters and gauges, with the same strict checks."""

    values: ClassVar[dict[tuple[str, str], float]] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] = ()) -> None:
        assert description
        self.name, self.tag_keys = name, tag_keys

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0
        assert tuple(tags) == self.tag_keys
        assert all(type(tag) is str for tag in tags.values())
        key = (self.name, ",".join(tags.values()))
        self.values[key] = self.values.get(key, 0) + value

    def set(self, value: float) -> None:
        self.values[self.name, ""] = value


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A Ray that runs, and whose counters start at 0."""
    ray = SimpleNamespace(is_initialized=lambda: True)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.util.metrics", SimpleNamespace(Counter=FakeMetric, Gauge=FakeMetric))
    monkeypatch.setattr(FakeMetric, "values", {})
    return ray


def test_users_are_not_counted_as_videos(clock: FakeClock, fake_ray: SimpleNamespace) -> None:
    for noun, is_counted in (("user", False), ("video", True)):
        with Progress(RunRecord(noun=noun, clock=clock, num_planned_videos=9), console=file_console()[0]) as progress:
            progress.update(shard(ok=9))
        assert bool(FakeMetric.values) == is_counted
    assert fake_ray.is_initialized()


def test_metrics_count_each_shard_once_ray_runs(fake_ray: SimpleNamespace) -> None:
    ray = fake_ray
    ray.is_initialized = lambda: False
    metrics = ProgressMetrics(num_planned_videos=100, num_resumed_videos=30)
    metrics.add(shard(ok=5))
    assert not FakeMetric.values

    ray.is_initialized = lambda: True
    metrics.add(shard(ok=8, timeout=2))
    metrics.add(shard(ok=1, frames=0))
    assert FakeMetric.values == {
        ("raypipe_planned_videos", ""): 100,
        ("raypipe_done_videos", ""): 46,
        ("raypipe_shards_total", ""): 2,
        ("raypipe_frames_total", ""): 160,
        ("raypipe_bytes_total", ""): 2000,
        ("raypipe_videos_total", "ok"): 9,
        ("raypipe_videos_total", "timeout"): 2,
        ("raypipe_stage_seconds_total", "decode"): 3.0,
        ("raypipe_decode_wait_seconds_total", ""): 0.5,
        ("raypipe_s3_throttles_total", ""): 2,
    }
    FakeMetric.values.clear()
    metrics.add(shard(ok=1))
    assert FakeMetric.values["raypipe_planned_videos", ""] == 100, "Ray forgets a gauge that is set only once"


def test_a_display_loads_neither_ray_nor_the_report() -> None:
    code = (
        "import sys; from raypipe.runs.progress import ProgressMetrics; from raypipe.records import ShardSummary;"
        "metrics = ProgressMetrics(num_planned_videos=1, num_resumed_videos=0);"
        "metrics.add(ShardSummary(1, 0, {'ok': 1}, 1, 1, {}, 0.0)); print({'ray', 'raypipe.report'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "set()"


def test_the_final_table_names_the_most_frequent_labels(clock: FakeClock) -> None:
    record = RunRecord(job="classify", clock=clock)
    record.labels.update({f"label {number}": 100 - number for number in range(10)})
    record.close(outcome="finished")
    console = Console(width=200, file=io.StringIO())
    console.print(final_table(record))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "label 0 100  label 1 99" in shown
    assert "label 7 93  and 2 other labels" in shown
    assert "label 8" not in shown
