"""The record of a run adds up and stays small, and its report escapes hostile text."""

import io
import json
import math
import random
import re
import subprocess
import sys
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raypipe.records import (
    MAX_BUCKETS,
    MAX_FAILURE_KINDS,
    MAX_FAILURES,
    MAX_PROBLEMS,
    MAX_SLOWEST,
    MAX_THUMBNAILS,
    Bucket,
    RunRecord,
    ShardSummary,
    Timeline,
    VideoNote,
)
from raypipe.report.charts import nice_step
from raypipe.report.write import summarize, write_report
from raypipe.status import NOT_FAILED, Status
from raypipe.text import error_kind, format_bytes, format_rate, format_seconds, format_share, redact, visible
from support.properties import examples
from support.report_pages import HOSTILE, Page

START = 1_700_000_000.0
few = settings(max_examples=examples(50))  # each example writes whole pages
JPEG = b"\xff\xd8\xff\xe0 a picture"


class FakeClock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def shard(number: int = 0, **changes: object) -> ShardSummary:
    summary = ShardSummary(
        plan=1,
        shard=number,
        statuses={"ok": 3, "timeout": 1},
        num_frames=48,
        size_bytes=1000,
        stage_seconds={"fetch": 1.0, "decode": 2.0},
        finished_at=START + 1,
    )
    return replace(summary, **changes)  # type: ignore[arg-type]


def note(video_id: str = "a.mp4", *, error: str = "late", seconds: float = 1.0) -> VideoNote:
    return VideoNote(video_id, "timeout", error, seconds)


def written(record: RunRecord) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    write_report(record, files.__setitem__)
    return files


notes = st.builds(
    VideoNote, st.text(max_size=30), st.sampled_from([*Status]), st.text(max_size=80), st.floats(allow_nan=True)
)
shards = st.builds(
    ShardSummary,
    plan=st.integers(0, 3),
    shard=st.integers(0, 10**6),
    statuses=st.dictionaries(st.sampled_from([*map(str, Status)]), st.integers(0, 64), max_size=4),
    num_frames=st.integers(0, 10**6),
    size_bytes=st.integers(0, 10**12),
    stage_seconds=st.dictionaries(st.sampled_from(["fetch", "decode", "embed", "put"]), st.floats(0, 1e6)),
    finished_at=st.floats(START - 100, START + 10**6),
    slowest=st.lists(notes, max_size=5).map(tuple),
    failures=st.lists(notes, max_size=5).map(tuple),
    thumbnails=st.lists(st.tuples(st.text(max_size=9), st.just(JPEG)), max_size=3).map(tuple),
    already_committed=st.booleans(),
    problem=st.sampled_from(["", "refused"]),
)


@given(st.lists(shards, max_size=40))
def test_totals_are_the_sums_of_what_was_added(summaries: list[ShardSummary]) -> None:
    record = RunRecord(num_resumed_videos=7, clock=lambda: START + 10**6)
    record.started_at = START
    for summary in summaries:
        record.add(summary)

    num_videos = sum(sum(summary.statuses.values()) for summary in summaries)
    assert record.num_videos == num_videos
    assert record.num_done_videos == num_videos + 7
    assert record.num_frames == sum(summary.num_frames for summary in summaries)
    assert record.size_bytes == sum(summary.size_bytes for summary in summaries)
    assert record.num_shards == sum(not summary.problem for summary in summaries)
    assert record.num_already_committed_shards == sum(summary.already_committed for summary in summaries)
    assert record.num_problems == sum(bool(summary.problem) for summary in summaries)
    for status in Status:
        assert record.statuses[status] == sum(summary.statuses.get(status, 0) for summary in summaries)
    for stage, seconds in record.stage_seconds.items():
        assert math.isclose(seconds, math.fsum(summary.stage_seconds.get(stage, 0) for summary in summaries))

    buckets = record.timeline.buckets
    assert sum(bucket.num_videos for bucket in buckets) == num_videos
    assert sum(bucket.num_failed for bucket in buckets) == record.num_failed_videos
    assert sum(bucket.num_frames for bucket in buckets) == record.num_frames
    assert sum(bucket.size_bytes for bucket in buckets) == record.size_bytes
    assert sum(bucket.num_shards for bucket in buckets) == record.num_shards
    assert record.num_failed_videos == num_videos - sum(record.statuses[status] for status in NOT_FAILED)
    assert record.num_tried_videos == num_videos - record.statuses["gone"]
    assert record.num_tried_videos * record.failed_fraction == pytest.approx(record.num_failed_videos)


