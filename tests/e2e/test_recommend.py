"""Recommend to many users on a real Ray and a real S3 server: each user gets the index's own answer, once."""

import json
import random
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe import cli
from raypipe.config import IndexConfig, RecommendConfig
from raypipe.dataset.commit import unsealed_plans
from raypipe.dataset.plan import plan_numbers
from raypipe.demo.s3_server import S3Server
from raypipe.errors import ConfigError, FingerprintError
from raypipe.jobs.index.job import run_index
from raypipe.jobs.recommend.job import RecommendOutput, run_recommend
from raypipe.jobs.recommend.verify import verify
from raypipe.runs.actors import RayExecutor
from raypipe.search.index import VideoIndex
from raypipe.search.query import query_of
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.folders import num_committed
from support.processes import StartDriver, wait_until
from support.train_runs import embed_all, video_ids

pytestmark = pytest.mark.slow
IDS = video_ids(60)
RANKINGS: list[dict[str, Any]] = [
    {"top_k": 7},
    {"top_k": 9, "filters": {"category": ["cat", "dog"]}, "exclude_history": False, "popularity": 0.5},
    {"top_k": 5, "diversity": 0.6, "max_per_category": 2, "one_per_duplicate_group": True},
]


@pytest.fixture(scope="module")
def index(s3: S3Server) -> Folder:  # noqa: ARG001 - the server must run
    """Put an index of 60 videos in 4 categories on S3."""
    place = Folder(f"s3://videos/{secrets.token_hex(8)}")
    embeddings = embed_all(Folder(place.child("embeddings")), IDS)
    rows = [f"{one},{one.partition('/')[0]},{at}" for at, one in enumerate(IDS)]
    place.put("catalogue.csv", "\n".join(["video_id,category,popularity", *rows]).encode())
    config = IndexConfig(embeddings=embeddings.uri, output=place.child("index"), catalogue=place.child("catalogue.csv"))
    run_index(config)
    return Folder(config.output)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def configured(index: Folder, history: str, output: Folder, cache: Path, **keys: Any) -> RecommendConfig:  # noqa: ANN401
    given = {"index": index.uri, "history": history, "output": output.uri, "cache": str(cache), "concurrency": 2}
    return RecommendConfig(**given | keys)


def histories(count: int, *, seed: int = 0) -> list[tuple[str, list[str]]]:
    chance = random.Random(seed)
    return [(f"user {number}", chance.sample(IDS, chance.randint(0, 6))) for number in range(count)]


def put_parquet(folder: Folder, users: Sequence[tuple[str, list[str]]], name: str = "history.parquet") -> str:
    columns = {"user_id": [user for user, _ in users], "history": [history for _, history in users]}
    pq.write_table(pa.table(columns), file := pa.BufferOutputStream(), row_group_size=7)
    folder.put(name, file.getvalue().to_pybytes())
    return folder.child(name)


def rows_of(output: Folder) -> list[dict[str, Any]]:
    names = sorted(stored.key for stored in output.list("data/"))
    return [row for name in names for row in pq.read_table(pa.BufferReader(output.read(name))).to_pylist()]


def opened(index: Folder, cache: Path) -> VideoIndex:
    versions = Versions(index)
    version = versions.require_current()
    return VideoIndex.load(versions.fetch(version, cache), versions.read_manifest(version))


@pytest.mark.parametrize("ranking", RANKINGS)
def test_offline_and_online_are_the_same(
    bucket: str,
    index: Folder,
    cache: Path,
    ray_address: str,  # noqa: ARG001 - Ray must run
    ranking: dict[str, Any],
) -> None:
    users = histories(50)
    users[3] = ("user 3", [*users[3][1], "no/such.mp4"])
    output = Folder(f"{bucket}/output")
    config = configured(index, put_parquet(Folder(bucket), users), output, cache, ranking=ranking, users_per_shard=8)
    run = run_recommend(config)
    assert (run.record.num_videos, run.record.num_shards) == (50, 7)
    assert verify(output).violations == []
    online = opened(index, cache)
    rows = rows_of(output)
    assert [row["user_id"] for row in rows] == [user for user, _ in users]
    for row, (_, history) in zip(rows, users, strict=True):
        expected = online.recommend(query_of(config.ranking, tuple(history)))
        assert row["video_ids"] == [one.video_id for one in expected.results]
        assert row["closest"] == [one.closest for one in expected.results]
        np.testing.assert_allclose(row["scores"], [one.score for one in expected.results], rtol=1e-6)
        assert (row["fallback"], row["error"]) == (expected.fallback, None)
        assert row["unknown"] == list(expected.unknown)
        assert row["fallback"] == (None if history else "popular")
    assert rows[3]["unknown"] == ["no/such.mp4"]
    assert run.record.statuses == {
        "ok": sum(bool(history) for _, history in users),
        "popular": sum(not history for _, history in users),
    }


