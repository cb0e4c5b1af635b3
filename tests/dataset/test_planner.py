"""Planning finds new videos, and any number of concurrent drivers plan each video once."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import schema
from raypipe.dataset import plan as plans
from raypipe.dataset.plan import Plan, PlannedVideo, plan_numbers
from raypipe.dataset.planner import Retry
from raypipe.errors import CommitError, ConfigError, FingerprintError
from raypipe.jobs.embed.verify import verify
from raypipe.status import TRANSIENT, Status
from raypipe.storage import Folder, StoredObject
from support.embed_outputs import (
    PACK,
    SETTINGS,
    commit_statuses,
    content,
    embed_all,
    places,
    plan_new,
    planned,
    planner,
    replace_object,
    upload,
    video,
)
from support.properties import examples

NAMES = [f"{number}.mp4" for number in range(7)]
QUICK = settings(max_examples=examples(40))


def ids(output: Folder, *numbers: int) -> list[str]:
    return sorted(one.video_id for one in planned(output, numbers or plan_numbers(output)))


def store(output: Folder, *videos: PlannedVideo, retry: Retry = "none") -> list[int]:
    made = planner(output)
    return made.store(made.new_videos(videos, retry=retry), pack=PACK)


def test_only_new_uploads_are_planned(folder: Folder) -> None:
    source, output = places(folder)
    upload(source, {"a.mp4": content(), "b/c.mp4": content(seed=1)})
    assert plan_new(source.uri, output) == [0]
    assert plan_new(source.uri, output) == []
    upload(source, {"d.mp4": content(seed=2)})
    assert plan_new(source.uri, output) == [1]
    assert (ids(output, 0), ids(output, 1)) == (["a.mp4", "b/c.mp4"], ["d.mp4"])


def test_an_object_that_was_replaced_is_planned_again(folder: Folder) -> None:
    source, output = places(folder)
    upload(source, {"a.mp4": content(seed=1), "b.mp4": content(seed=2)})
    embed_all(source, output)
    replace_object(source, "a.mp4", content(seed=33))
    assert embed_all(source, output) == [1]
    assert ids(output, 1) == ["a.mp4"]
    assert plan_new(source.uri, output) == []


def test_an_object_that_was_replaced_and_put_back_is_planned_a_third_time(folder: Folder) -> None:
    for number, etag in enumerate(["e1", "e2", "e1", "e2"]):
        assert store(folder, video("a", etag=etag)) == [number]
        assert store(folder, video("a", etag=etag)) == []


def test_a_deleted_object_is_ignored_if_configured(folder: Folder) -> None:
    source, output = places(folder)
    upload(source, {"a.mp4": content(), "b.mp4": content()})
    embed_all(source, output)
    replace_object(source, "a.mp4", None)
    assert plan_new(source.uri, output, gone="keep") == []
    assert verify(output).violations == []


def test_a_named_object_that_is_gone_keeps_its_row_and_one_that_comes_back_is_planned(folder: Folder) -> None:
    assert store(folder, video("a", etag="e1"), video("b", etag="", size_bytes=0)) == [0]
    assert store(folder, video("a", etag="", size_bytes=0), video("b", etag="", size_bytes=0)) == []
    assert store(folder, video("a", etag="e1"), video("b", etag="e1")) == [1]
    assert ids(folder, 1) == ["b"]


def test_a_video_that_is_found_twice_is_planned_once(folder: Folder) -> None:
    assert store(folder, video("a"), video("b"), video("a")) == [0]
    assert ids(folder) == ["a", "b"]


def test_nothing_found_stores_nothing(folder: Folder) -> None:
    assert store(folder) == []
    assert list(folder.list()) == []


def test_plans_of_other_settings_are_refused(folder: Folder) -> None:
    store(folder, video("a"))
    with pytest.raises(FingerprintError) as caught:
        planner(folder, {**SETTINGS, "backbone": "large"})
    assert (caught.value.expected, caught.value.value) == ({"backbone": "tiny"}, {"backbone": "large"})


def test_a_large_catalogue_is_several_plans(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypipe.dataset.planner.MAX_PLAN_VIDEOS", 3)
    assert store(folder, *map(video, NAMES)) == [0, 1, 2]
    assert [len(ids(folder, number)) for number in (0, 1, 2)] == [3, 3, 1]
    assert ids(folder) == NAMES
    assert store(folder, *map(video, NAMES)) == []


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_driver_that_died_between_plans_is_continued(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr("raypipe.dataset.planner.MAX_PLAN_VIDEOS", 3)
    put_plan = plans.put_plan

    def die(output: Folder, plan: Plan) -> bool:
        if plan.number == after:
            raise KeyboardInterrupt
        return put_plan(output, plan)

    with monkeypatch.context() as patch:
        patch.setattr(plans, "put_plan", die)
        with pytest.raises(KeyboardInterrupt):
            store(folder, *map(video, NAMES))
    assert plan_numbers(folder) == list(range(after))
    assert store(folder, *map(video, reversed(NAMES))) == list(range(after, 3))
    assert ids(folder) == NAMES


def test_a_plan_whose_reply_was_lost_is_recognised(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypipe.dataset.planner.MAX_PLAN_VIDEOS", 3)
    put_plan = plans.put_plan
    monkeypatch.setattr(plans, "put_plan", lambda *args: put_plan(*args) and False)
    store(folder, *map(video, NAMES))
    assert ids(folder) == NAMES


# Retry


@pytest.mark.parametrize(
    ("retry", "expected"),
    [
        ("none", set()),
        ("transient", {str(status) for status in TRANSIENT}),
        ("all", {str(status) for status in Status} - {"ok", "partial", "gone"}),
    ],
)
def test_a_retry_plans_exactly_what_failed_that_way(folder: Folder, retry: Retry, expected: set[str]) -> None:
    every = {str(status): str(status) for status in Status}
    store(folder, *map(video, every))
    commit_statuses(folder, every)
    numbers = store(folder, *map(video, every), video("new"), retry=retry)
    assert set(ids(folder, *numbers)) == expected | {"new"}
    assert not TRANSIENT & {Status.OK, Status.PARTIAL, Status.GONE}


def test_a_retry_that_has_no_row_yet_is_not_planned_again(folder: Folder) -> None:
    store(folder, video("a"), video("b"))
    commit_statuses(folder, {"a": "timeout", "b": "crashed"})
    assert store(folder, video("a"), video("b"), retry="all") == [1]
    assert store(folder, video("a"), video("b"), retry="all") == []
    commit_statuses(folder, {"b": "crashed"}, sealed=False)
    assert store(folder, video("a"), video("b"), retry="all") == [2]
    assert ids(folder, 2) == ["b"]


def test_a_successful_retry_is_not_retried(folder: Folder) -> None:
    source, output = places(folder)
    upload(source, {"a.mp4": content("timeout", seed=1), "b.mp4": content("decode_error", seed=2)})
    embed_all(source, output)
    assert embed_all(source, output, retry="transient") == [1]
    assert ids(output, 1) == ["a.mp4"]
    replace_object(source, "a.mp4", content("ok", seed=33))
    assert embed_all(source, output) == [2]
    assert embed_all(source, output, retry="all") == [3]
    assert ids(output, 3) == ["b.mp4"]
    assert verify(output).violations == []


def test_a_failure_whose_object_is_gone_from_the_listing_is_not_planned(folder: Folder) -> None:
    store(folder, video("a"))
    commit_statuses(folder, {"a": "missing"})
    assert store(folder, video("b"), retry="all") == [1]
    assert ids(folder, 1) == ["b"]


def test_a_file_that_a_retry_cannot_read_is_named(folder: Folder) -> None:
    store(folder, video("a"))
    assert folder.put_new("data/00000-000000.parquet", b"hello")
    with pytest.raises(CommitError) as caught:
        store(folder, video("a"), retry="all")
    assert caught.value.key == folder.child("data/00000-000000.parquet")
    assert f"raypipe verify {folder}" in caught.value.remedy
    assert "\n" not in str(caught.value)


# Several drivers in parallel


def test_drivers_that_plan_at_the_same_time_plan_each_video_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raypipe.dataset.planner.MAX_PLAN_VIDEOS", 3)
    together = threading.Barrier(4)
    listings = [[video(f"{at}.mp4") for at in range(start, start + 9)] for start in (0, 3, 6, 0)]

    def drive(listing: list[PlannedVideo]) -> list[int]:
        made = planner(folder)
        together.wait(60)
        return made.store(made.new_videos(listing, retry="none"), pack=PACK)

    with ThreadPoolExecutor(len(listings)) as pool:
        numbers = sorted(chain.from_iterable(pool.map(drive, listings)))
    assert ids(folder) == sorted(f"{at}.mp4" for at in range(15))
    assert plan_numbers(folder) == list(range(len(plan_numbers(folder))))
    assert set(numbers) <= set(plan_numbers(folder))


@pytest.mark.parametrize("retry", ["none", "all"])
def test_videos_planned_by_another_driver_are_skipped(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, retry: Retry
) -> None:
    store(folder, *map(video, NAMES[:4]))
    commit_statuses(folder, dict.fromkeys(NAMES, "timeout"))
    monkeypatch.setattr("raypipe.dataset.planner.MAX_PLAN_VIDEOS", 2)

    def found() -> Iterator[PlannedVideo]:
        store(folder, *(video(name, etag="new") for name in NAMES[2:4]), retry=retry)  # by another driver
        yield from (video(name, etag="newer" if retry == "none" else "e1") for name in NAMES[:4])

    made = planner(folder)
    assert made.store(made.new_videos(found(), retry=retry), pack=PACK) == [2]
    assert (ids(folder, 1), ids(folder, 2)) == (NAMES[2:4], NAMES[:2])


@dataclass
class Turns:
    """Lets threads make their storage calls one at a time, in a drawn order."""

    choices: Iterator[int]
    running: set[int]
    waiting: set[int] = field(default_factory=set)
    chosen: int | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, name: int) -> None:
        with self.changed:
            self.waiting.add(name)
            self._choose()
            assert self.changed.wait_for(lambda: self.chosen == name, 60)
            self.chosen = None
            self.waiting.discard(name)

    def leave(self, name: int) -> None:
        with self.changed:
            self.running.discard(name)
            self._choose()

    def _choose(self) -> None:
        if self.running and self.waiting == self.running:
            self.chosen = sorted(self.waiting)[next(self.choices) % len(self.waiting)]
            self.changed.notify_all()


@dataclass
class Memory:
    """An output in memory, as seen by one of several drivers."""

    objects: dict[str, bytes]
    turns: Turns | None = None
    name: int = 0

    def _wait(self) -> None:
        if self.turns:
            self.turns.take(self.name)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        self._wait()
        return iter(
            [StoredObject(key, key, len(data), "e") for key, data in self.objects.items() if key.startswith(prefix)]
        )

    def read(self, name: str) -> bytes:
        self._wait()
        return self.objects[name]

    def open_input(self, name: str) -> BinaryIO:
        return BytesIO(self.objects[name])  # several reads run in parallel; no driver commits here

    def put_new(self, name: str, data: bytes) -> bool:
        self._wait()
        return self.objects.setdefault(name, data) is data

    def child(self, name: str) -> str:
        return name


def race(objects: dict[str, bytes], listings: list[list[PlannedVideo]], order: list[int], retry: Retry) -> None:
    """Run one planning driver per listing, all in parallel."""
    turns = Turns(chain(order, repeat(0)), set(range(len(listings))))

    def drive(name: int) -> None:
        try:
            store(Memory(objects, turns, name), *listings[name], retry=retry)  # type: ignore[arg-type]
        finally:
            turns.leave(name)

    with ThreadPoolExecutor(len(listings)) as pool:
        list(pool.map(drive, range(len(listings))))


def all_planned(objects: dict[str, bytes]) -> list[tuple[str, str]]:
    output: Any = Memory(objects)
    assert plan_numbers(output) == list(range(len(plan_numbers(output))))
    return [(one.video_id, one.etag) for one in planned(output, plan_numbers(output))]


LISTINGS = st.lists(
    st.permutations(NAMES).flatmap(lambda names: st.integers(0, 7).map(lambda n: names[:n])), min_size=2, max_size=3
)
ORDER = st.lists(st.integers(0, 5), max_size=40)


@QUICK
@given(listings=LISTINGS, order=ORDER)
def test_in_whatever_order_drivers_run_each_video_is_planned_once(
    monkeypatch: pytest.MonkeyPatch, listings: list[list[str]], order: list[int]
) -> None:
    monkeypatch.setattr("raypipe.dataset.planner.MAX_PLAN_VIDEOS", 2)
    objects: dict[str, bytes] = {}
    race(objects, [list(map(video, names)) for names in listings], order, "none")
    assert sorted(all_planned(objects)) == sorted((name, "e1") for name in set(chain.from_iterable(listings)))


@QUICK
@given(listings=LISTINGS, order=ORDER, retry=st.sampled_from(["transient", "all"]))
def test_in_whatever_order_drivers_run_each_failure_is_retried_once(
    monkeypatch: pytest.MonkeyPatch, listings: list[list[str]], order: list[int], retry: Retry
) -> None:
    objects: dict[str, bytes] = {}
    output: Any = Memory(objects)
    store(output, *map(video, NAMES[:5]))
    commit_statuses(output, dict.fromkeys(NAMES[:3], "timeout"), sealed=False)
    monkeypatch.setattr("raypipe.dataset.planner.MAX_PLAN_VIDEOS", 2)
    race(objects, [list(map(video, names)) for names in listings], order, retry)
    found = Counter(name for name, _ in all_planned(objects))
    for name in NAMES:
        again = name in chain.from_iterable(listings) and (name in NAMES[:3] or name in NAMES[5:])
        assert found[name] == (name in NAMES[:5]) + again


@QUICK
@given(old=LISTINGS, new=LISTINGS, order=ORDER)
def test_objects_that_change_between_listings_end_up_planned_as_they_are(
    monkeypatch: pytest.MonkeyPatch, old: list[list[str]], new: list[list[str]], order: list[int]
) -> None:
    monkeypatch.setattr("raypipe.dataset.planner.MAX_PLAN_VIDEOS", 2)
    objects: dict[str, bytes] = {}
    listings = [[video(name, etag="old") for name in names] for names in old[:1]]
    listings += [[video(name, etag="new") for name in names] for names in new[:2]]
    race(objects, listings, order, "none")
    for name in NAMES:  # a driver with an old listing may plan it back after it has read the new plan
        etags = [etag for planned_name, etag in all_planned(objects) if planned_name == name]
        assert all(one != other for one, other in pairwise(etags))
    output: Any = Memory(objects)
    store(output, *(video(name, etag="new") for name in NAMES))
    assert dict(all_planned(objects)) == dict.fromkeys(NAMES, "new")


def test_an_id_of_another_input_is_refused(folder: Folder, tmp_path: Path) -> None:
    """The row of one video would replace the row of another."""
    first, second = Folder(str(tmp_path / "first")), Folder(str(tmp_path / "second"))
    first.put_new("same.mp4", b"one")
    second.put_new("same.mp4", b"two")
    assert plan_new(first.uri, folder) == [0]
    with pytest.raises(ConfigError, match=r"'same\.mp4'") as caught:
        plan_new(second.uri, folder)
    assert caught.value.key == schema.VIDEO_ID
    assert (caught.value.expected, caught.value.value) == (first.child("same.mp4"), second.child("same.mp4"))
    assert plan_new(str(tmp_path), folder) == [1]  # the first video has this URI
