"""The train job of a ranker on a small index, with users who walk through its videos in a planted order."""

import datetime as dt
from typing import Any

import pyarrow as pa

from raypipe.config import TrainConfig
from raypipe.dataset.footer import parquet_bytes
from raypipe.jobs.train.checkpoints import put_model
from raypipe.jobs.train.ranker.histories import find_histories
from raypipe.jobs.train.ranker.ranker_spec import RankerNetwork, build_ranker, put_ranker_files
from raypipe.jobs.train.run_spec import prepare
from raypipe.storage import Folder
from support.ranker_loops import NUM_VIDEOS, walks
from support.served_index import make_items, put_index

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
TINY: dict[str, Any] = {
    "ranker": {"n_embd": 16, "min_events": 1},
    "optimizer": {"epochs": 4, "batch_size": 16, "learning_rate": 0.02},
    "resources": {"use_gpu": False},
}


def history_rows(num_users: int = 96) -> pa.Table:
    """Return one row per event, with a time."""
    events, ids = walks(num_users), make_items(NUM_VIDEOS)[0]["video_id"].to_pylist()
    starts = events.starts.tolist()
    at = [START + dt.timedelta(hours=number - starts[user]) for number, user in enumerate(events.users.tolist())]
    users = [f"user {user}" for user in events.users.tolist()]
    return pa.table({"user_id": users, "video_id": [ids[item] for item in events.items.tolist()], "watched_at": at})


def put_inputs(place: Folder) -> None:
    """Write an index and a history."""
    put_index(Folder(place.child("index")), num_videos=NUM_VIDEOS)
    place.put("history.parquet", parquet_bytes(history_rows(), {}))


def ranker_config(place: Folder, output: Folder, **keys: Any) -> TrainConfig:  # noqa: ANN401 - of any type
    """Return the configuration of a small training; a section in ``keys`` changes only the keys it names."""
    given: dict[str, Any] = {
        "objective": "next_video",
        "index": place.child("index"),
        "history": place.child("history.parquet"),
        "output": output.uri,
    }
    for name, value in {**TINY, **keys}.items():
        given[name] = {**TINY.get(name, {}), **value} if isinstance(value, dict) else value
    return TrainConfig(**given)


def put_ranker(config: TrainConfig, *, seed: int = 0) -> Folder:
    """Write what a training without steps would write."""
    samples = find_histories(config)
    network, output = prepare(config, samples).network, Folder(config.output)
    assert isinstance(network, RankerNetwork)
    others = put_ranker_files(output, network.id_positions, samples)
    put_model(output, build_ranker(network, seed=seed), metrics={"ndcg_at_10": 0.5, "seconds": 1.0}, others=others)
    return output