def test_bad_rows_are_rows(bucket: str, index: Folder, cache: Path, ray_address: str) -> None:  # noqa: ARG001
    place, output = Folder(bucket), Folder(f"{bucket}/output")
    lines = [
        {"user_id": "a", "history": ["cat/000.mp4"]},
        {"user_id": "b", "history": [None]},
        {"user_id": "a", "history": ["dog/001.mp4"]},
        {"history": []},
        {"user_id": 7, "history": "cat/000.mp4 dog/001.mp4"},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"user_id": "c", "histo'
    place.put("history.jsonl", text.encode())
    run = run_recommend(configured(index, place.child("history.jsonl"), output, cache, users_per_shard=2))
    assert run.record.statuses == {"ok": 2, "error": 4}
    rows = rows_of(output)
    assert [row["user_id"] for row in rows] == ["a", "b", "a", None, "7", None]
    for row, said in zip(rows, [None, "None", "user_id", "user_id", None, "JSON"], strict=True):
        assert (row["error"] is None) == (said is None)
        assert (said or "") in (row["error"] or "")
        assert (row["video_ids"] is None) == (said is not None)


@pytest.mark.nightly
def test_killed_drivers(bucket: str, index: Folder, cache: Path, start_driver: StartDriver) -> None:
    """Each user gets one row, from the index version that the first driver started with."""
    users = histories(300, seed=1)
    output = Folder(f"{bucket}/output")
    config = configured(
        index, put_parquet(Folder(bucket), users), output, cache, users_per_shard=3, concurrency=1, ranking={"top_k": 5}
    )
    for _ in range(2):
        upto = num_committed(output) + random.randint(1, 20)
        driver = start_driver(config, job="recommend")
        wait_until(lambda upto=upto: num_committed(output) >= upto, what=f"{upto} shards")
        driver.kill()
    before = num_committed(output)
    assert before < 100
    assert unsealed_plans(output) == [0]
    last = start_driver(config, job="recommend")
    assert last.wait() == 0, last.log.read_text()
    assert json.loads(output.read("reports/00000/summary.json"))["num_resumed_videos"] == 3 * before
    rows = rows_of(output)
    assert [row["user_id"] for row in rows] == [user for user, _ in users]
    online = opened(index, cache)
    for row, (_, history) in zip(rows, users, strict=True):
        expected = online.recommend(query_of(config.ranking, tuple(history)))
        assert row["video_ids"] == [one.video_id for one in expected.results]
    assert verify(output).violations == []


def test_a_run_keeps_its_version_and_refuses_another(
    bucket: str, cache: Path, ray_address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Folder(bucket)
    embeddings, index, output = (Folder(place.child(name)) for name in ("embeddings", "index", "output"))
    embed_all(embeddings, IDS[:30])
    first = run_index(IndexConfig(embeddings=embeddings.uri, output=index.uri)).manifest["id"]
    history = put_parquet(place, [(f"u{number}", [IDS[number]]) for number in range(20)])
    config = configured(index, history, output, cache, users_per_shard=4)
    with monkeypatch.context() as patch:
        patch.setattr(RayExecutor, "run", _stopped)
        with pytest.raises(KeyboardInterrupt):
            run_recommend(config)
    embed_all(embeddings, IDS[30:])
    assert run_index(IndexConfig(embeddings=embeddings.uri, output=index.uri)).manifest["id"] != first
    run_recommend(config)
    assert RecommendOutput.read(output).index_version == first
    assert {one for row in rows_of(output) for one in row["video_ids"]} <= set(IDS[:30])

    arguments = ["recommend", "--index", index.uri, "--history", history, "--output", output.uri]
    with pytest.raises(SystemExit, match="0"):
        cli.app([*arguments, "--set", "users_per_shard=4"])
    told = capsys.readouterr().out
    assert f"Nothing to do: {output.uri} " in " ".join(told.split())  # the display breaks lines
    for keys, key, before, now in (
        ({"ranking": {"top_k": 3}}, "ranking.top_k", 20, 3),
        ({"index": bucket}, "index", index.uri, bucket),
        ({"users_per_shard": 5}, "users_per_shard", 4, 5),
    ):
        with pytest.raises(FingerprintError) as caught:
            run_recommend(RecommendConfig(**config.model_dump() | keys))
        assert (caught.value.key, caught.value.expected, caught.value.value) == (key, {key: before}, {key: now})
    put_parquet(place, [("someone else", [])])
    with pytest.raises(FingerprintError) as caught:
        run_recommend(config)
    assert caught.value.key == "history_etag"
    assert ray_address


def _stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_invalid_inputs_are_one_line_before_any_work(
    bucket: str,
    index: Folder,
    cache: Path,
    ray_address: str,  # noqa: ARG001
) -> None:
    place, output = Folder(bucket), Folder(f"{bucket}/output")
    history = put_parquet(place, histories(3))
    place.put("empty.csv", b"user_id,history\n")
    refused: list[tuple[RecommendConfig, str]] = [
        (configured(index, history, output, cache, ranking={"filters": {"genre": "x"}}), "'genre'"),
        (configured(index, place.child("empty.csv"), output, cache), "empty.csv"),
        (configured(index, place.child("no.csv"), output, cache), "no.csv"),
        (configured(index, place.child("h.txt"), output, cache), ".parquet"),
        (configured(index, history, index, cache), index.uri),
    ]
    for config, data in refused:
        with pytest.raises(ConfigError) as caught:
            run_recommend(config)
        assert data in str(caught.value)
        assert str(caught.value).isprintable()
    assert not plan_numbers(output)
