"""Inputs of a training: sealed embeddings joined with their labels, checked and split."""

import re
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.config import TrainConfig, load_config
from raypipe.errors import ConfigError, JobError, RaypipeError
from raypipe.jobs.train.datasets import blocks
from raypipe.jobs.train.inputs import FILE, INDEX, TARGETS, TrainingSamples, find_samples
from raypipe.storage import Folder
from support.embed_outputs import (
    DIM,
    MARK,
    commit_statuses,
    content,
    embed_all,
    places,
    plan_new,
    replace_object,
    upload,
)

Videos = Mapping[str, str]  # video_id -> final status


def embedded(tmp_path: Path, videos: Videos, *, sealed: bool = True) -> Folder:
    """Return a sealed output of one plan."""
    source, output = places(Folder(str(tmp_path)))
    upload(source, {name: content(seed=at) for at, name in enumerate(videos)})
    plan_new(source.uri, output)
    commit_statuses(output, videos, sealed=sealed)
    return output


def ok(*names: str) -> Videos:
    return dict.fromkeys(names, "ok")


def find(output: Folder, labels: str | None, *overrides: str, **values: object) -> TrainingSamples:
    """Find the samples for these rows of ``video_id,label`` or ``video_id,label,split``."""
    given: dict[str, object] = {"embeddings": output.uri, "output": "o", **values}
    if labels is not None:
        columns = "video_id,label,split\n" if labels.count(",") == 2 * (labels.count("\n") + 1) else "video_id,label\n"
        path = Path(output.uri).parent / "labels.csv"
        path.write_text(columns + labels + "\n", encoding="utf-8")
        given["labels"] = str(path)
    return find_samples(load_config(TrainConfig, values=given, overrides=overrides))


def targets_of(samples: TrainingSamples) -> dict[str, list[str]]:
    """Return the labels of each video, in both splits."""
    found: dict[str, list[str]] = {}
    for part in (samples.train, samples.validation):
        assert part[INDEX].to_pylist() == list(range(part.num_rows))
        for row in part.to_pylist():
            assert row["video_id"] not in found
            found[row["video_id"]] = [samples.label_names[target] for target in row[TARGETS]]
    return found


def problem(
    output: Folder, labels: str | None, *overrides: str, kind: type[RaypipeError] = ConfigError, **values: object
) -> RaypipeError:
    with pytest.raises(kind) as caught:
        find(output, labels, *overrides, **values)
    assert str(caught.value).isprintable()
    return caught.value


def counts(error: RaypipeError, output: Folder) -> list[str]:
    """Return the sorted whole numbers of an error, except those in names, paths and settings."""
    return sorted(re.findall(r"(?<![\w.=-])\d+(?![\w.-])", str(error).replace(output.uri, "")))


FOUR = ok("a", "b", "c", "d")
ABCD = "a,x\nb,y\nc,x\nd,y"


def test_every_labelled_video_is_a_sample(tmp_path: Path) -> None:
    samples = find(embedded(tmp_path, ok("a", "b", "c", "d", "e")), ABCD)
    assert targets_of(samples) == {"a": ["x"], "b": ["y"], "c": ["x"], "d": ["y"]}
    assert (samples.label_names, samples.multi_label) == (("x", "y"), False)
    assert (samples.embedding_dim, samples.fingerprint) == (DIM, MARK)
    assert (samples.num_unknown, samples.num_without_frames) == (0, 0)
    assert (samples.train.num_rows, samples.validation.num_rows) == (2, 2)


def test_a_sample_names_the_file_that_holds_it(tmp_path: Path) -> None:
    output = embedded(tmp_path, FOUR)
    samples = find(output, ABCD)
    for row in pa.concat_tables([samples.train, samples.validation]).to_pylist():
        assert row[FILE].startswith("data/")
        with output.open_input(row[FILE]) as source:
            assert row["video_id"] in pa.parquet.read_table(source)["video_id"].to_pylist()


