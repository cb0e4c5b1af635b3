"""A video that is missing from a complete listing is marked as gone, once; no other video ever is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import schema
from raypipe.config.embed import Gone
from raypipe.dataset import plan as plans
from raypipe.dataset.plan import PlannedVideo, StoredPlans, plan_numbers
from raypipe.dataset.planner import Retry
from raypipe.dataset.read import read_embeddings
from raypipe.errors import ConfigError, StorageError
from raypipe.jobs.embed import inputs
from raypipe.jobs.embed.inputs import MAX_UNGUARDED
from raypipe.jobs.embed.verify import verify
from raypipe.storage import Folder, Listed, local
from raypipe.storage.folder import Kind
from support.embed_outputs import (
    commit_statuses,
    content,
    embed_all,
    finish,
    places,
    plan_new,
    planned,
    replace_object,
    upload,
)
from support.properties import examples

TWELVE = [f"{number:02d}.mp4" for number in range(12)]
THREE = TWELVE[3:6]
CUT = StorageError("the listing breaks off")


def fill(source: Folder, names: list[str] = TWELVE) -> None:
    upload(source, {name: content(seed=at) for at, name in enumerate(names)})


def delete(source: Folder, *names: str) -> None:
    for name in names:
        replace_object(source, name, None)


def rows_of(output: Folder) -> dict[str, dict[str, Any]]:
    assert verify(output).violations == []
    return {row[schema.VIDEO_ID]: row for table in read_embeddings(output) for row in table.to_pylist()}


def present(output: Folder) -> list[str]:
    return sorted(name for name, row in rows_of(output).items() if row[schema.STATUS] != "gone")


def marked(output: Folder) -> list[str]:
    """Return the ids that any plan marks as gone, once per mark."""
    return sorted(one.video_id for one in planned(output, plan_numbers(output)) if one.is_gone)


# Marking


def test_deleted_videos_get_a_row_that_says_so_once(folder: Folder) -> None:
    source, output = places(folder)
    fill(source)
    embed_all(source, output)
    delete(source, *THREE)
    upload(source, {"new.mp4": content(seed=99)})
    assert embed_all(source, output) == [1]
    rows = rows_of(output)
    assert {name for name, row in rows.items() if row[schema.STATUS] == "gone"} == set(THREE)
    for name in THREE:
        told = {
            column: rows[name][column] for column in ("generation", "etag", "num_frames", "embedding", "size_bytes")
        }
        assert told == {"generation": 1, "etag": "", "num_frames": 0, "embedding": None, "size_bytes": 0}
        assert rows[name][schema.VIDEO_URI] == source.child(name)
    assert rows["new.mp4"][schema.STATUS] == "ok"
    assert verify(output).statuses == {"ok": 13, "gone": 3}
    assert plan_new(source.uri, output) == []


def test_a_video_that_comes_back_is_embedded_again(folder: Folder) -> None:
    source, output = places(folder)
    fill(source)
    embed_all(source, output)
    delete(source, *THREE)
    embed_all(source, output)
    upload(source, {THREE[0]: content(seed=3)})  # the original bytes, and on S3 the original etag
    assert embed_all(source, output) == [2]
    row = rows_of(output)[THREE[0]]
    assert (row[schema.STATUS], row[schema.GENERATION]) == ("ok", 2)
    delete(source, THREE[0])
    assert embed_all(source, output) == [3]
    assert rows_of(output)[THREE[0]][schema.STATUS] == "gone"


def test_a_video_put_back_with_its_etag_is_new(tmp_path: Path) -> None:
    source, output = places(Folder(str(tmp_path)))
    fill(source)
    embed_all(source, output)
    before = source.stat(THREE[0])
    Path(source.child(THREE[0])).rename(tmp_path / "aside")
    embed_all(source, output)
    (tmp_path / "aside").rename(source.child(THREE[0]))
    assert source.stat(THREE[0]) == before
    embed_all(source, output)
    assert present(output) == TWELVE


@pytest.mark.parametrize("retry", ["transient", "all"])
def test_no_retry_plans_gone_videos(tmp_path: Path, retry: Retry) -> None:
    source, output = places(Folder(str(tmp_path)))
    fill(source)
    plan_new(source.uri, output)
    commit_statuses(output, {THREE[0]: "missing", TWELVE[0]: "timeout"})
    delete(source, THREE[0])
    assert plan_new(source.uri, output, retry=retry) == [1]
    assert {(one.video_id, one.is_gone) for one in planned(output, [1])} == {(TWELVE[0], False), (THREE[0], True)}
    finish(output)
    assert plan_new(source.uri, output, retry=retry) == []


def test_a_large_catalogue_is_marked_in_several_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypipe.dataset.planner.MAX_PLAN_VIDEOS", 2)
    monkeypatch.setattr("raypipe.jobs.embed.inputs.MAX_PLAN_VIDEOS", 2)
    source, output = places(Folder(str(tmp_path)))
    fill(source)
    embed_all(source, output)
    delete(source, *THREE)
    upload(source, {"new.mp4": content(seed=99), "newer.mp4": content(seed=98), "newest.mp4": content(seed=97)})
    assert embed_all(source, output) == [6, 7, 8]
    assert marked(output) == THREE
    assert present(output) == sorted({*TWELVE, "new.mp4", "newer.mp4", "newest.mp4"} - {*THREE})


# Which inputs mark videos as gone


def manifest_of(source: Folder, names: list[str]) -> None:
    source.put("all.csv", "\n".join(["video_uri", *names]).encode())


@pytest.mark.parametrize("policy", ["auto", "keep", "mark"])
@pytest.mark.parametrize("kind", ["folder", "glob", "manifest", "object"])
def test_folders_mark_by_default_and_manifests_and_globs_on_request(tmp_path: Path, kind: str, policy: Gone) -> None:
    source, output = places(Folder(str(tmp_path)))
    names = TWELVE if kind != "object" else THREE[:1]
    fill(source, names)
    manifest_of(source, names)
    uri = source.child({"folder": "", "glob": "*.mp4", "manifest": "all.csv", "object": THREE[0]}[kind])
    plan_new(uri, output, gone=policy)
    commit_statuses(output, {})
    delete(source, THREE[0])
    manifest_of(source, [name for name in names if name != THREE[0]] or ["none.mp4"])
    plan_new(uri, output, gone=policy)
    is_marking = policy == "mark" or (policy == "auto" and kind in {"folder", "object"})
    assert [one.rpartition("/")[2] for one in marked(output)] == THREE[:1] * is_marking


def test_a_manifest_that_still_names_a_missing_object_marks_nothing(tmp_path: Path) -> None:
    source, output = places(Folder(str(tmp_path)))
    fill(source)
    manifest_of(source, TWELVE)
    plan_new(source.child("all.csv"), output, gone="mark")
    delete(source, *THREE)
    assert plan_new(source.child("all.csv"), output, gone="mark") == []


def test_an_id_that_a_manifest_gives_to_another_object_is_not_gone(tmp_path: Path) -> None:
    source, output = places(Folder(str(tmp_path)))
    fill(source)
    source.put("all.csv", b"video_id,video_uri\nfirst,00.mp4\nother,01.mp4\n")
    plan_new(source.child("all.csv"), output, gone="mark")
    commit_statuses(output, {})
    source.put("all.csv", b"video_id,video_uri\nfirst,02.mp4\nother,01.mp4\n")
    assert plan_new(source.child("all.csv"), output, gone="mark") == [1]
    commit_statuses(output, {})
    assert plan_new(source.child("all.csv"), output, gone="mark") == []
    assert marked(output) == []
    assert rows_of(output)["first"][schema.VIDEO_URI] == source.child("02.mp4")


@pytest.mark.parametrize("policy", ["auto", "mark"])
def test_an_id_that_a_manifest_gives_back_to_its_first_object_is_embedded_again(tmp_path: Path, policy: Gone) -> None:
    source, output = places(Folder(str(tmp_path)))
    fill(source)
    for rows in ("a,00.mp4\nb,01.mp4", "a,02.mp4\nb,01.mp4", "a,00.mp4\nb,01.mp4", "b,00.mp4\na,01.mp4"):
        source.put("all.csv", f"video_id,video_uri\n{rows}\n".encode())
        embed_all(Folder(source.child("all.csv")), output, gone=policy)
        assert plan_new(source.child("all.csv"), output, gone=policy) == []
        named = {row["video_id"]: row["video_uri"].rpartition("/")[2] for row in rows_of(output).values()}
        assert named == dict(row.split(",") for row in rows.split("\n"))
    assert marked(output) == []


def test_a_row_that_comes_back_to_a_manifest_without_its_object_is_missing_and_not_gone(tmp_path: Path) -> None:
    source, output = places(Folder(str(tmp_path)))
    fill(source)
    uri = source.child("all.csv")
    for names in (TWELVE, TWELVE[1:], TWELVE):
        manifest_of(source, names)
        embed_all(Folder(uri), output, gone="mark")
        delete(source, TWELVE[0])
    assert rows_of(output)[TWELVE[0]][schema.STATUS] == "missing"


def test_an_emptied_folder_is_a_complete_listing(folder: Folder) -> None:
    source, output = places(folder)
    fill(source, THREE)
    embed_all(source, output)
    delete(source, *THREE)
    embed_all(source, output)
    assert present(output) == []


# Several inputs in one output


def test_two_inputs_of_one_output_do_not_mark_each_other(folder: Folder) -> None:
    first, second, output = (Folder(folder.child(name)) for name in ("in/one", "in/two", "out"))
    fill(first, TWELVE[:6])
    fill(second, TWELVE[6:])
    for source in (first, second, first, second):
        embed_all(source, output)
    assert (plan_numbers(output), present(output)) == ([0, 1], TWELVE)
    delete(first, TWELVE[0])
    delete(second, TWELVE[6])
    assert embed_all(first, output) == [2]
    assert marked(output) == [TWELVE[0]]
    assert embed_all(second, output) == [3]
    assert marked(output) == [TWELVE[0], TWELVE[6]]


def test_a_folder_within_another_marks_its_own(tmp_path: Path) -> None:
    outer, output = places(Folder(str(tmp_path)))
    inner = Folder(outer.child("sub"))
    fill(inner)
    embed_all(inner, output)
    fill(outer, ["outer.mp4"])
    embed_all(outer, output)
    delete(inner, TWELVE[0])
    embed_all(outer, output)
    assert marked(output) == []  # the video's last plan is of the other input
    embed_all(inner, output)
    assert marked(output) == [TWELVE[0]]
    delete(outer, "outer.mp4")
    embed_all(inner, output)
    assert marked(output) == [TWELVE[0]]


def test_an_id_whose_video_is_gone_is_free_for_another_input(tmp_path: Path) -> None:
    first, second, output = (Folder(str(tmp_path / name)) for name in ("one", "two", "out"))
    fill(first)
    embed_all(first, output)
    fill(second, TWELVE[:1])
    with pytest.raises(ConfigError):
        plan_new(second.uri, output)
    delete(first, TWELVE[0])
    embed_all(first, output)
    embed_all(second, output)
    embed_all(first, output)
    assert rows_of(output)[TWELVE[0]][schema.VIDEO_URI] == second.child(TWELVE[0])


def test_all_spellings_of_an_input_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = places(Folder(str(tmp_path)))
    fill(source)
    monkeypatch.chdir(tmp_path)
    spellings = ["in", "./in/", f"file://{source.uri}", f"{source.uri}/../in", f"{source.uri}//"]
    for at, spelling in enumerate(spellings):
        embed_all(source, output) if at == 0 else None
        delete(source, TWELVE[at])
        assert plan_new(spelling, output) == [at + 1]
        finish(output)
    assert marked(output) == TWELVE[: len(spellings)]


def test_the_same_relative_input_in_another_folder_is_another_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Folder(str(tmp_path / "out"))
    for name, videos in (("one", TWELVE[:6]), ("two", TWELVE[6:])):
        fill(Folder(str(tmp_path / name / "in")), videos)
        monkeypatch.chdir(tmp_path / name)
        plan_new("in", output)
        commit_statuses(output, {})
    assert present(output) == TWELVE


def test_a_plan_of_a_version_that_stored_relative_inputs_marks_nothing_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Folder(str(tmp_path / "out"))
    for name in ("one", "two"):
        fill(Folder(str(tmp_path / name / "in")), [f"{name}.mp4"])
    monkeypatch.chdir(tmp_path / "one")
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "normalised_input", lambda uri: uri)
        plan_new("in", output)
    commit_statuses(output, {})
    monkeypatch.chdir(tmp_path / "two")
    plan_new("in", output)
    assert marked(output) == []


# The guard against mass deletion


@pytest.mark.parametrize("num_deleted", [MAX_UNGUARDED, MAX_UNGUARDED + 1])
def test_more_than_a_hundred_and_a_fifth_are_refused(tmp_path: Path, num_deleted: int) -> None:
    source, output = places(Folder(str(tmp_path)))
    names = [f"{number:03d}.mp4" for number in range(4 * MAX_UNGUARDED)]
    for name in names:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    plan_new(source.uri, output)
    delete(source, *names[:num_deleted])
    upload(source, {"new.mp4": b"x"})
    if num_deleted <= MAX_UNGUARDED:
        assert plan_new(source.uri, output) == [1]
        assert marked(output) == names[:num_deleted]
        return
    with pytest.raises(ConfigError, match=str(num_deleted)) as caught:
        plan_new(source.uri, output)
    assert (caught.value.key, caught.value.value, caught.value.expected) == ("max_gone_fraction", num_deleted, 0.2)
    assert "--set max_gone_fraction=1" in caught.value.remedy
    assert caught.value.exit_code == 2
    assert plan_numbers(output) == [0], "nothing was planned, not even what is new"
    with pytest.raises(ConfigError):
        plan_new(source.uri, output, max_gone_fraction=0.25)
    assert plan_new(source.uri, output, max_gone_fraction=0.26) == [1]
    assert marked(output) == names[:num_deleted]
    assert plan_new(source.uri, output) == []


def test_videos_already_gone_do_not_count_for_the_guard(tmp_path: Path) -> None:
    source, output = places(Folder(str(tmp_path)))
    names = [f"{number:03d}.mp4" for number in range(3 * MAX_UNGUARDED)]
    fill(source, names)
    plan_new(source.uri, output)
    delete(source, *names[: MAX_UNGUARDED + 50])
    plan_new(source.uri, output, max_gone_fraction=1)
    delete(source, *names[MAX_UNGUARDED + 50 : 2 * MAX_UNGUARDED + 51])
    with pytest.raises(ConfigError):
        plan_new(source.uri, output, max_gone_fraction=0.6)  # 101 of the remaining 150
    assert plan_new(source.uri, output, max_gone_fraction=0.7) == [2]


# Only a complete listing marks


def test_a_listing_that_breaks_off_plans_and_marks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = places(Folder(str(tmp_path)))
    fill(source)
    embed_all(source, output)
    upload(source, {"0.mp4": content(seed=98), "99.mp4": content(seed=99)})
    find_videos = inputs.find_videos

    def cut(*args: Any, **kwargs: Any) -> Iterator[PlannedVideo]:  # noqa: ANN401
        for at, one in enumerate(find_videos(*args, **kwargs)):
            if at == 3:
                raise CUT
            yield one

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "find_videos", cut)
        with pytest.raises(StorageError):
            plan_new(source.uri, output)
    assert plan_numbers(output) == [0]
    assert plan_new(source.uri, output) == [1]
    assert marked(output) == []


def test_what_was_not_read_to_its_end_is_no_listing(tmp_path: Path) -> None:
    source, output = places(Folder(str(tmp_path)))
    fill(source)
    embed_all(source, output)
    upload(source, {"0.mp4": content(seed=98), "99.mp4": content(seed=99)})
    made = inputs.Planning.load(StoredPlans(output), plans.read_plan(output, 0).settings, source.uri)
    next(made.new_videos())
    assert made.gone().num_videos == 0


def test_a_folder_that_cannot_be_listed_marks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = places(Folder(str(tmp_path)))
    fill(source, ["a/0.mp4", "b/1.mp4"])
    embed_all(source, output)
    scandir, stat = local.os.scandir, local.os.stat

    def refused(path: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if str(path) == source.child("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path, *args, **kwargs)

    def stale(path: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if str(path).rstrip("/") == source.uri:
            raise OSError(116, "Stale file handle")
        return stat(path, *args, **kwargs)

    for name, broken in (("scandir", refused), ("stat", stale)):
        with monkeypatch.context() as patch:
            patch.setattr(local.os, name, broken)
            with pytest.raises(StorageError):
                plan_new(source.uri, output)
    assert plan_numbers(output) == [0]


def test_videos_behind_dangling_links_are_not_gone(tmp_path: Path) -> None:
    source, output = places(Folder(str(tmp_path)))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    fill(Folder(str(elsewhere)), ["0.mp4", "1.mp4"])
    fill(source, ["2.mp4", "3.mp4"])
    (tmp_path / "in" / "link.mp4").symlink_to(elsewhere / "0.mp4")
    (tmp_path / "in" / "folder").symlink_to(elsewhere)
    embed_all(source, output)
    elsewhere.rename(tmp_path / "unmounted")
    delete(source, "3.mp4")
    embed_all(source, output)
    assert marked(output) == ["3.mp4"]
    (tmp_path / "in" / "link.mp4").unlink()
    (tmp_path / "in" / "folder").unlink()
    embed_all(source, output)
    assert present(output) == ["2.mp4"]


@pytest.mark.parametrize("kind", ["folder", "object"])
def test_an_input_behind_a_dangling_link_marks_nothing(tmp_path: Path, kind: str) -> None:
    output = Folder(str(tmp_path / "out"))
    fill(Folder(str(tmp_path / "disk" / "in")))
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    source = Folder(str(tmp_path / "link" / "in" / ("" if kind == "folder" else TWELVE[0])))
    embed_all(source, output)
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    assert plan_new(source.uri, output) == []
    (tmp_path / "link").unlink()
    assert plan_new(source.uri, output) == [1]


def test_a_name_that_folders_do_not_list_is_not_gone() -> None:
    """Some earlier version took such a name for a video's."""
    listed = Listed("s3://b/in", "folder")
    names = {"a.mp4": True, "sub/b.mp4": True, "a.mp3": False, ".hidden/a.mp4": False, "": False}
    assert {name: listed.covers(f"s3://b/in/{name}".rstrip("/")) for name in names} == names
    assert not listed.covers("s3://b/inner/a.mp4")