@given(st.lists(shards, max_size=12), st.randoms(use_true_random=False))
def test_slowest_and_thumbnails_do_not_depend_on_the_order_of_shards(
    summaries: list[ShardSummary], rng: random.Random
) -> None:
    first, second = RunRecord(), RunRecord()
    for summary in summaries:
        first.add(summary)
    for summary in rng.sample(summaries, len(summaries)):
        second.add(summary)
    assert [n.seconds for n in first.slowest] == [n.seconds for n in second.slowest]
    assert [n.video_id for n in first.slowest] == [n.video_id for n in second.slowest]
    assert first.thumbnails == second.thumbnails


def test_a_record_stays_bounded_over_a_long_run(clock: FakeClock) -> None:
    record = RunRecord(clock=clock, num_planned_videos=10**7)
    for number in range(5000):
        clock.now = START + number * 7.3
        several = tuple(note(f"{number}/{i}", error=f"cause {'x' * (number % 500)}", seconds=number) for i in range(4))
        pictures = ((f"{number}.mp4", JPEG),)
        record.add(
            shard(number, finished_at=clock.now, slowest=several, failures=several, thumbnails=pictures, problem="no")
        )
    assert len(record.timeline.buckets) <= MAX_BUCKETS
    assert len(record.slowest) == MAX_SLOWEST
    assert [n.seconds for n in record.slowest[:4]] == [4999] * 4
    assert len(record.failures) == MAX_FAILURES
    assert len(record.failure_kinds) <= MAX_FAILURE_KINDS
    assert record.failure_kinds.total() == 20_000
    assert len(record.problems) == MAX_PROBLEMS
    assert record.num_problems == 5000
    assert len(record.thumbnails) == MAX_THUMBNAILS
    # The choice is even over the run: neither half has nearly all of them.
    late = sum(int(video_id.split(".")[0]) >= 2500 for video_id, _ in record.thumbnails)
    assert 12 <= late <= 36
    assert sum(map(len, written(record).values())) < 400_000


def test_long_names_errors_and_pictures_are_cut_short_or_left_out(clock: FakeClock) -> None:
    record = RunRecord(clock=clock)
    long = note("n" * 10_000, error="e" * 10_000)
    pictures = (("big", JPEG + b"x" * 70_000), ("not a JPEG", b"<svg onload=alert(1)>"), ("good", JPEG))
    record.add(shard(failures=(long,), slowest=(long,), thumbnails=pictures, problem="p" * 10_000))
    assert len(record.failures[0].video_id) == 1024
    assert len(record.failures[0].error) == 500
    assert len(record.problems[0]) < 600
    assert [video_id for video_id, _ in record.thumbnails] == ["good"]


@given(
    st.lists(st.tuples(st.floats(0, 10**6), st.integers(0, 100)), min_size=1, max_size=60),
    st.floats(0, 2 * 10**6),
    st.integers(2, 120),
)
def test_chart_points_cover_the_run_without_gaps_and_lose_nothing(
    work: list[tuple[float, int]], elapsed_seconds: float, max_points: int
) -> None:
    timeline = Timeline()
    for at_seconds, num_videos in work:
        timeline.add(at_seconds, Bucket(num_shards=1, num_videos=num_videos))
    points = list(timeline.points(elapsed_seconds, max_points=max_points))
    assert len(points) <= max_points
    assert points[0].start_seconds == 0
    assert points[-1].end_seconds >= elapsed_seconds
    assert all(left.end_seconds == right.start_seconds for left, right in pairwise(points))
    assert all(point.width_seconds > 0 for point in points)
    assert sum(point.work.num_videos for point in points) == sum(num_videos for _, num_videos in work)


@pytest.mark.parametrize("finished_at", [START + 10**9, START - 10**9, math.nan, math.inf])
def test_a_worker_with_a_wrong_clock_does_not_stretch_the_timeline(clock: FakeClock, finished_at: float) -> None:
    record = RunRecord(clock=clock)
    clock.now += 60
    record.add(shard(finished_at=finished_at))
    assert record.timeline.bucket_seconds == 1
    assert len(record.timeline.buckets) <= 61