def test_the_latest_embedding_of_a_video_counts(tmp_path: Path) -> None:
    source, output = places(Folder(str(tmp_path)))
    upload(source, {name: content(seed=at) for at, name in enumerate("abcd")})
    embed_all(source, output)
    replace_object(source, "a", content(num_frames=5, seed=9))
    replace_object(source, "b", content("crashed", seed=9))
    embed_all(source, output)
    samples = find(output, "a,x\nb,y\nc,x\nd,y\n", "data.validation_fraction=0")
    assert targets_of(samples) == {"a": ["x"], "c": ["x"], "d": ["y"]}
    assert samples.num_without_frames == 1
    files = dict(zip(samples.train["video_id"].to_pylist(), samples.train[FILE].to_pylist(), strict=True))
    with output.open_input(files["a"]) as file:
        rows = {row["video_id"]: row["generation"] for row in pa.parquet.read_table(file).to_pylist()}
    assert rows["a"] == 1
    assert files["a"] != files["c"]


def test_a_video_fixed_by_a_retry_is_a_sample(tmp_path: Path) -> None:
    source, output = places(Folder(str(tmp_path)))
    upload(source, {name: content(seed=at) for at, name in enumerate("abcd")})
    plan_new(source.uri, output)
    commit_statuses(output, {"a": "crashed", "b": "timeout"})
    plan_new(source.uri, output, retry="all")
    commit_statuses(output, {"b": "timeout"})
    samples = find(output, ABCD, "data.validation_fraction=0")
    assert targets_of(samples) == {"a": ["x"], "c": ["x"], "d": ["y"]}
    assert samples.num_without_frames == 1


def test_a_video_that_is_gone_is_neither_a_sample_nor_unknown(tmp_path: Path) -> None:
    source, output = places(Folder(str(tmp_path)))
    upload(source, {name: content(seed=at) for at, name in enumerate(["x/a", "x/b", "y/c", "y/d", "at-the-root"])})
    embed_all(source, output)
    for name in ("x/a", "at-the-root"):
        replace_object(source, name, None)
    embed_all(source, output)
    by_file = find(output, "x/a,z\nx/b,x\ny/c,y\ny/d,y\n", "data.validation_fraction=0")
    assert targets_of(by_file) == {"x/b": ["x"], "y/c": ["y"], "y/d": ["y"]}
    assert (by_file.num_unknown, by_file.num_without_frames) == (0, 0)
    by_folder = find(output, None, "data.validation_fraction=0", labels_from="folder")
    assert targets_of(by_folder) == targets_of(by_file)
    hidden = find(output, None, "data.validation_fraction=0", objective="masked_frame")
    assert (hidden.train.num_rows, hidden.num_without_frames) == (3, 0)


@pytest.mark.parametrize("status", ["crashed", "decode_error", "too_large"])
def test_a_video_without_frames_is_counted_and_left_out(tmp_path: Path, status: str) -> None:
    samples = find(embedded(tmp_path, {**FOUR, "b": status}), ABCD + "\na,y", "data.validation_fraction=0")
    assert targets_of(samples) == {"a": ["x", "y"], "c": ["x"], "d": ["y"]}
    assert samples.num_without_frames == 1


def test_a_partial_video_is_a_sample(tmp_path: Path) -> None:
    assert "b" in targets_of(find(embedded(tmp_path, {**FOUR, "b": "partial"}), ABCD))


def test_too_many_unknown_videos_are_refused_with_their_number(tmp_path: Path) -> None:
    output = embedded(tmp_path, FOUR)
    labels = f"{ABCD}\n" + "\n".join(f"gone-{at},x" for at in range(4))
    error = problem(output, labels, "data.max_unknown_fraction=0.49")
    assert (error.key, error.value) == ("data.max_unknown_fraction", 0.49)
    assert "'gone-0', 'gone-1', 'gone-2', …" in str(error)
    assert "'gone-3'" not in str(error)
    assert "data.max_unknown_fraction=0.49" in str(error)
    assert counts(error, output) == ["4", "8"]
    samples = find(output, labels, "data.max_unknown_fraction=0.5")
    assert samples.num_unknown == 4
    assert targets_of(samples).keys() == FOUR.keys()


def test_one_unknown_video_counts_once(tmp_path: Path) -> None:
    output = embedded(tmp_path, FOUR)
    error = problem(output, f"{ABCD}\ngone,x\ngone,y")
    assert error.key == "data.max_unknown_fraction"
    assert str(error).count("'gone'") == 1
    assert "…" not in str(error)
    assert counts(error, output) == ["1", "5"]


