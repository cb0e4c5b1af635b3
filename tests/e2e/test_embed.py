"""The embed job on a real Ray and a real S3 server."""

import json
from collections import Counter
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.dataset
import pyarrow.fs
import pytest
from s3fs import S3FileSystem

from raypipe import schema
from raypipe.dataset.read import read_embeddings
from raypipe.demo.s3_server import S3Server
from raypipe.jobs.embed.job import run_embed
from raypipe.jobs.embed.verify import verify
from raypipe.storage import Folder
from support.executors import PlacedExecutor
from support.processes import Configure
from support.videos import make_video, upload

pytestmark = pytest.mark.slow


def statuses(output: Folder) -> Counter[tuple[str, str]]:
    columns = [schema.VIDEO_ID, schema.STATUS]
    rows = (row for table in read_embeddings(output, columns=columns) for row in table.to_pylist())
    return Counter((row[schema.VIDEO_ID], row[schema.STATUS]) for row in rows)


def test_200_videos_are_200_rows_for_every_reader(bucket: str, s3: S3Server, configure: Configure) -> None:
    videos, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    ids = upload(videos, 200)
    run = run_embed(configure(videos.uri, output.uri, "resources.concurrency=2"))
    assert run.record.num_videos == 200
    assert run.record.statuses == {"ok": 200}
    found = verify(output)
    assert (found.violations, found.num_rows, found.num_frames) == ([], 200, 400)

    host = s3.endpoint_url.removeprefix("http://")
    files = f"{output.uri}/data/*.parquet"
    with duckdb.connect() as database:
        database.register_filesystem(S3FileSystem())  # like httpfs, an extension that DuckDB would have to download
        by_duckdb = database.sql(f"select video_id, status, embedding from '{files}'").fetchall()  # noqa: S608
    options = {
        "aws_endpoint_url": s3.endpoint_url,
        "aws_access_key_id": s3.access_key,
        "aws_secret_access_key": s3.secret_key,
        "aws_region": "us-east-1",
        "aws_allow_http": "true",
    }
    by_polars = pl.read_parquet(files, storage_options=options)
    s3_files = pyarrow.fs.S3FileSystem(
        access_key=s3.access_key, secret_key=s3.secret_key, endpoint_override=host, scheme="http", region="us-east-1"
    )
    path = f"{output.uri.removeprefix('s3://')}/data"
    by_pyarrow = pyarrow.dataset.dataset(path, filesystem=s3_files, format="parquet").to_table()

    assert sorted(row[0] for row in by_duckdb) == sorted(ids)
    assert {len(row[2]) for row in by_duckdb} == {512}
    assert sorted(by_polars[schema.VIDEO_ID]) == sorted(ids)
    assert sorted(by_pyarrow[schema.VIDEO_ID].to_pylist()) == sorted(ids)
    assert by_pyarrow.schema.remove_metadata() == schema.embeddings_schema(512)
    assert set(by_polars[schema.STATUS]) == {"ok"}

    summary = json.loads(output.read("reports/00000/summary.json"))
    assert summary["num_done_videos"] == 200
    assert run.report_uri == output.child("reports/00000/report.html")
    page = output.read("reports/00000/report.html").decode()
    assert s3.secret_key not in page
    assert s3.access_key not in page


def test_the_executors_give_the_same_rows(bucket: str, configure: Configure) -> None:
    videos, rows = Folder(f"{bucket}/in"), []
    upload(videos, 6)
    assert videos.put_new("broken.mp4", b"no video")
    for executor in ("ray", "local"):
        output = Folder(f"{bucket}/{executor}")
        run_embed(configure(videos.uri, output.uri, f"executor={executor}"))
        assert verify(output).violations == []
        found = [row for table in read_embeddings(output) for row in table.to_pylist()]
        rows.append({row[schema.VIDEO_ID]: {**row, schema.DECODE_SECONDS: None} for row in found})
    assert len(rows[0]) == 7
    assert rows[0] == rows[1]


