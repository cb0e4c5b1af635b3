"""Other Parquet readers: every row that they find in an output of embed equals the row that pyarrow finds."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe import schema
from raypipe.config import EmbedConfig, load_config
from raypipe.dataset.read import frame_embeddings, read_embeddings
from raypipe.errors import FingerprintError
from raypipe.jobs.embed.job import run_embed
from raypipe.jobs.embed.verify import verify
from raypipe.storage import Folder
from support.executors import InlineExecutor
from support.videos import upload

Rows = list[dict[str, Any]]
NUM_VIDEOS = 5
OVERRIDES = ("backbone.name=resnet18", "backbone.weights=random", "sampling.num_frames=3", "shard.max_videos=4")


def configured(folder: Path, output: str, *overrides: str) -> EmbedConfig:
    values = {"input": str(folder / "in"), "output": str(folder / output)}
    return load_config(EmbedConfig, values=values, overrides=(*OVERRIDES, *overrides))


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with videos and two outputs. ``float32`` has the default settings."""
    folder = tmp_path_factory.mktemp("readers")
    upload(Folder(str(folder / "in")), NUM_VIDEOS)
    (folder / "in/broken.mp4").write_bytes(b"no video")
    for output, overrides in (("float32", ()), ("float16", ("vectors=float16",))):
        run_embed(configured(folder, output, *overrides), executor=InlineExecutor())
    return folder


def read_with_duckdb(files: Path) -> Rows:
    with duckdb.connect() as database:
        found = database.sql(f"select * from '{files}/*.parquet'")  # noqa: S608
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def read_with_polars(files: Path) -> Rows:
    return pl.read_parquet(files / "*.parquet").to_dicts()


def read_with_pandas(files: Path) -> Rows:
    return pd.read_parquet(files).to_dict("records")


def read_with_pyarrow(files: Path) -> Rows:
    return pq.read_table(files).to_pylist()


def read_with_spark(files: Path) -> Rows:
    if shutil.which("java") is None:
        pytest.skip("Spark needs Java, which is not installed.")
    sql = pytest.importorskip("pyspark.sql")
    settings = {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.sql.warehouse.dir": str(files.parent / "warehouse"),
    }
    session = sql.SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
    try:
        return [row.asDict(recursive=True) for row in session.read.parquet(str(files)).collect()]
    finally:
        session.stop()


def plain(value: object) -> object:
    """Return a value without the types of a reader. NaN, which is null for pandas, is None."""
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytearray):
        return bytes(value)
    return None if isinstance(value, float) and np.isnan(value) else value


def by_id(rows: Rows) -> Mapping[str, object]:
    return {row[schema.VIDEO_ID]: {name: plain(value) for name, value in row.items()} for row in rows}


@pytest.mark.parametrize(
    "read",
    [
        read_with_duckdb,
        read_with_polars,
        read_with_pandas,
        pytest.param(read_with_spark, marks=pytest.mark.slow),  # starts a Java process
    ],
)
def test_another_reader_finds_the_rows_of_pyarrow(embedded: Path, read: Callable[[Path], Rows]) -> None:
    files = embedded / "float32/data"
    assert len(list(files.iterdir())) > 1
    expected = by_id(read_with_pyarrow(files))
    assert len(expected) == NUM_VIDEOS + 1
    assert by_id(read(files)) == expected


def frames_of(output: Path) -> Iterator[tuple[str, bytes]]:
    for rows in read_embeddings(Folder(str(output))):
        for video_id, frames in zip(rows[schema.VIDEO_ID].to_pylist(), frame_embeddings(rows), strict=True):
            assert frames.dtype == np.float16
            yield video_id, frames.tobytes()


def test_the_stored_type_changes_no_vector(embedded: Path) -> None:
    stored: dict[str, dict[str, bytes]] = {}
    for name, number in (("float32", pa.float32()), ("float16", pa.float16())):
        assert verify(Folder(str(embedded / name))).violations == []
        file = next((embedded / name / "data").iterdir())
        assert pq.read_schema(file).field(schema.FRAME_EMBEDDINGS).type == pa.list_(pa.list_(number, 512))
        stored[name] = dict(frames_of(embedded / name))
    assert stored["float16"] == stored["float32"]
    assert sum(len(frames) > 0 for frames in stored["float16"].values()) == NUM_VIDEOS


def test_an_output_keeps_its_type(embedded: Path, tmp_path: Path) -> None:
    """An output of an older version is float16, and its settings do not name the type."""
    shutil.copytree(embedded / "float16", tmp_path / "float16")
    (tmp_path / "in").mkdir()
    shutil.copyfile(next((embedded / "in").glob("**/[!b]*.mp4")), tmp_path / "in/new.mp4")
    with pytest.raises(FingerprintError) as raised:
        run_embed(configured(tmp_path, "float16", "vectors=float32"), executor=InlineExecutor())
    assert raised.value.key == "vectors"

    run_embed(configured(tmp_path, "float16"), executor=InlineExecutor())
    assert verify(Folder(str(tmp_path / "float16"))).violations == []
    assert len(dict(frames_of(tmp_path / "float16"))) == NUM_VIDEOS + 2