def test_videos_below_the_current_output_are_not_gone(tmp_path: Path) -> None:
    source, output = places(Folder(str(tmp_path)))
    fill(source, ["a.mp4", "out/b.mp4"])
    embed_all(source, output)
    (tmp_path / "out").rename(tmp_path / "in" / "out" / "embeddings")
    moved = Folder(source.child("out"))
    (tmp_path / "in" / "out" / "embeddings" / "plans").rename(tmp_path / "in" / "out" / "plans")
    assert plan_new(source.uri, moved) == []


# Another driver in parallel


def test_a_video_that_another_driver_plans_meanwhile_is_not_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = places(Folder(str(tmp_path)))
    fill(source)
    embed_all(source, output)
    delete(source, *THREE)
    find_videos = inputs.find_videos

    def found_late(*args: Any, **kwargs: Any) -> Iterator[PlannedVideo]:  # noqa: ANN401
        yield from find_videos(*args, **kwargs)
        monkeypatch.undo()
        upload(source, {THREE[0]: content(seed=3)})  # at a key that the listing has already passed
        assert plan_new(source.uri, output) == [1]

    monkeypatch.setattr(inputs, "find_videos", found_late)
    plan_new(source.uri, output)
    finish(output)
    embed_all(source, output)
    assert present(output) == sorted({*TWELVE} - {*THREE[1:]})