def test_idle_time_is_the_time_slots_do_not_spend_on_stages(clock: FakeClock) -> None:
    record = RunRecord(clock=clock, num_slots=2)
    clock.now += 10
    record.add(shard(stage_seconds={"decode": 5.0, "embed": 3.0}))
    assert record.idle_seconds == 12
    record.add(shard(stage_seconds={"decode": 100.0}))
    assert record.idle_seconds == 0
    assert RunRecord().idle_seconds is None


def test_the_first_close_stops_the_clock_and_counts(clock: FakeClock) -> None:
    record = RunRecord(clock=clock)
    clock.now += 5
    record.close(outcome="interrupted", message="Ctrl-C")
    clock.now += 5
    record.close(outcome="finished")
    assert record.elapsed_seconds == 5
    assert (record.outcome, record.message) == ("interrupted", "Ctrl-C")


SUMMARY_KEYS = [
    "bytes_per_second", "command", "elapsed_seconds", "failure_kinds", "failures", "fingerprint", "finished_at",
    "flags", "format", "frames_per_second", "idle_seconds", "input_uri", "job", "labels", "machine", "message",
    "num_already_committed_shards", "num_done_videos", "num_failed_videos", "num_frames", "num_planned_videos",
    "num_problems", "num_remaining_videos", "num_resumed_videos", "num_shards", "num_slots", "num_videos",
    "outcome", "output_uri", "plans", "problems", "settings", "size_bytes", "skipped", "slowest_videos",
    "stage_seconds", "started_at", "statuses", "timeline", "versions", "videos_per_second",
]  # fmt: skip


def test_summary_json_has_its_documented_keys_and_numbers(clock: FakeClock) -> None:
    skipped = {".json": 3, "hidden": 1}
    record = RunRecord(clock=clock, num_planned_videos=10, num_resumed_videos=2, num_slots=1, skipped=skipped)
    clock.now += 8
    failures, flags = (note(error="late by 3 s"),), {"num_corrupt_videos": 1}
    record.add(shard(finished_at=clock.now, failures=failures, slowest=(note(),), flags=flags))
    record.close(outcome="finished")
    summary = json.loads(written(record)["summary.json"])

    assert sorted(summary) == SUMMARY_KEYS
    assert all(f"``{key}``" in str(summarize.__doc__) for key in SUMMARY_KEYS)
    assert summary["started_at"] == "2023-11-14T22:13:20+00:00"
    assert summary["finished_at"] == "2023-11-14T22:13:28+00:00"
    assert summary["num_done_videos"] == 6
    assert summary["num_remaining_videos"] == 4
    assert summary["videos_per_second"] == 0.5
    assert summary["statuses"] == {"ok": 3, "timeout": 1}
    assert summary["skipped"] == skipped
    assert "4 (3 .json, 1 hidden)" in written(record)["report.html"].decode()
    assert summary["idle_seconds"] == 5
    assert summary["flags"] == {"num_corrupt_videos": 1}
    assert summary["failures"] == [{"video_id": "a.mp4", "status": "timeout", "error": "late by 3 s", "seconds": 1.0}]
    assert summary["failure_kinds"] == [{"status": "timeout", "kind": "late by … s", "num_videos": 1}]
    assert summary["timeline"]["num_videos"] == [0, 0, 0, 0, 0, 0, 0, 0, 4]


def test_a_report_is_written_of_any_settings_and_ids(clock: FakeClock) -> None:
    odd = {"path": PurePosixPath("/a"), "nan": math.nan, "set": {1}, "none": None, "deep": {"on": True, "l": [1.5]}}
    record = RunRecord(clock=clock, settings=odd)
    record.add(shard(failures=(note("\ud800"),), slowest=(note(seconds=math.inf),)))
    summary = json.loads(written(record)["summary.json"])
    assert summary["settings"] == {
        "path": "/a",
        "nan": "nan",
        "set": [1],
        "none": None,
        "deep": {"on": True, "l": [1.5]},
    }
    assert summary["failures"][0]["video_id"] == "\ud800"
    assert summary["slowest_videos"][0]["seconds"] == 0
    assert b"deep.on" in written(record)["report.html"]