def test_labels_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    output = embedded(tmp_path, dict.fromkeys("ab", "crashed"))
    for error in (problem(output, "a,x\nb,y"), problem(output, "q,x\nr,y", "data.max_unknown_fraction=1")):
        assert (error.key, error.value) == ("labels", str(tmp_path / "labels.csv"))
        assert output.uri in str(error)


def test_an_unsealed_output_is_refused(tmp_path: Path) -> None:
    output = embedded(tmp_path, FOUR, sealed=False)
    error = problem(output, ABCD, kind=JobError)
    assert (error.key, error.value) == (output.uri, [0])
    assert "raypipe embed" in error.remedy
    nowhere = Folder(str(tmp_path / "none"))
    error = problem(nowhere, None, kind=JobError, labels_from="folder")
    assert (error.key, error.value) == (nowhere.uri, None)
    assert "raypipe embed" in error.remedy


def test_several_labels_of_a_video_are_found_or_refused(tmp_path: Path) -> None:
    output = embedded(tmp_path, FOUR)
    labels = f"{ABCD}\na,z\nb,z"
    samples = find(output, labels)
    assert samples.multi_label
    assert targets_of(samples) == {"a": ["x", "z"], "b": ["y", "z"], "c": ["x"], "d": ["y"]}
    error = problem(output, labels, "problem_type=single_label")
    assert (error.key, error.value) == ("problem_type", "single_label")
    assert "multi_label" in error.remedy
    assert find(output, ABCD, "problem_type=multi_label").multi_label


def test_a_repeated_row_is_not_a_second_label(tmp_path: Path) -> None:
    assert not find(embedded(tmp_path, FOUR), f"{ABCD}\na,x").multi_label


def test_a_single_label_is_refused(tmp_path: Path) -> None:
    output = embedded(tmp_path, FOUR)
    error = problem(output, "a,x\nb,x")
    assert (error.key, error.value) == ("label", "x")
    assert "problem_type=multi_label" in error.remedy
    assert find(output, "a,x\nb,x", "problem_type=multi_label").label_names == ("x",)


def test_folders_are_labels(tmp_path: Path) -> None:
    others = {"z/a": "crashed", "LICENSE": "no_video_stream"}  # the second is in no folder, and is no video
    output = embedded(tmp_path, {"x/a": "ok", "x/b": "ok", "deep/y/a": "ok", "deep/y/b": "ok", **others})
    samples = find(output, None, labels_from="folder")
    assert targets_of(samples) == {"x/a": ["x"], "x/b": ["x"], "deep/y/a": ["y"], "deep/y/b": ["y"]}
    assert (samples.num_unknown, samples.num_without_frames) == (0, 1)


def test_a_split_column_is_obeyed_and_test_is_left_out(tmp_path: Path) -> None:
    output = embedded(tmp_path, FOUR)
    samples = find(output, "a,x,train\nb,y,train\nc,x,val\nd,q,test")
    assert samples.train["video_id"].to_pylist() == ["a", "b"]
    assert samples.validation["video_id"].to_pylist() == ["c"]
    assert samples.label_names == ("x", "y")
    error = problem(output, "a,x,val\nb,y,val")
    assert (error.key, error.value, error.expected) == ("split", None, "train")
    error = problem(output, "a,x,train\na,x,test\nb,y,train")
    assert (error.key, error.value) == ("video_id", "a")


def test_a_label_of_one_video_is_refused_or_learned_alone(tmp_path: Path) -> None:
    output = embedded(tmp_path, FOUR)
    error = problem(output, "a,x\nb,x\nc,q")
    assert (error.key, error.value) == ("label", "q")
    assert "data.validation_fraction=0" in error.remedy
    samples = find(output, "a,x\nb,x\nc,q", "data.validation_fraction=0")
    assert (samples.train.num_rows, samples.validation.num_rows) == (3, 0)


def test_without_labels_every_video_with_frames_is_a_sample(tmp_path: Path) -> None:
    output = embedded(tmp_path, {**FOUR, "e": "crashed"})
    samples = find(output, None, objective="masked_frame")
    assert targets_of(samples) == {name: [] for name in "abcd"}
    assert (samples.label_names, samples.multi_label, samples.num_without_frames) == ((), False, 1)
    assert (samples.train.num_rows, samples.validation.num_rows) == (3, 1)