def test_a_second_run_does_only_what_is_new(bucket: str, configure: Configure) -> None:
    videos, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    ids = upload(videos, 6)
    config = configure(videos.uri, output.uri)
    run_embed(config)
    assert run_embed(config).record.plans == ()

    new = upload(videos, 2, start=6)
    _replace(videos, ids[0], make_video(shade=77))
    _delete(videos, ids[1])
    run = run_embed(config)
    assert run.record.statuses == {"ok": 3, "gone": 1}
    assert run.record.failed_fraction == 0
    assert verify(output).violations == []
    generations = {
        row[schema.VIDEO_ID]: row[schema.GENERATION]
        for table in read_embeddings(output, columns=[schema.VIDEO_ID, schema.GENERATION])
        for row in table.to_pylist()
    }
    assert generations == {**dict.fromkeys(ids, 0), ids[0]: 1, ids[1]: 1, **dict.fromkeys(new, 1)}
    assert statuses(output)[ids[1], "gone"] == 1
    assert run_embed(config).record.plans == ()


def test_bad_videos_are_rows_harm_no_other_and_are_retried(bucket: str, configure: Configure) -> None:
    videos, output = Folder(f"{bucket}/in"), Folder(f"{bucket}/out")
    good = upload(videos, 4)
    whole = make_video(shade=50, num_frames=100)
    bad = {
        "empty.mp4": b"",
        "one byte.mp4": b"\0",
        "text.mp4": b"hello " * 100,
        "playlist.m3u8": b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/canary.ts\n",
        "ünï-códé 日本 #?%.mp4": b"\xff" * 1000,
        "cut.mp4": whole[: len(whole) // 3],
        "big.mp4": make_video(shade=1) + b"\0" * 100_000,
    }
    for name, data in bad.items():
        videos.put_new(name, data)
    limit = ("decode.max_size_bytes=50000", "shard.max_videos=3")
    run_embed(configure(videos.uri, output.uri, *limit))
    found = dict(statuses(output).keys())
    assert set(found) == {*good, *bad}
    assert all(found[name] == "ok" for name in good)
    assert found["big.mp4"] == "too_large"
    assert all(found[name] in {"decode_error", "forbidden_format"} for name in bad if name != "big.mp4"), found
    assert run_embed(configure(videos.uri, output.uri, *limit, retry="transient")).record.plans == ()

    run = run_embed(configure(videos.uri, output.uri, retry="all"))  # with the default size limit
    assert run.record.num_videos == len(bad)
    assert dict(statuses(output).keys()) == {**found, "big.mp4": "ok"}
    assert sum(statuses(output).values()) == len(good) + len(bad)
    assert verify(output).violations == []


def test_hostile_files_and_real_clips_in_one_job(assets: Path, tmp_path: Path, configure: Configure) -> None:
    videos = tmp_path / "in"
    videos.mkdir()
    (videos / "hostile").symlink_to(assets / "hostile")
    (videos / "real").symlink_to(assets / "videos")
    names = sorted(
        f"{kind}/{path.name}"
        for kind, folder in (("hostile", "hostile"), ("real", "videos"))
        for path in (assets / folder).iterdir()
    )
    manifest = tmp_path / "manifest.jsonl"
    lines = (json.dumps({"video_id": name, "video_uri": str(videos / name)}) for name in names)
    manifest.write_text("\n".join(lines))
    output = Folder(str(tmp_path / "out"))
    run_embed(configure(str(manifest), output.uri, "sampling.num_frames=4", "decode.timeout_seconds=20"))
    found = dict(statuses(output).keys())
    assert sorted(found) == names
    assert {status for name, status in found.items() if name.startswith("real/")} == {"ok"}
    assert verify(output).violations == []


def test_separate_stages(tmp_path: Path, configure: Configure) -> None:
    """Run the three stages of a GPU cluster, here all on CPUs."""
    executor = PlacedExecutor({"num_actors": 1, "num_gpu_actors": 1})
    videos, output = Folder(str(tmp_path / "in")), Folder(str(tmp_path / "out"))
    ids = upload(videos, 9)
    run_embed(configure(videos.uri, output.uri), executor=executor)
    assert verify(output).violations == []
    assert statuses(output) == Counter((name, "ok") for name in ids)


def _replace(folder: Folder, name: str, data: bytes) -> None:
    _delete(folder, name)
    assert folder.put_new(name, data)


def _delete(folder: Folder, name: str) -> None:
    S3FileSystem(use_listings_cache=False, skip_instance_cache=True).rm_file(folder.child(name))