def test_passwords_and_signatures_are_in_neither_file(clock: FakeClock) -> None:
    error = "GET https://me:hunter2@host/a.mp4?X-Amz-Signature=cafe12&X-Amz-Expires=60 gave 403"
    record = RunRecord(
        clock=clock, input_uri="s3://key:hunter2@bucket/v", command="raypipe embed --input s3://key:hunter2@bucket/v",
        settings={"input": "s3://key:hunter2@bucket/v"},
    )  # fmt: skip
    record.add(shard(failures=(note(error=error),), slowest=(note(error=error),), problem=error))
    record.close(outcome="failed", message=error)
    for content in written(record).values():
        assert b"hunter2" not in content
        assert b"cafe12" not in content
    assert redact("s3://bucket/user@example.com/a.mp4") == "s3://bucket/user@example.com/a.mp4"


def full_record(text: str) -> RunRecord:
    """Return a record with ``text`` wherever untrusted text can occur."""
    clock = FakeClock()
    record = RunRecord(
        job=f"j{text}", command=f"c{text}", input_uri=f"i{text}", output_uri=f"o{text}", fingerprint=f"f{text}",
        settings={f"k{text}": f"v{text}"}, versions={f"p{text}": f"1{text}"}, machine={f"m{text}": f"2{text}"},
        num_planned_videos=9, num_slots=2, clock=clock,
    )  # fmt: skip
    clock.now += 10
    named = VideoNote(f"n{text}", f"s{text}", f"e{text}", 1.0)
    record.add(
        shard(
            statuses={"ok": 3, f"s{text}": 2}, stage_seconds={"decode": 3.0, f"g{text}": 1.0}, slowest=(named,),
            failures=(named,), thumbnails=((f"t{text}", JPEG),), problem=f"b{text}", finished_at=clock.now,
        )
    )  # fmt: skip
    record.close(outcome="failed", message=f"x{text}")
    return record


# The structure of the page must not depend on the text in it. 30 characters are not shortened.
@few
@given(st.one_of(st.text(max_size=30), st.sampled_from([text[:30] for text in HOSTILE])))
def test_untrusted_text_never_becomes_markup(text: str) -> None:
    page = Page(written(full_record(text))["report.html"])
    assert page.elements == Page(written(full_record("harmless"))["report.html"]).elements


@pytest.mark.parametrize("text", HOSTILE)
def test_untrusted_text_is_shown_as_it_is_with_odd_characters_visible(text: str) -> None:
    content = written(full_record(text))["report.html"]
    page = Page(content)
    for prefix in "cionsetbxgfvkpm":
        # A long name is shortened; its tooltip shows all of it.
        titles = [value for _, name, value in page.attributes if name == "title"]
        assert any(visible(f"{prefix}{text}") in shown for shown in [*page.texts, *titles]), prefix
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "iframe", "object", "embed", "link", "base", "a"})
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    # Only the line breaks of our own markup are not printable.
    assert "".join(page.texts).replace(page.style(), "").replace("\n", "").isprintable()


def test_nothing_in_the_report_switches_escaping_off() -> None:
    package = files("raypipe.report")
    sources = [*package.iterdir(), *package.joinpath("templates").iterdir()]
    for source in sources:
        if source.name.endswith((".py", ".html")):
            assert not re.search(r"\bsafe\b|Markup\(|autoescape false", source.read_text("utf-8")), source.name


def test_the_page_loads_nothing_and_its_policy_allows_only_its_own_style() -> None:
    page = Page(written(full_record("a"))["report.html"])
    digest = b64encode(sha256(page.style().encode()).digest()).decode()
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert "url(" not in page.style()
    assert "@import" not in page.style()
    assert {name for _, name, _ in page.attributes}.isdisjoint({"href", "style", "action", "srcset", "xlink:href"})
    (picture,) = [value for _, name, value in page.attributes if name == "src"]
    assert b64decode(picture.removeprefix("data:image/jpeg;base64,")) == JPEG


def test_reports_of_runs_that_did_nothing_or_only_failed(clock: FakeClock) -> None:
    empty = RunRecord(clock=clock)
    assert "No videos were planned" in Page(written(empty)["report.html"]).texts
    failed = RunRecord(clock=clock, num_planned_videos=4)
    clock.now += 1
    failed.add(shard(statuses={"missing": 4}, num_frames=0, size_bytes=0, stage_seconds={}))
    texts = Page(written(failed)["report.html"]).texts
    assert "4 of 4 videos are done, and all of them failed" in texts
    assert "100% of videos" in texts
    resumed = RunRecord(clock=clock, num_planned_videos=4, num_resumed_videos=4)
    assert "All 4 videos are done" in Page(written(resumed)["report.html"]).texts


