import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.config import IndexSettings
from raypipe.errors import JobError
from raypipe.search import build as build_module
from raypipe.search.build import Batch, build_version
from raypipe.search.index import VideoIndex
from raypipe.search.items import Items
from raypipe.search.projection import Projection, unit_length
from raypipe.search.versions import EMBEDDINGS, FILES, Versions
from raypipe.storage import Folder
from support.catalogues import Catalogue, make_catalogue
from support.properties import examples

SETTINGS = IndexSettings(dim=16)


def build(work: Path, catalogue: Catalogue, *, base: VideoIndex | None = None, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - settings
    return build_version(
        work,
        items=catalogue.items,
        batches=catalogue.batches,
        settings=SETTINGS.model_copy(update=options),
        base=base,
    )


def opened(root: Path, catalogue: Catalogue, **options: Any) -> VideoIndex:  # noqa: ANN401 - settings
    return VideoIndex.load(
        catalogue.build(Folder(str(root)), root / "work", settings=SETTINGS.model_copy(update=options))
    )


def vectors_of(work: Path) -> np.ndarray:
    return np.load(work / "vectors.npy", mmap_mode="r", allow_pickle=False)


def check_rows(work: Path, catalogue: Catalogue) -> None:
    """Check that row i of every file belongs to video i."""
    items, projection = Items.open(work), Projection.load(work / "projection.safetensors")
    vectors = vectors_of(work)
    assert vectors.dtype == np.float16
    assert vectors.shape == (len(catalogue.embeddings), projection.dim)
    np.testing.assert_allclose(vectors, projection.apply(catalogue.embeddings), atol=1e-3)
    assert [items.video_id(row) for row in range(len(items))] == catalogue.items["video_id"].to_pylist()
    assert [items.thumbnail(row) for row in range(len(items))] == catalogue.thumbnails


def test_a_build_writes_every_file_and_its_manifest(catalogue: Catalogue, tmp_path: Path) -> None:
    said = build(tmp_path, catalogue)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, EMBEDDINGS])
    check_rows(tmp_path, catalogue)
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["columns"] == {
        "video_id": "large_string",
        "video_uri": "large_string",
        "etag": "large_string",
        "generation": "int32",
        "duration_seconds": "double",
        "label": "large_string",
        "score": "float",
        "duplicate_group": "int64",
        "title": "large_string",
        "category": "large_string",
        "language": "large_string",
        "published_at": "timestamp[us, tz=UTC]",
        "popularity": "int64",
    }
    assert {key: said[key] for key in ("num_videos", "num_skipped", "dim", "embedding_dim", "kind")} == {
        "num_videos": 600,
        "num_skipped": 0,
        "dim": 16,
        "embedding_dim": 32,
        "kind": "flat",
    }
    assert said["recall_at_10"] == 1
    assert said["bytes_per_vector"] > 0
    assert said["build_seconds"] > 0
    assert said["trained"] == {"num_videos": 600, "version": said["id"]}
    assert pq.read_table(tmp_path / "items.parquet").drop_columns("duplicate_group") == catalogue.items


def test_near_duplicates_are_grouped(catalogue: Catalogue, tmp_path: Path) -> None:
    said = build(tmp_path, catalogue, whitening=0)
    groups = Items.open(tmp_path).duplicate_groups
    expected = np.full(600, -1)
    for row in range(19, 600, 20):
        expected[[row - 1, row]] = row - 1
    np.testing.assert_array_equal(groups, expected)
    assert said["num_duplicate_groups"] == 30


