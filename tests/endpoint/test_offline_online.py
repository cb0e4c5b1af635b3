"""The endpoint and the offline job give the same lists for the same histories and options."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raypipe.config import RankingConfig
from raypipe.endpoint.index_watcher import IndexWatcher, LoadedIndex
from raypipe.jobs.recommend.shard import recommend_shard
from raypipe.search.query import Query
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.properties import examples
from support.routes import answer, serve
from support.watched_index import NUM_VIDEOS, watched_index

PER_OPTIONS = 25


def random_options(random: np.random.Generator) -> dict[str, Any]:
    return {
        "strategy": random.choice(["auto", "ranker", "transitions", "content"]).item(),
        "top_k": int(random.integers(1, 30)),
        "filters": random.choice([{}, {"category": "music"}, {"category": ["news", "sport"]}]),
        "exclude_history": bool(random.integers(2)),
        "diversity": random.choice([0.0, 0.4]).item(),
        "max_per_category": random.choice([None, 3]),
        "one_per_duplicate_group": bool(random.integers(2)),
        "popularity": random.choice([0.0, 0.5]).item(),
    }


def histories(random: np.random.Generator) -> list[list[str]]:
    lengths = random.integers(0, 9, PER_OPTIONS)
    return [[f"v{number}" for number in random.integers(0, NUM_VIDEOS + 5, length)] for length in lengths]


@pytest.mark.parametrize(
    ("seed", "num_histories"), [(11, 1_000), pytest.param(12, examples(10_000), marks=pytest.mark.slow)]
)
def test_offline_lists_are_those_of_the_endpoint(tmp_path: Path, seed: int, num_histories: int) -> None:
    random = np.random.default_rng(seed)
    index = watched_index(weight=0.4)
    index.manifest = {**index.manifest, "num_videos": NUM_VIDEOS}
    watcher = IndexWatcher(Versions(Folder(str(tmp_path))), tmp_path, reload_seconds=1e6)
    watcher.live = LoadedIndex(index)
    ask = serve(watcher)
    for _ in range(num_histories // PER_OPTIONS):
        options, watched = random_options(random), histories(random)
        dislikes = [f"v{number}" for number in random.integers(0, NUM_VIDEOS, int(random.integers(3)))]
        numbers = {"row": range(PER_OPTIONS), "generation": [0] * PER_OPTIONS, "shard": [0] * PER_OPTIONS}
        users = [f"u{number}" for number in range(PER_OPTIONS)]
        block = pa.table({"user_id": users, "history": pa.array(watched, pa.list_(pa.string())), **numbers})
        for row, history in zip(
            recommend_shard(block, index, RankingConfig(**options)).to_pylist(), watched, strict=True
        ):
            online = answer(ask("POST", "/v1/recommend", json={"history": history, **options}))
            why = [result["why"] for result in online["results"]]
            assert row["video_ids"] == [result["video"]["video_id"] for result in online["results"]]
            assert np.float32([result["score"] for result in online["results"]]).tolist() == [
                np.float32(round(score, 6)) for score in row["scores"]
            ]
            assert [row[name] for name in ("reasons", "after", "num_users", "closest")] == [
                [one[name] for one in why] for name in ("reason", "after", "num_users", "closest")
            ]
            assert (row["strategy"], row["ranker"]) == (online["strategy"], online["ranker"])
        online = answer(ask("POST", "/v1/recommend", json={"history": watched[0], "dislikes": dislikes, **options}))
        query = Query(history=tuple(watched[0]), dislikes=tuple(dislikes), **options)
        expected = [found.video_id for found in index.recommend(query)]
        assert [result["video"]["video_id"] for result in online["results"]] == expected
