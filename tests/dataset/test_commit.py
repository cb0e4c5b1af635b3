"""The commit: one file, put once, that any Parquet reader understands."""

import io
import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe import schema
from raypipe.dataset.commit import ShardFile, check_shard, describe_shard, put_shard, read_shard_file, shard_digest
from raypipe.errors import CommitError
from raypipe.jobs.embed.inputs import pack
from raypipe.storage import Folder
from support.embed_outputs import DIM, MARK, commit, made_rows, video

NAME = "data/00002-000003.parquet"
STATUSES = ["ok", "timeout", "partial", "ok"]


def planned_rows(*names: str, generation: int = 2) -> pa.Table:
    rows = pack(map(video, names), max_videos=100, max_frames=1000, frames_per_video=1, slots=1)
    return rows.append_column(schema.GENERATION, pa.repeat(pa.scalar(generation, pa.int32()), rows.num_rows))


PLANNED = planned_rows("a", "b", "c", "d/日本 😀.mp4")


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return made_rows(PLANNED, STATUSES)


def put(folder: Folder, rows: pa.Table) -> bool:
    return commit(folder, rows, plan=2, shard=3)


def test_a_file_says_what_it_holds(folder: Folder, rows: pa.Table) -> None:
    assert put(folder, rows)
    expected = ShardFile(2, 3, shard_digest(PLANNED), MARK, dict(Counter(STATUSES)), num_frames=9)
    assert read_shard_file(folder, NAME) == expected
    assert check_shard(folder, 2, 3, shard_digest=shard_digest(PLANNED), fingerprint=MARK) == expected
    assert expected.num_rows == 4


def test_only_columns_that_may_repeat_get_a_dictionary(folder: Folder, rows: pa.Table) -> None:
    put(folder, rows)
    group = pq.ParquetFile(io.BytesIO(folder.read(NAME))).metadata.row_group(0)
    columns = {
        column.path_in_schema.partition(".")[0]: column for column in map(group.column, range(group.num_columns))
    }
    frames = columns[schema.FRAME_EMBEDDINGS]
    assert (frames.has_dictionary_page, frames.is_stats_set) == (True, False)  # rounded to float16, so few numbers
    for name in (schema.EMBEDDING, schema.FRAME_PTS_SECONDS, schema.THUMBNAIL):
        assert (columns[name].has_dictionary_page, columns[name].is_stats_set) == (False, False), name
    for name in (schema.VIDEO_ID, schema.STATUS):
        assert (columns[name].has_dictionary_page, columns[name].is_stats_set) == (True, True), name


def test_of_concurrent_commits_one_wins(folder: Folder, rows: pa.Table) -> None:
    together = threading.Barrier(6)
    thumbnail = rows.schema.get_field_index(schema.THUMBNAIL)

    def attempt(number: int) -> bool:  # same rows, but each attempt has its own thumbnail
        mine = rows.set_column(thumbnail, schema.THUMBNAIL, pa.array([bytes([number])] * rows.num_rows, pa.binary()))
        together.wait(60)
        return put(folder, mine)

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(attempt, range(6)))
    assert sum(won) == 1
    assert [stored.key for stored in folder.list()] == [NAME]
    stored = pq.read_table(io.BytesIO(folder.read(NAME)))
    assert stored[schema.THUMBNAIL].to_pylist() == [bytes([won.index(True)])] * 4


def test_a_late_attempt_finds_its_shard_committed(folder: Folder, rows: pa.Table) -> None:
    assert put(folder, rows)
    before = folder.stat(NAME)
    later = made_rows(PLANNED, ["crashed"] * 4)  # the statuses do not matter
    assert not put(folder, later)
    assert folder.stat(NAME) == before


OTHERS: dict[str, Callable[[Folder], bool]] = {
    "other videos": lambda folder: commit(folder, made_rows(planned_rows("x", "y"), ["ok", "ok"]), plan=2, shard=3),
    "other order": lambda folder: put(folder, made_rows(PLANNED, STATUSES).take([1, 0, 2, 3])),
    "fewer rows": lambda folder: put(folder, made_rows(PLANNED, STATUSES).slice(0, 3)),
    "other settings": lambda folder: commit(folder, made_rows(PLANNED, STATUSES), plan=2, shard=3, mark="0" * 16),
    "other content": lambda folder: put(folder, with_etag(made_rows(PLANNED, STATUSES), "e2")),
}


def with_etag(rows: pa.Table, etag: str) -> pa.Table:
    at = rows.schema.get_field_index(schema.ETAG)
    return rows.set_column(at, schema.ETAG, pa.array([etag] * rows.num_rows, pa.string()))


@pytest.mark.parametrize("kind", OTHERS)
def test_another_shard_under_the_name_is_refused(folder: Folder, rows: pa.Table, kind: str) -> None:
    assert OTHERS[kind](folder)
    with pytest.raises(CommitError) as caught:
        put(folder, rows)
    stored = read_shard_file(folder, NAME)
    assert caught.value.key == f"{folder.uri}/{NAME}"
    assert caught.value.expected == (2, 3, shard_digest(rows), MARK)
    assert caught.value.value == (2, 3, stored.shard_digest, stored.fingerprint)
    assert (stored.shard_digest != shard_digest(rows)) == (kind != "other settings")
    assert caught.value.remedy


