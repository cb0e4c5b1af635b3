"""Own vectors: any Parquet with ids and vectors makes an index; what cannot be indexed is counted or refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raypipe
from raypipe import schema
from raypipe.config import ServeConfig
from raypipe.dataset.footer import parquet_bytes
from raypipe.endpoint.app import find_abilities
from raypipe.endpoint.uploads import OWN_VECTORS

DIM = 24


def vectors(count: int, *, seed: int = 0, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim))


def write(path: Path, ids: list[Any], embedding: pa.Array | list[Any], **columns: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"video_id": ids, "embedding": embedding, **columns}), path)
    return str(path)


def names(count: int, *, start: int = 0) -> list[str]:
    return [f"video {number}" for number in range(start, start + count)]


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float16(), DIM), pa.list_(pa.int32(), DIM)],
    ids=str,
)
def test_vectors_of_every_type_are_searched(tmp_path: Path, kind: pa.DataType) -> None:
    whole = np.round(10 * vectors(60))
    cast = whole.astype(np.int32 if pa.types.is_integer(kind.value_type) else np.float64)
    column = pa.array(list(cast), pa.list_(pa.int32() if cast.dtype == np.int32 else pa.float64())).cast(kind)
    path = write(tmp_path / "vectors.parquet", names(60), column)
    result = raypipe.index(path, tmp_path / "index", index={"dim": DIM, "whitening": 0.0})
    assert result.videos == 60
    index = raypipe.VideoIndex.open(tmp_path / "index")
    centred = whole - (whole / np.linalg.norm(whole, axis=1, keepdims=True)).mean(axis=0)
    assert index.video("video 3")["video_uri"] is None
    listed = [found.video_id for found in index.recommend(["video 3"], top_k=59)]
    assert sorted([*listed, "video 3"]) == sorted(names(60))
    cosines = centred @ centred[3] / np.linalg.norm(centred, axis=1)
    assert np.corrcoef(cosines[[int(name.split()[1]) for name in listed]], -np.arange(59))[0, 1] > 0.8


def test_a_folder_of_files_keeps_their_columns_and_counts_what_is_left_out(tmp_path: Path) -> None:
    broken = list(vectors(6, seed=1))
    broken[0][:], broken[1][0] = 0, np.nan
    rows: list[Any] = [*broken[:3], None, *broken[4:]]
    ids: list[Any] = [*names(4, start=50), "", None]
    write(tmp_path / "in" / "a.parquet", names(50), list(vectors(50)), video_uri=[f"s3://v/{n}" for n in range(50)])
    write(tmp_path / "in" / "more" / "b.parquet", ids, rows, duration_seconds=[1.5] * 6)
    result = raypipe.index(tmp_path / "in", tmp_path / "index")
    assert result.videos == 51  # of 56 rows, two have no id, one has no vector, one is zero, and one is not finite
    assert result.record["num_skipped"] == 2
    index = raypipe.VideoIndex.open(tmp_path / "index")
    assert index.video("video 7")["video_uri"] == "s3://v/7"
    assert index.video("video 52")["duration_seconds"] == 1.5


def test_numbers_as_ids_become_text(tmp_path: Path) -> None:
    path = write(tmp_path / "vectors.parquet", list(range(30)), list(vectors(30)))
    raypipe.index(path, tmp_path / "index")
    assert raypipe.VideoIndex.open(tmp_path / "index").video("7")["video_id"] == "7"


def test_appending_adds_new_files_and_knows_when_nothing_is_new(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.parquet", names(60), list(vectors(60)))
    raypipe.index(tmp_path / "in", tmp_path / "index")
    assert not raypipe.index(tmp_path / "in", tmp_path / "index", append=True).is_new
    write(tmp_path / "in" / "b.parquet", names(5, start=60), list(vectors(5, seed=2)))
    result = raypipe.index(tmp_path / "in", tmp_path / "index", append=True)
    assert (result.is_new, result.videos) == (True, 65)


def test_the_endpoint_embeds_no_uploads_and_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "vectors.parquet", names(30), list(vectors(30)))
    raypipe.index(path, tmp_path / "index")
    abilities = find_abilities(ServeConfig(index=str(tmp_path / "index")))
    assert abilities.embeddings is None
    assert OWN_VECTORS in abilities.why_no_embedder


TABLES: Mapping[str, tuple[dict[str, Any], str]] = {
    "no embedding": ({"video_id": ["a"], "vector": [[1.0]]}, "embedding"),
    "no id": ({"id": ["a"], "embedding": [[1.0]]}, "video_id"),
    "texts": ({"video_id": ["a"], "embedding": [["x"]]}, "embedding"),
    "one number": ({"video_id": ["a"], "embedding": [1.0]}, "embedding"),
    "mixed lengths": ({"video_id": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]}, "embedding"),
    "an id twice": ({"video_id": ["a", "b", "a"], "embedding": [[1.0]] * 3}, "video_id"),
    "nothing": ({"video_id": ["a"], "embedding": pa.array([None], pa.list_(pa.float32()))}, "embedding"),
}


@pytest.mark.parametrize("name", TABLES)
def test_what_cannot_be_indexed_is_one_error(tmp_path: Path, name: str) -> None:
    columns, key = TABLES[name]
    pq.write_table(pa.table(columns), tmp_path / "vectors.parquet")
    with pytest.raises(raypipe.ConfigError) as caught:
        raypipe.index(tmp_path / "vectors.parquet", tmp_path / "index")
    assert caught.value.key == key


def test_files_of_other_lengths_are_named(tmp_path: Path) -> None:
    first = write(tmp_path / "in" / "a.parquet", names(3), list(vectors(3)))
    second = write(tmp_path / "in" / "b.parquet", names(3, start=3), list(vectors(3, dim=5)))
    with pytest.raises(raypipe.ConfigError) as caught:
        raypipe.index(tmp_path / "in", tmp_path / "index")
    assert caught.value.value == [DIM, 5]
    assert first in str(caught.value)
    assert second in str(caught.value)


def test_an_output_of_raypipe_without_plans_is_not_taken_for_own_vectors(tmp_path: Path) -> None:
    table = pa.table({schema.VIDEO_ID: ["a"], schema.EMBEDDING: [[1.0, 2.0]]})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.parquet").write_bytes(parquet_bytes(table, {"plan": 0}))
    with pytest.raises(raypipe.ConfigError):
        raypipe.index(tmp_path / "in", tmp_path / "index")


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "vectors.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(raypipe.ConfigError) as caught:
        raypipe.index(tmp_path / "vectors.parquet", tmp_path / "index")
    assert caught.value.key == str(tmp_path / "vectors.parquet")