# Any sequence of changes


@dataclass
class World:
    """Two inputs of one output, and the content of their last listings."""

    output: Folder
    kind: Kind  # "manifest": its videos may be anywhere, and it marks only when asked to
    inputs: dict[str, dict[str, str]] = field(default_factory=lambda: {"s3://b/one": {}, "s3://b/two": {}})
    listed: dict[str, dict[str, str]] = field(default_factory=dict)  # by URI: name -> etag
    num_changes: int = 0

    def change(self, uri: str, name: str, *, deletes: bool) -> None:
        self.num_changes += 1
        if deletes:
            self.inputs[uri].pop(name, None)
        else:
            self.inputs[uri][name] = f"e{self.num_changes % 3}"  # an etag may recur

    def scan(self, uri: str, *, breaks: bool) -> None:
        def find_videos(_: str, *, output_uri: str, listed: Listed) -> Iterator[PlannedVideo]:
            assert output_uri == self.output.uri
            listed.uri, listed.kind = uri, self.kind
            for name, etag in sorted(self.inputs[uri].items()):
                yield PlannedVideo(f"{uri[-3:]}/{name}", f"{uri}/{name}", etag, 1)
            if breaks:
                raise CUT

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(inputs, "find_videos", find_videos)
            policy: Gone = "auto" if self.kind == "folder" else "mark"
            if breaks:
                with pytest.raises(StorageError):
                    plan_new(f"{uri}/", self.output, gone=policy)
            else:
                plan_new(f"{uri}/", self.output, gone=policy)
                self.listed[uri] = dict(self.inputs[uri])

    def rows(self) -> Mapping[str, str]:
        """Return the etag of each video that is not gone, by URI, from its highest generation."""
        latest = {one.video_id: one for one in planned(self.output, plan_numbers(self.output))}
        return {one.video_uri: one.etag for one in latest.values() if not one.is_gone}


CHANGES = st.tuples(st.sampled_from("abcd"), st.booleans())
STEPS = st.lists(st.tuples(st.booleans(), st.lists(CHANGES, max_size=4), st.sampled_from([False, False, True])))


@settings(max_examples=examples(30))
@given(steps=STEPS, kind=st.sampled_from(["folder", "manifest"]))
def test_the_rows_that_count_are_those_of_the_last_listing_of_each_input(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[bool, list[tuple[str, bool]], bool]],
    kind: Kind,
) -> None:
    world = World(Folder(str(tmp_path_factory.mktemp("out"))), kind)
    uris = list(world.inputs)
    for is_second, changes, breaks in steps:
        for name, deletes in changes:
            world.change(uris[is_second], name, deletes=deletes)
        world.scan(uris[is_second], breaks=breaks)
        expected = {f"{uri}/{name}": etag for uri, held in world.listed.items() for name, etag in held.items()}
        assert world.rows() == expected
    numbers = plan_numbers(world.output)
    for uri in uris * 2:
        world.scan(uri, breaks=False)
    assert len(plan_numbers(world.output)) <= len(numbers) + 2, "a second listing of the same plans nothing"
