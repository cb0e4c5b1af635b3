import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from raypipe.errors import IndexVersionError, QueryError
from raypipe.search.index import VideoIndex
from raypipe.search.query import Query
from support.catalogues import Catalogue
from support.vectors import clustered, index_of


@pytest.fixture(scope="module")
def index(index_folder: Path) -> VideoIndex:
    return VideoIndex.load(index_folder)


def test_it_opens_with_its_own_manifest_or_one_that_was_read(index: VideoIndex, index_folder: Path) -> None:
    manifest = json.loads((index_folder / "manifest.json").read_bytes())
    assert index.manifest == manifest
    assert index.version == VideoIndex.load(index_folder, manifest).version == manifest["id"]
    assert len(index.items) == len(index.vectors) == 600
    assert (index.ann.kind, index.ann.nlist, index.ann.recall_at_10) == ("flat", 1, 1.0)


def test_similar_videos_are_of_the_same_cluster(index: VideoIndex, catalogue: Catalogue) -> None:
    for video_id in catalogue.items["video_id"].to_pylist()[:40:3]:
        answer = index.similar(video_id, top_k=10)
        assert len(answer.results) == 10
        assert video_id not in [one.video_id for one in answer.results]
        assert {one.video_id.partition("/")[0] for one in answer.results} == {video_id.partition("/")[0]}
        assert {one.closest for one in answer.results} == {video_id}
        for one in answer.results:
            assert one.score == pytest.approx(one.similarity, abs=2e-3)  # float16 vectors have a length of nearly 1
        assert index.recommend(Query(history=(video_id,), top_k=10)) == answer


def test_similar_takes_the_options_of_a_query(index: VideoIndex, catalogue: Catalogue) -> None:
    video_id = catalogue.items["video_id"][0].as_py()
    answer = index.similar(video_id, top_k=30, filters={"language": "de"}, max_per_category=3)
    rows = [index.items.row(one.position) for one in answer.results]
    assert {row["language"] for row in rows} == {"de"}
    assert len(rows) == 3 * len({row["category"] for row in rows}) == 18  # five categories, and videos without one


def test_an_embedding_finds_its_own_video(index: VideoIndex, catalogue: Catalogue) -> None:
    answer = index.recommend(Query(embeddings=catalogue.embeddings[30:31], top_k=1))
    assert [one.position for one in answer.results] == [30]


def test_one_of_each_group_of_near_duplicates(index: VideoIndex) -> None:
    every = index.recommend(Query(history=("nothing",), top_k=600, one_per_duplicate_group=True))
    assert len(every.results) == 600 - 30  # every twentieth video is a near-duplicate of the previous one
    assert every.unknown == ("nothing",)


def test_an_unknown_video_has_no_similar_ones(index: VideoIndex) -> None:
    with pytest.raises(QueryError) as raised:
        index.similar("nothing", top_k=5)
    assert (raised.value.key, raised.value.value) == ("video_id", "nothing")


def test_find_looks_into_titles_and_ids_in_any_case() -> None:
    columns = {
        "video_id": ["clips/One.mp4", "clips/two.mp4", "clips/three.mp4", "clips/four.mp4"],
        "title": ["Ärger", None, "Second (one)", "100%"],
        "category": ["a", "a", "b", None],
    }
    index = index_of(clustered(4, dim=4), columns)
    assert index.find("ONE", {}, offset=0, limit=9) == ([0, 2], 2)
    assert index.find("ONE", {"category": "b"}, offset=0, limit=9) == ([2], 1)
    assert index.find("second", {"category": "b"}, offset=0, limit=9) == ([2], 1)
    assert index.find("clips/t", {"category": "b"}, offset=0, limit=9) == ([2], 1)
    assert index.find("clips/t", {"category": "a"}, offset=0, limit=9) == ([1], 1)
    assert index.find("ärg", {}, offset=0, limit=9) == ([0], 1)
    assert index.find("(one)", {}, offset=0, limit=9) == ([2], 1)
    assert index.find("%", {}, offset=0, limit=9) == ([3], 1)
    assert index.find(None, {}, offset=1, limit=2) == ([1, 2], 4)
    assert index.find("", {"category": ["a", "b"]}, offset=2, limit=2) == ([2], 3)
    assert index.find("mp4", {}, offset=9, limit=2) == ([], 4)
    with pytest.raises(QueryError) as raised:
        index.find("x", {"genre": "a"}, offset=0, limit=9)
    assert (raised.value.value, raised.value.choices) == ("genre", ("category", "title", "video_id"))


@pytest.fixture
def copied(index_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(index_folder, tmp_path / "copied"))


def test_files_that_do_not_fit_are_refused(copied: Path) -> None:
    vectors = np.load(copied / "vectors.npy", allow_pickle=False)
    np.save(copied / "vectors.npy", vectors[:-1])
    with pytest.raises(IndexVersionError) as raised:
        VideoIndex.load(copied)
    assert (raised.value.key, raised.value.value, raised.value.expected) == (str(copied), (599, 16), (600, 16))
    np.save(copied / "vectors.npy", vectors.astype(np.float32))
    with pytest.raises(IndexVersionError) as raised:
        VideoIndex.load(copied)
    assert (raised.value.key, raised.value.value) == (str(copied / "vectors.npy"), "float32(600, 16)")


@pytest.mark.parametrize(
    "name", ["vectors.npy", "index.faiss", "projection.safetensors", "items.parquet", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["gone", "cut", "empty"])
def test_a_damaged_file_is_refused(copied: Path, name: str, damage: str) -> None:
    data = (copied / name).read_bytes()
    (copied / name).unlink()
    if damage != "gone":
        (copied / name).write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    with pytest.raises(IndexVersionError):
        VideoIndex.load(copied)


@pytest.mark.parametrize("key", ["nprobe", "trained", "recall_at_10"])
def test_a_manifest_says_how_to_search(copied: Path, key: str) -> None:
    manifest = json.loads((copied / "manifest.json").read_bytes())
    del manifest[key]
    with pytest.raises(IndexVersionError, match=f"'{key}'") as raised:
        VideoIndex.load(copied, manifest)
    assert raised.value.key == str(copied / "manifest.json")