def test_a_self_training_has_the_videos_without_a_label_as_well(tmp_path: Path) -> None:
    output = embedded(tmp_path, {**FOUR, "e": "ok", "f": "ok", "g": "crashed", "h": "ok"})
    keys = {"objective": "self_train"}
    samples = find(output, "a,x,train\nb,y,train\nc,x,val\nd,y,test", **keys)
    assert (samples.train["video_id"].to_pylist(), samples.validation["video_id"].to_pylist()) == (["a", "b"], ["c"])
    assert samples.unlabelled["video_id"].to_pylist() == ["e", "f", "h"]  # not d, which is kept for a test
    assert samples.unlabelled[TARGETS].to_pylist() == [[], [], []]
    fewer = find(output, "a,x,train\nb,y,train\nc,x,val\nd,y,test", "self_train.max_videos=2", **keys)
    assert fewer.unlabelled["video_id"].to_pylist() == ["e", "h"]
    assert fewer.digest != samples.digest
    assert find(output, ABCD).unlabelled.num_rows == 0
    error = problem(output, ABCD + "\ne,x\nf,y\nh,x", **keys)
    assert (error.key, error.value) == ("objective", "self_train")
    error = problem(output, ABCD + "\na,y", **keys)
    assert (error.key, error.value) == ("objective", "self_train")


def test_one_video_without_labels_is_enough(tmp_path: Path) -> None:
    samples = find(embedded(tmp_path, ok("a")), None, objective="masked_frame")
    assert (samples.train.num_rows, samples.validation.num_rows) == (1, 0)


def test_no_video_with_frames_is_refused(tmp_path: Path) -> None:
    output = embedded(tmp_path, {"a": "crashed"})
    error = problem(output, None, objective="masked_frame")
    assert (error.key, error.value) == ("embeddings", output.uri)
    assert "raypipe verify" in error.remedy


def test_a_digest_is_of_what_is_learned_and_of_nothing_else(tmp_path: Path) -> None:
    source, output = places(Folder(str(tmp_path)))
    upload(source, {name: content(seed=at) for at, name in enumerate("abcdefgh")})
    embed_all(source, output)
    labels = "a,x\nb,y\nc,x\nd,y\ne,x\nf,y"
    first = find(output, labels)
    backwards = "\n".join(reversed(labels.split("\n")))
    same = [find(output, labels), find(output, backwards), find(output, f"{labels}\na,x"), find(output, labels)]
    upload(source, {"new": content(seed=77)})
    embed_all(source, output)
    same.append(find(output, labels))
    assert {one.digest for one in same} == {first.digest}
    assert all(one.train.equals(first.train) and one.validation.equals(first.validation) for one in same)
    others = [
        find(output, labels.replace("a,x", "a,y")),  # a different label
        find(output, labels.replace("x", "z")),  # a renamed label
        find(output, f"{labels}\na,y"),  # one more label
        find(output, labels.replace("f,y", "g,y")),  # a different video
        find(output, labels, "data.validation_fraction=0"),  # a different split
        find(output, None, objective="masked_frame"),
    ]
    replace_object(source, "a", content(num_frames=5, seed=9))
    embed_all(source, output)
    others.append(find(output, labels, "data.validation_fraction=0.1"))  # different content
    assert len({one.digest for one in others} | {first.digest}) == len(others) + 1


@given(count=st.integers(1, 60), num_workers=st.integers(1, 4), seed=st.integers(0, 5))
def test_blocks_hold_every_sample_once_and_few_files_each(count: int, num_workers: int, seed: int) -> None:
    table = pa.table(
        {
            FILE: [f"data/{at % 7}" for at in range(count)],
            "video_id": [str(at) for at in range(count)],
            TARGETS: [[0]] * count,
            INDEX: list(range(count)),
        }
    )
    made = list(blocks(table, num_workers=num_workers, seed=seed))
    again = list(blocks(table, num_workers=num_workers, seed=seed))
    assert [block.to_pylist() for block in made] == [block.to_pylist() for block in again]
    assert sorted(pa.concat_tables(made)[INDEX].to_pylist()) == list(range(count))
    assert all(block.num_rows for block in made)
    reads = sum(pc.count_distinct(block[FILE]).as_py() for block in made)
    assert reads <= len(made) + min(7, count) - 1
