"""The inputs of suggest: which videos have a label, which have none, and which are never touched."""

from pathlib import Path

import pytest

from raypipe.config import SuggestConfig, load_config
from raypipe.errors import ConfigError
from raypipe.jobs.suggest.inputs import SortedVideos, sort_videos
from raypipe.storage import Folder
from support.train_runs import embed_all, video_ids

IDS = video_ids(24)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return embed_all(Folder(str(tmp_path_factory.mktemp("embeddings"))), IDS)


def sort(embeddings: Folder, path: Path, rows: list[str] | None, **values: object) -> SortedVideos:
    if rows is not None:
        (path / "labels.csv").write_text("\n".join(rows) + "\n")
        values["labels"] = str(path / "labels.csv")
    return sort_videos(load_config(SuggestConfig, values={"embeddings": embeddings.uri, "output": "o", **values}))


def ids_of(found: SortedVideos) -> tuple[list[str], list[str]]:
    return found.labelled["video_id"].to_pylist(), found.unlabelled["video_id"].to_pylist()


def test_videos_of_the_split_test_are_in_neither_list(embeddings: Folder, tmp_path: Path) -> None:
    rows = ["video_id,label,split", f"{IDS[0]},cat,train", f"{IDS[1]},dog,validation", f"{IDS[2]},fish,test"]
    found = sort(embeddings, tmp_path, rows)
    labelled, unlabelled = ids_of(found)
    assert labelled == sorted(IDS[:2])
    assert unlabelled == sorted(IDS[3:])
    assert (found.num_test, found.label_names, found.multi_label) == (1, ("cat", "dog"), False)
    assert found.labelled["targets"].to_pylist() == [[0], [1]]


def test_without_labels_every_video_has_none(embeddings: Folder, tmp_path: Path) -> None:
    found = sort(embeddings, tmp_path, None)
    assert ids_of(found) == ([], sorted(IDS))
    assert found.label_names == ()


def test_one_label_is_enough(embeddings: Folder, tmp_path: Path) -> None:
    found = sort(embeddings, tmp_path, ["video_id,label", f"{IDS[0]},cat", f"{IDS[4]},cat"])
    assert found.label_names == ("cat",)
    assert found.unlabelled.num_rows == len(IDS) - 2


def test_folders_label_every_video_in_them(embeddings: Folder, tmp_path: Path) -> None:
    found = sort(embeddings, tmp_path, None, labels_from="folder")
    assert ids_of(found) == (sorted(IDS), [])


def test_several_labels_of_a_video(embeddings: Folder, tmp_path: Path) -> None:
    rows = ["video_id,label", f"{IDS[0]},cat", f"{IDS[0]},dog", f"{IDS[1]},dog"]
    assert sort(embeddings, tmp_path, rows).multi_label
    with pytest.raises(ConfigError) as caught:
        sort(embeddings, tmp_path, rows, problem_type="single_label")
    assert caught.value.key == "problem_type"


@pytest.mark.parametrize(
    ("rows", "key"), [(["video_id,label", "other.mp4,cat"], "data.max_unknown_fraction"), (["video_id", "a"], "label")]
)
def test_labels_that_do_not_fit_are_an_error(embeddings: Folder, tmp_path: Path, rows: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sort(embeddings, tmp_path, rows)
    assert caught.value.key == key


def test_labels_come_from_one_place() -> None:
    with pytest.raises(ConfigError):
        load_config(
            SuggestConfig, values={"embeddings": "e", "output": "o", "labels": "l.csv", "labels_from": "folder"}
        )