def test_a_copy_of_another_shard_under_the_name_is_refused(folder: Folder, rows: pa.Table) -> None:
    for plan, shard in ((2, 4), (1, 3)):
        assert put_shard(folder, rows, describe_shard(rows, plan=plan, shard=shard, fingerprint=MARK))
    copies = [folder.read("data/00002-000004.parquet"), folder.read("data/00001-000003.parquet")]
    for at, data in enumerate(copies):
        place = Folder(folder.child(f"copy-{at}"))
        assert place.put_new(NAME, data)
        with pytest.raises(CommitError) as caught:
            put(place, rows)
        digest = shard_digest(rows)
        assert (caught.value.key, caught.value.expected) == (place.child(NAME), (2, 3, digest, MARK))
        assert caught.value.value == (*[(2, 4), (1, 3)][at], digest, MARK)


def parquet(rows: pa.Table, metadata: Any) -> bytes:  # noqa: ANN401 - any JSON
    file = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata({b"raypipe": json.dumps(metadata).encode()}), file)
    return file.getvalue()


GOOD = {"raypipe": "1", "plan": 2, "shard": 3, "shard_digest": "d", "fingerprint": "f", "statuses": {}, "num_frames": 0}
SMALL = pa.table({"x": [1]})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"PAR1" + b"\xff" * 64 + b"\x20\0\0\0PAR1",
        parquet(SMALL, []),
        parquet(SMALL, "text"),
        parquet(SMALL, None),
        parquet(SMALL, {}),
        parquet(SMALL, {**GOOD, "more": 1}),
        parquet(SMALL, {key: GOOD[key] for key in GOOD if key != "plan"}),
        parquet(SMALL, {**GOOD, "statuses": ["ok"]}),
        parquet(SMALL, {**GOOD, "statuses": {"ok": "many"}}),
        parquet(SMALL, {**GOOD, "num_frames": None}),
    ],
    ids=lambda data: str(data)[:30] if len(data) < 100 else "parquet",
)
def test_a_foreign_file_under_the_name_is_refused(folder: Folder, rows: pa.Table, data: bytes) -> None:
    assert folder.put_new(NAME, data)
    with pytest.raises(CommitError) as caught:
        put(folder, rows)
    assert (caught.value.key, caught.value.value) == (f"{folder.uri}/{NAME}", None)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_the_digest_is_of_ids_uris_and_etags_in_order() -> None:
    digest = shard_digest(PLANNED)
    assert shard_digest(made_rows(PLANNED, STATUSES)) == digest
    assert shard_digest(planned_rows("a", "b", "c", "d/日本 😀.mp4", generation=7)) == digest
    others = [PLANNED.take([1, 0, 2, 3]), PLANNED.slice(1), with_etag(PLANNED, "e2"), planned_rows("a", "b", "c", "e")]
    assert len({digest, *map(shard_digest, others)}) == 5


# Any reader


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, rows: pa.Table) -> Path:
    folder = Folder(str(tmp_path_factory.mktemp("output")))
    assert put(folder, rows)
    return Path(folder.child(NAME))


def test_pyarrow_reads_the_schema(file: Path, rows: pa.Table) -> None:
    found = pq.read_table(file)
    assert found.schema.remove_metadata() == schema.embeddings_schema(DIM)
    assert found.equals(rows)


def test_duckdb_reads_it(file: Path, rows: pa.Table) -> None:
    found = duckdb.read_parquet(str(file))
    types = {name: str(kind) for name, kind in zip(found.columns, found.types, strict=True)}
    assert list(types) == schema.embeddings_schema(DIM).names
    texts = ("video_id", "video_uri", "etag", "container", "codec", "decoder", "status", "error")
    assert {types[name] for name in texts} == {"VARCHAR"}
    assert {types[name] for name in ("generation", "width", "height", "num_frames")} == {"INTEGER"}
    assert (types["size_bytes"], types["duration_seconds"], types["thumbnail"]) == ("BIGINT", "DOUBLE", "BLOB")
    assert types["frame_pts_seconds"] == "FLOAT[]"
    counts = found.aggregate("status, count(*), sum(num_frames)::INT").order("status").fetchall()
    assert counts == [("ok", 2, 6), ("partial", 1, 3), ("timeout", 1, 0)]
    embeddings = found.project("embedding, frame_embeddings").fetchall()
    expected = rows.select([schema.EMBEDDING, schema.FRAME_EMBEDDINGS]).to_pylist()
    for (embedding, frames), row in zip(embeddings, expected, strict=True):
        assert (embedding is None) == (row["embedding"] is None)
        assert embedding is None or np.allclose(embedding, row["embedding"])
        assert np.allclose(np.array(frames, dtype=float), np.array(row["frame_embeddings"], dtype=float))


def test_polars_reads_it(file: Path, rows: pa.Table) -> None:
    found = pl.read_parquet(file)
    assert found.columns == schema.embeddings_schema(DIM).names
    assert found["video_id"].to_list() == ["a", "b", "c", "d/日本 😀.mp4"]
    assert found["generation"].dtype == pl.Int32
    assert found["duration_seconds"].dtype == pl.Float64
    assert found["frame_pts_seconds"].dtype == pl.List(pl.Float32)
    assert found["embedding"].dtype == pl.Array(pl.Float32, DIM)
    assert found["embedding"].to_list() == rows[schema.EMBEDDING].to_pylist()
    assert found["thumbnail"].to_list() == rows[schema.THUMBNAIL].to_pylist()
    frames = found["frame_embeddings"].to_list()
    for vectors, expected in zip(frames, rows[schema.FRAME_EMBEDDINGS].to_pylist(), strict=True):
        assert np.allclose(np.array(vectors, dtype=float), np.array(expected, dtype=float))