def test_failed_attempts_at_a_shard_are_shown_with_their_outcome(clock: FakeClock) -> None:
    record = RunRecord(clock=clock, num_planned_videos=4)
    clock.now += 1
    record.add(shard(7, statuses={}, num_frames=0, size_bytes=0, stage_seconds={}, problem="503 Slow Down"))
    record.add(shard(7))
    texts = Page(written(record)["report.html"]).texts
    assert "1 attempt at a shard failed" in texts
    assert "plan 1, shard 7: 503 Slow Down" in texts
    assert "A later attempt finished each of them." not in texts
    assert "in 1 shard" in texts
    record.close(outcome="finished")
    assert "A later attempt finished each of them." in Page(written(record)["report.html"]).texts


@few
@given(st.lists(shards, max_size=10), st.floats(0, 10**6))
def test_every_coordinate_in_a_chart_is_finite_and_positive(summaries: list[ShardSummary], seconds: float) -> None:
    clock = FakeClock()
    record = RunRecord(clock=clock, num_slots=3)
    clock.now += seconds
    for summary in summaries:
        record.add(summary)
    page = Page(written(record)["report.html"])
    drawn = {"d", "x", "y", "x1", "x2", "y1", "y2", "width", "height"}
    for tag, name, value in page.attributes:
        if name in drawn:
            assert "nan" not in value, (tag, name, value)
            assert "inf" not in value, (tag, name, value)
            assert "-" not in value, (tag, name, value)


def test_a_real_jpeg_is_kept_byte_for_byte(clock: FakeClock) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(buffer, "JPEG")
    record = RunRecord(clock=clock)
    record.add(shard(thumbnails=(("a.mp4", buffer.getvalue()),)))
    assert record.thumbnails == [("a.mp4", buffer.getvalue())]


@given(st.floats(1e-6, 1e12), st.integers(1, 8))
def test_axis_steps_are_round_and_reach_the_largest_value(largest: float, num_steps: int) -> None:
    step = nice_step(largest, num_steps=num_steps)
    assert step * num_steps >= largest * (1 - 1e-6)
    assert f"{step:e}"[0] in "125"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0.0s"), (0.84, "0.8s"), (9.96, "10s"), (59.6, "1m00s"), (380, "6m20s"), (3599.7, "1h00m"), (11_100, "3h05m"),
     (86_399, "1d00h"), (187_200, "2d04h"), (-1, "0.0s"), (math.nan, "0.0s")],
)  # fmt: skip
def test_durations_read_in_two_units(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown


def test_numbers_read_without_false_precision() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 999_700, 1_250_000_000)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "1.00 MB",
        "1.25 GB",
    ]
    assert [format_rate(n) for n in (0, 0.0421, 12.34, 197.2, 4810.4)] == ["0", "0.0421", "12.3", "197", "4,810"]
    assert [format_share(n) for n in (0, 0.0001, 0.025, 0.9999, 1)] == ["0%", "<0.1%", "2.5%", ">99.9%", "100%"]


def test_errors_of_one_cause_have_one_kind() -> None:
    assert error_kind("took 61.2 s of 60") == error_kind("took 7 s of 5")
    assert error_kind("GET s3://b/1.mp4: 'a81f'") == error_kind("GET s3://b/2.mp4: '77bc'")
    assert error_kind("h264 is broken") != error_kind("hevc is broken")
    assert error_kind("first\nsecond") == "first"
    assert error_kind("") == ""


@pytest.mark.parametrize(
    "module", ["raypipe.records", "raypipe.report.write", "raypipe.report.training_page", "raypipe.runs"]
)
def test_importing_it_loads_nothing_slow(module: str) -> None:
    slow = {"ray", "torch", "pyarrow", "numpy", "jinja2", "huggingface_hub"}
    code = f"import sys, {module}; print(sorted({slow} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_the_labels_of_classify_are_counted_and_shown(clock: FakeClock) -> None:
    record = RunRecord(job="classify", clock=clock)
    record.add(shard(labels={"cat": 2, "<dog>": 1}))
    record.add(shard(labels={"cat": 1}))
    files = written(record)
    assert json.loads(files["summary.json"])["labels"] == {"cat": 3, "<dog>": 1}
    page = files["report.html"].decode()
    assert "<h2>Labels</h2>" in page
    assert "&lt;dog&gt;" in page
    assert "<dog>" not in page
    assert "<h2>Labels</h2>" not in written(RunRecord(clock=clock))["report.html"].decode()
