"""Which rows are indexed: those that count and are ok. Later seals change nothing, so every pass gives the same."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from raypipe.dataset.read import embeddings_manifests, read_embeddings
from raypipe.errors import CommitError, ConfigError
from raypipe.jobs.index.inputs import IndexedRows, find_rows
from raypipe.storage import Folder
from support.embed_outputs import (
    DIM,
    commit_statuses,
    content,
    embed_all,
    make_output,
    places,
    plan_new,
    replace_object,
    upload,
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an output of several generations: failed, partial, replaced and newly crashed videos."""
    folder = tmp_path_factory.mktemp("rows")
    output = make_output(Folder(str(folder)))
    source, _ = places(Folder(str(folder)))
    replace_object(source, "2.mp4", content(seed=33))
    replace_object(source, "4.mp4", content("crashed"))
    assert embed_all(source, output) == [2]
    return folder / "out"


@pytest.fixture
def embeddings(template: Path, tmp_path: Path) -> Folder:
    shutil.copytree(template, tmp_path / "out")
    return Folder(str(tmp_path / "out"))


def found(embeddings: Folder) -> IndexedRows:
    return find_rows(embeddings, embeddings_manifests(embeddings), embedding_dim=DIM)


def test_rows_that_are_ok_and_count(embeddings: Folder) -> None:
    rows = found(embeddings)
    assert rows.items["video_id"].to_pylist() == ["2.mp4", "0.mp4", "1.mp4", "3.mp4"]
    assert rows.items["generation"].to_pylist() == [2, 0, 0, 0]
    assert rows.num_left_out == 3  # 5.mp4 timed out, new.mp4 is partial, 4.mp4 crashed the second time
    expected = {row["video_id"]: row for table in read_embeddings(embeddings) for row in table.to_pylist()}
    for _ in range(2):
        batches = list(rows.batches())
        vectors = np.concatenate([batch[0] for batch in batches])
        thumbnails = [thumbnail for batch in batches for thumbnail in batch[1]]
        for video_id, vector, thumbnail in zip(rows.items["video_id"].to_pylist(), vectors, thumbnails, strict=True):
            np.testing.assert_array_equal(vector, np.array(expected[video_id]["embedding"], np.float32))
            assert thumbnail == expected[video_id]["thumbnail"]
            assert thumbnail is not None
        assert vectors.dtype == np.float32


def test_a_plan_whose_rows_are_all_superseded(tmp_path: Path) -> None:
    source, output = places(Folder(str(tmp_path)))
    upload(source, {"a.mp4": content(seed=1), "b.mp4": content(seed=2)})
    embed_all(source, output)
    for number in (3, 4):
        replace_object(source, f"{'ab'[number - 3]}.mp4", content(seed=number))
        embed_all(source, output)
    rows = found(output)
    assert rows.items["generation"].to_pylist() == [2, 1]
    assert sum(len(thumbnails) for _, thumbnails in rows.batches()) == 2


def test_a_later_seal_changes_nothing(embeddings: Folder, template: Path) -> None:
    rows = found(embeddings)
    before = np.concatenate([batch[0] for batch in rows.batches()])
    source = Folder(str(template.parent / "in"))
    replace_object(source, "0.mp4", content(seed=77))
    assert embed_all(source, embeddings) == [3]
    np.testing.assert_array_equal(np.concatenate([batch[0] for batch in rows.batches()]), before)
    assert found(embeddings).items["video_id"].to_pylist()[0] == "0.mp4"
    replace_object(source, "0.mp4", content(seed=0))


def test_an_output_without_ok_videos_is_one_line(tmp_path: Path) -> None:
    source, output = places(Folder(str(tmp_path)))
    upload(source, {"a.mp4": content(), "b.mp4": content()})
    plan_new(source.uri, output)
    commit_statuses(output, {"a.mp4": "partial", "b.mp4": "crashed"})
    with pytest.raises(ConfigError) as raised:
        found(output)
    assert (raised.value.key, raised.value.value) == (str(output), 2)
    assert "raypipe verify" in raised.value.remedy


def test_a_file_changed_since_the_seal(embeddings: Folder) -> None:
    rows = found(embeddings)
    names = [stored.key for stored in embeddings.list("data/")]
    replace_object(embeddings, names[0], embeddings.read(names[-1]))
    with pytest.raises(CommitError) as raised:
        list(rows.batches())
    assert (raised.value.key, raised.value.value, raised.value.expected) == (embeddings.child(names[0]), 1, 2)
    assert "raypipe verify" in raised.value.remedy
    with pytest.raises(CommitError) as raised:
        found(embeddings)
    assert (raised.value.key, raised.value.value, raised.value.expected) == (embeddings.child(names[0]), 0, 2)
    replace_object(embeddings, names[-1], b"PAR1")
    with pytest.raises(CommitError) as raised:
        found(embeddings)
    assert raised.value.key == embeddings.child(names[-1])


def test_vectors_of_another_length_are_refused(embeddings: Folder) -> None:
    rows = find_rows(embeddings, embeddings_manifests(embeddings), embedding_dim=DIM + 1)
    with pytest.raises(CommitError) as raised:
        list(rows.batches())
    assert str(raised.value.value).startswith("fixed_size_list<")
    assert raised.value.expected == DIM + 1