@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
@settings(max_examples=examples(25))
@given(num_videos=st.integers(1, 50), dim=st.integers(1, 40), batch=st.integers(1, 60), data=st.data())
def test_any_small_catalogue_is_built(
    *,
    whitening: float,
    num_videos: int,
    dim: int,
    batch: int,
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """This includes fewer videos than dimensions, one video many times, and embeddings that cannot be indexed."""
    work = tmp_path_factory.mktemp("work")
    catalogue = replace(make_catalogue(num_videos, dim=dim), batch_rows=batch)
    same = data.draw(st.sets(st.integers(0, num_videos - 1)))
    catalogue.embeddings[sorted(same)] = catalogue.embeddings[min(same, default=0)]
    bad = data.draw(st.dictionaries(st.integers(0, num_videos - 1), st.sampled_from([0, np.nan, np.inf, -np.inf])))
    for row, value in bad.items():
        catalogue.embeddings[row] = value
    left = [row for row in range(num_videos) if row not in bad]
    if not left:
        with pytest.raises(JobError, match=rf"\b{num_videos}\b") as raised:
            build(work, catalogue, whitening=whitening)
        assert (raised.value.key, raised.value.expected) == ("embedding", None)
        return
    said = build(work, catalogue, whitening=whitening)
    check_rows(work, catalogue.select(left))
    assert (said["num_videos"], said["num_skipped"]) == (len(left), len(bad))
    lengths = np.linalg.norm(vectors_of(work).astype(np.float32), axis=1)
    assert np.all(np.abs(lengths - 1) < 2e-3)
    groups = Items.open(work).duplicate_groups
    alike = [left.index(row) for row in sorted(same) if row not in bad]
    if len(alike) > 1:
        assert set(groups[alike]) == {groups[alike[0]]}
        assert 0 <= groups[alike[0]] <= alike[0]


def test_one_video_is_an_index(tmp_path: Path) -> None:
    index = opened(tmp_path, make_catalogue(1))
    assert len(index.items) == 1


@pytest.mark.parametrize(("size", "key"), [(0, "status"), (5, "embedding")])
def test_an_invalid_build_is_one_line(size: int, key: str, tmp_path: Path) -> None:
    catalogue = make_catalogue(size)
    catalogue.embeddings[:] = 0
    with pytest.raises(JobError) as raised:
        build(tmp_path, catalogue)
    assert (raised.value.key, raised.value.expected) == (key, None)
    assert str(raised.value).isprintable()


def test_a_repeated_video_is_refused(tmp_path: Path) -> None:
    catalogue = make_catalogue(10)
    with pytest.raises(JobError, match=r" 3 ") as raised:
        build(tmp_path, catalogue.select([0, 1, 3, 3, 4, 3]))
    assert (raised.value.key, raised.value.value) == ("video_id", catalogue.items["video_id"][3].as_py())


@pytest.mark.parametrize("missing", [-1, 1])
def test_embeddings_of_other_videos_than_the_items_are_refused(missing: int, tmp_path: Path) -> None:
    catalogue = make_catalogue(10)
    catalogue.items = catalogue.items.slice(0, 9) if missing < 0 else pa.concat_tables([catalogue.items] * 2)[:11]
    with pytest.raises(JobError) as raised:
        build(tmp_path, catalogue) if missing < 0 else _build_without_check(tmp_path, catalogue)
    assert (raised.value.value, raised.value.expected) == (10, 10 + missing)


def _build_without_check(work: Path, catalogue: Catalogue) -> None:
    ids = pa.array([str(row) for row in range(catalogue.items.num_rows)])
    catalogue.items = catalogue.items.set_column(0, "video_id", ids)
    build(work, catalogue)


def test_embeddings_are_never_all_in_memory(tmp_path: Path) -> None:
    catalogue = replace(make_catalogue(600), batch_rows=50)
    alive: list[weakref.ref[np.ndarray]] = []
    passes = 0

    def batches() -> Iterator[Batch]:
        nonlocal passes
        passes += 1
        for embeddings, thumbnails in catalogue.batches():
            mine = embeddings.copy()
            alive.append(weakref.ref(mine))
            assert sum(one() is not None for one in alive) <= 2
            yield mine, thumbnails
            del mine

    build_version(tmp_path, items=catalogue.items, batches=batches, settings=SETTINGS, base=None)
    assert passes == 2
    assert len(alive) == 24


def test_a_projection_learns_from_some_of_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = make_catalogue(3_000)
    build(tmp_path / "all", catalogue, whitening=0)
    monkeypatch.setattr(build_module, "LEARN_FROM", 1_500)
    build(tmp_path / "some", catalogue, whitening=0)
    check_rows(tmp_path / "some", catalogue)
    of_all, of_some = (Projection.load(tmp_path / name / "projection.safetensors") for name in ("all", "some"))
    assert not np.array_equal(of_all.mean, of_some.mean)
    np.testing.assert_allclose(of_all.mean, of_some.mean, atol=0.02)


def test_the_same_catalogue_gives_the_same_files(catalogue: Catalogue, tmp_path: Path) -> None:
    for name in ("1", "2"):
        build(tmp_path / name, catalogue)
    for name in FILES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


class TestAppend:
    """Build on a base version: what it learned is kept unless the catalogue has drifted too far."""

    def test_new_videos_are_added_and_deleted_ones_removed(self, tmp_path: Path) -> None:
        whole = make_catalogue(600)
        base = opened(tmp_path / "base", whole.select([*range(400)]))
        now = whole.select([*range(100, 400), *range(400, 600)])
        said = build(tmp_path / "work", now, base=base)
        check_rows(tmp_path / "work", now)
        assert said["trained"] == {"num_videos": 400, "version": base.manifest["id"]}
        assert said["num_videos"] == 500
        projection = Projection.load(tmp_path / "work" / "projection.safetensors")
        np.testing.assert_array_equal(projection.matrix, base.projection.matrix)

    @pytest.mark.parametrize("kept", [True, False])
    def test_twice_the_videos_learn_again(self, *, kept: bool, tmp_path: Path) -> None:
        whole = make_catalogue(401)
        base = opened(tmp_path / "base", whole.select([*range(200)]))
        said = build(tmp_path / "work", whole.select([*range(400 if kept else 401)]), base=base)
        assert said["trained"]["version"] == (base.manifest["id"] if kept else said["id"])

    @pytest.mark.parametrize("options", [{"dim": 8}, {"whitening": 0}, {"flat_below": 250}])
    def test_other_settings_or_another_kind_learn_again(self, options: dict[str, Any], tmp_path: Path) -> None:
        whole = make_catalogue(300)
        base = opened(tmp_path / "base", whole.select([*range(200)]))
        said = build(tmp_path / "work", whole, base=base, **options)
        assert said["trained"] == {"num_videos": 300, "version": said["id"]}
        assert said["kind"] == ("ivf_sq8" if "flat_below" in options else "flat")

    def test_quantisers_are_kept_and_a_low_recall_learns_again(self, tmp_path: Path) -> None:
        whole = make_catalogue(600)
        base = opened(tmp_path / "base", whole.select([*range(400)]), flat_below=50)
        kept = build(tmp_path / "1", whole, base=base, flat_below=50, min_recall=0.0)
        assert kept["trained"] == {"num_videos": 400, "version": base.manifest["id"]}
        assert (kept["kind"], kept["nlist"]) == ("ivf_sq8", base.manifest["nlist"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build_module.Ann, "build", _of_low_recall(build_module.Ann.build))
            again = build(tmp_path / "2", whole, base=base, flat_below=50, min_recall=0.95)
        assert again["trained"] == {"num_videos": 600, "version": again["id"]}
        check_rows(tmp_path / "2", whole)

    def test_an_appended_version_can_be_appended_to(self, tmp_path: Path) -> None:
        whole = make_catalogue(600)
        base = opened(tmp_path / "index", whole.select([*range(300)]))
        versions = Versions(Folder(str(tmp_path / "index")))
        for number in (400, 500):
            work = tmp_path / str(number)
            said = build(work, whole.select([*range(number)]), base=base)
            versions.put(said["id"], work, said)
            versions.set_current(said["id"])
            base = VideoIndex.load(versions.fetch(said["id"], work))
            assert base.manifest["trained"]["num_videos"] == 300
        assert len(base.items) == 500

    def test_embeddings_of_another_size_are_refused(self, tmp_path: Path) -> None:
        base = opened(tmp_path / "base", make_catalogue(100))
        with pytest.raises(JobError) as raised:
            build(tmp_path / "work", make_catalogue(100, dim=8), base=base)
        assert (raised.value.key, raised.value.value, raised.value.expected) == ("embedding", 8, 32)
        assert "--append" in raised.value.remedy


def _of_low_recall(real: Any) -> Any:  # noqa: ANN401 - a method
    def build_one(*arguments: Any, base: Any, **options: Any) -> Any:  # noqa: ANN401
        ann = real(*arguments, base=base, **options)
        ann.recall_at_10 = 1.0 if base is None else 0.9
        return ann

    return build_one


def test_vectors_keep_clusters_together(catalogue: Catalogue, tmp_path: Path) -> None:
    build(tmp_path, catalogue)
    vectors = unit_length(vectors_of(tmp_path))
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    cluster = np.array([video_id.partition("/")[0] for video_id in catalogue.items["video_id"].to_pylist()])
    assert np.mean(cluster[np.argsort(-cosines, axis=1)[:, :5]] == cluster[:, None]) > 0.8
