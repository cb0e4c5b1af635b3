"""An index built with a history and a ranker: what it counts, what it refuses, and the gate before CURRENT."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe.config import EvaluateConfig, IndexConfig, RecommendConfig, TrainConfig
from raypipe.errors import ConfigError, FingerprintError, IndexVersionError, JobError, WeightsError
from raypipe.jobs.evaluate.job import run_evaluate
from raypipe.jobs.index.job import run_index
from raypipe.jobs.recommend.job import RecommendJob
from raypipe.jobs.train.ranker.blending import put_blend
from raypipe.jobs.train.ranker.histories import find_histories
from raypipe.search.index import VideoIndex
from raypipe.search.query import Query
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.ranker_loops import walks
from support.ranker_runs import put_ranker

NUM_VIDEOS, DIM, DAY = 40, 6, dt.timedelta(days=1)
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def put_vectors(folder: Path, *, num_videos: int = NUM_VIDEOS, dim: int = DIM) -> str:
    vectors = np.random.default_rng(5).standard_normal((num_videos, dim)).astype(np.float32)
    ids = [f"v{number}" for number in range(num_videos)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vectors.parquet"
    pq.write_table(pa.table({"video_id": ids, "embedding": pa.array(list(vectors), pa.list_(pa.float32()))}), path)
    return str(path)


def put_history(path: Path, *, num_users: int = 150, seed: int = 0, surprise: float = 0.0, first_day: int = 0) -> str:
    """Write events of users who usually watch the next video of a planted cycle, one a day."""
    events = walks(num_users, seed=seed, num_videos=NUM_VIDEOS, surprise=surprise)
    starts = events.starts.tolist()
    days = [first_day + number - starts[user] for number, user in enumerate(events.users.tolist())]
    columns = {
        "user_id": [f"u{user}" for user in events.users.tolist()],
        "video_id": [f"v{item}" for item in events.items.tolist()],
        "watched_at": [START + day * DAY for day in days],
    }
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    return {
        "embeddings": put_vectors(tmp_path),
        "history": put_history(tmp_path / "history.parquet"),
        "output": str(tmp_path / "index"),
    }


def build(inputs: dict[str, Any], **keys: Any) -> dict[str, Any]:  # noqa: ANN401 - keys of a configuration
    return dict(run_index(IndexConfig(**{**inputs, **keys})).manifest)


@pytest.fixture
def ranker(inputs: dict[str, Any], tmp_path: Path) -> str:
    """A ranker with random weights, trained on the current version of the index."""
    build(inputs)
    config = TrainConfig(
        objective="next_video",
        index=inputs["output"],
        history=inputs["history"],
        output=str(tmp_path / "ranker"),
        ranker={"n_embd": 8, "min_events": 1},
    )
    output = put_ranker(config)
    put_blend(output, output, find_histories(config), seed=0)
    return output.uri


def test_a_history_gives_transitions_views_and_facts(inputs: dict[str, Any]) -> None:
    made = build(inputs)
    index = VideoIndex.open(inputs["output"])
    assert index.strategies == ("content", "transitions")
    facts = made["history"]
    assert (facts["counts"], facts["holdout"], facts["num_users"]) == ("transitions", "none", 150)
    assert facts["num_events"] == pq.read_table(inputs["history"]).num_rows
    assert index.watched.views is not None
    events = walks(150, num_videos=NUM_VIDEOS, surprise=0.0)
    ages = np.concatenate([np.arange(len(events.history(user))) for user in range(150)])
    recent = np.bincount(events.items[ages > ages.max() - 7], minlength=NUM_VIDEOS)
    assert np.floor(index.watched.views).tolist() == recent.tolist()
    assert index.recommend(()).results[0].position in np.flatnonzero(recent == recent.max())


def test_bad_rows_of_a_history_are_counted(inputs: dict[str, Any], tmp_path: Path) -> None:
    soon = dt.datetime.now(dt.UTC) + 9 * DAY
    rows = [("u", "v1", START), ("u", "v2", START), ("u", "v1", START + DAY), ("u", "gone", START), (None, "v1", START)]
    rows += [("u", "v3", soon), ("one", "v4", START)]
    columns = dict(zip(("user_id", "video_id", "watched_at"), zip(*rows, strict=True), strict=True))
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({name: list(column) for name, column in columns.items()}), path)
    facts = build(inputs, history=str(path))["history"]
    assert facts["left_out"] == {
        "without_user_or_video": 1,
        "in_future": 1,
        "unknown_videos": 1,
        "repeated_events": 1,
    }
    assert (facts["num_events"], facts["num_users"]) == (3, 2)


def test_a_ranker_is_in_the_version_with_its_blend(inputs: dict[str, Any], ranker: str) -> None:
    made = build(inputs, ranker=ranker)
    blend = json.loads(Folder(ranker).read("model/blend.json"))
    assert made["ranker"]["weight"] == blend["weight"]
    assert made["history"]["holdout"] == "leave_one_out"  # of the ranker
    index = VideoIndex.open(inputs["output"])
    assert index.strategies[-1] == "ranker"
    answer = index.recommend(Query(history=("v1", "v2"), top_k=5))
    assert (answer.strategy, answer.ranker) == ("ranker", made["ranker"]["id"])
    assert len(answer) == 5


@pytest.mark.parametrize(("days", "warns"), [(30.0, True), (1e6, False)])
def test_recommend_warns_of_an_old_ranker(
    inputs: dict[str, Any], ranker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, days: float, *, warns: bool
) -> None:
    build(inputs, ranker=ranker)
    Folder(str(tmp_path)).put("users.jsonl", b'{"user_id": "u1", "history": ["v1", "v2"]}\n')
    config = RecommendConfig(
        index=inputs["output"],
        history=str(tmp_path / "users.jsonl"),
        output=str(tmp_path / "lists"),
        max_ranker_days=days,
    )
    RecommendJob(config).prepare()
    assert bool(caplog.records) == warns


def test_a_ranker_is_checked_before_the_build(inputs: dict[str, Any], ranker: str, tmp_path: Path) -> None:
    other = put_vectors(tmp_path / "other", dim=DIM + 1)
    with pytest.raises(FingerprintError) as mismatch:
        build(inputs, embeddings=other, output=str(tmp_path / "b"), ranker=ranker)
    assert mismatch.value.key == "ranker"
    Folder(ranker).delete("model/blend.json")
    with pytest.raises(WeightsError) as incomplete:
        build(inputs, ranker=ranker)
    assert str(incomplete.value.key).endswith("blend.json")
    with pytest.raises(ConfigError) as missing:
        build(inputs, history=str(tmp_path / "none.parquet"))
    assert missing.value.key == "history"


def test_an_append_does_not_lose_the_history(inputs: dict[str, Any], ranker: str, tmp_path: Path) -> None:
    made = build(inputs, ranker=ranker)
    for keys, lost in (({"history": None}, "history"), ({}, "ranker")):
        with pytest.raises(ConfigError) as raised:
            build(inputs, append=True, **keys)
        assert raised.value.key == lost
    assert Versions(Folder(inputs["output"])).current() == made["id"]
    assert build(inputs, append=True, ranker=ranker)["id"] == made["id"]  # nothing has changed
    later = put_history(tmp_path / "history.parquet", num_users=160)
    assert build(inputs, append=True, ranker=ranker, history=later)["history"]["num_users"] == 160
    put_vectors(tmp_path, num_videos=NUM_VIDEOS + 3)
    assert build(inputs, append=True, ranker=ranker)["num_videos"] == NUM_VIDEOS + 3
    index = VideoIndex.open(inputs["output"])
    assert index.watched.tower is not None
    assert len(index.watched.tower.vectors) == NUM_VIDEOS + 3


def test_an_evaluation_on_fitted_events_is_refused(inputs: dict[str, Any], ranker: str, tmp_path: Path) -> None:
    keys = {"index": inputs["output"], "history": inputs["history"], "output": str(tmp_path / "evaluation")}
    build(inputs)  # counts all events
    with pytest.raises(ConfigError) as raised:
        run_evaluate(EvaluateConfig(**keys, protocol="leave_one_out"))
    assert (raised.value.value, raised.value.expected) == ("leave_one_out", "none")
    build(inputs, ranker=ranker)
    found = run_evaluate(EvaluateConfig(**keys, protocol="leave_one_out")).evaluation
    assert {"served", "tower", "transitions", "served_exact"} <= set(found.rankers)
    assert found.rankers["served_exact"]["ndcg@10"].value == found.rankers["served"]["ndcg@10"].value
    # An evaluation that was interrupted is run again, with the same result.
    assert run_evaluate(EvaluateConfig(**keys, protocol="leave_one_out")).evaluation.as_json() == found.as_json()
    with pytest.raises(ConfigError):
        run_evaluate(EvaluateConfig(**keys, protocol="last_k", num_targets=3))


def test_a_worse_version_does_not_become_current(inputs: dict[str, Any], tmp_path: Path) -> None:
    """In later events the users go on along the cycle; content that is random predicts nothing of that."""
    history = pq.read_table(inputs["history"]).to_pylist()
    last = {row["user_id"]: row for row in history}
    events = [
        {**row, "video_id": next_of(row["video_id"]), "watched_at": row["watched_at"] + DAY} for row in last.values()
    ]
    later = tmp_path / "later.parquet"
    pq.write_table(pa.Table.from_pylist(events), later)
    gate = {"evaluate": str(later), "require": "ndcg@10 >= transitions"}
    made = build(inputs, **gate)
    assert made["evaluation"]["protocol"] == "later_events"
    assert made["evaluation"]["rankers"]["served"]["hr@10"]["value"] > 0.9
    versions = Versions(Folder(inputs["output"]))
    with pytest.raises(JobError) as worse:
        build(inputs, **gate, events={"counts": "item_knn", "ordered": True}, index={"dim": 3})
    assert (worse.value.key, worse.value.exit_code) == ("require", 1)
    assert versions.list() == [made["id"]]
    assert versions.current() == made["id"]
    with pytest.raises(ConfigError) as seen:
        build(inputs, evaluate=inputs["history"])
    assert seen.value.key == "evaluate"
    with pytest.raises(ConfigError):
        build(inputs, evaluate=str(later), require="ndcg@10 >= nothing")
    assert versions.current() == made["id"]


def next_of(video_id: str) -> str:
    """Return the video that follows in the planted cycle of ``walks``."""
    successor = np.roll(np.random.default_rng(7).permutation(NUM_VIDEOS), 1)
    return f"v{successor[int(video_id[1:])]}"


@pytest.mark.parametrize("name", ["successors.arrow", "views.npy", "ranker.safetensors", "ranker_lengths.npy"])
def test_a_damaged_version_is_not_opened(inputs: dict[str, Any], ranker: str, name: str, tmp_path: Path) -> None:
    made = build(inputs, ranker=ranker)
    path = Path(inputs["output"], "versions", made["id"], name)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(IndexVersionError):
        VideoIndex.open(inputs["output"], cache=tmp_path / "cache")
