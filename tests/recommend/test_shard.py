"""Turn a shard of users into rows: the index's answers, in the order of the history."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raypipe import schema
from raypipe.config import IndexConfig, RankingConfig
from raypipe.dataset.commit import Totals
from raypipe.jobs.index.job import run_index
from raypipe.jobs.recommend.shard import recommend_shard, summarize, unknown_ids
from raypipe.runs.stages import output_rows
from raypipe.search.index import VideoIndex
from raypipe.search.items import Items
from raypipe.search.query import Query, query_of
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from raypipe.tables.history import parse, watched
from support.train_runs import embed_all, video_ids
from support.vectors import clustered, index_of


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> VideoIndex:
    place = Folder(str(tmp_path_factory.mktemp("index")))
    embeddings, output = embed_all(Folder(place.child("embeddings")), video_ids(24)), Folder(place.child("index"))
    manifest = run_index(IndexConfig(embeddings=embeddings.uri, output=output.uri)).manifest
    return VideoIndex.load(Versions(output).fetch(manifest["id"], Path(place.uri)), manifest)


def test_every_option_of_the_ranking_is_used() -> None:
    options = {
        "strategy": "content",
        "top_k": 3,
        "filters": {"language": ["en"]},
        "exclude_history": False,
        "diversity": 0.5,
        "max_per_category": 2,
        "category_column": "genre",
        "one_per_duplicate_group": True,
        "freshness": 0.25,
        "popularity": 0.75,
    }
    assert set(options) == set(RankingConfig.model_fields)
    assert query_of(RankingConfig(**options), ("a",)) == Query(history=("a",), **options)
    assert query_of(RankingConfig(), ()) == Query()


def block_of(users: list[str], histories: list[Any]) -> pa.Table:
    """Return the rows of a history as a stage gets them."""
    numbers = {"row": range(len(users)), "generation": [0] * len(users), "shard": [3] * len(users)}
    return pa.table({"user_id": users, "history": histories, **numbers})


def test_rows_are_the_answers_of_the_index(index: VideoIndex) -> None:
    texts = ["cat/000.mp4|no/such.mp4", "", "dog/001.mp4", '["']
    rows = recommend_shard(block_of(["a", "b", "c", "d"], texts), index, RankingConfig(top_k=4))
    assert output_rows(rows, schema.recommendations_schema()).schema == schema.recommendations_schema()
    answered = rows.to_pylist()
    assert [row["row"] for row in answered] == [0, 1, 2, 3]
    assert [row["user_id"] for row in answered] == ["a", "b", "c", "d"]
    for row, history in zip(answered, [("cat/000.mp4", "no/such.mp4"), (), ("dog/001.mp4",)], strict=False):
        expected = index.recommend(Query(history=history, top_k=4))
        assert row["video_ids"] == [one.video_id for one in expected.results]
        assert row["scores"] == pytest.approx([one.score for one in expected.results])
        assert row["closest"] == [one.closest for one in expected.results]
        assert row["reasons"] == [one.reason for one in expected.results]
        assert (row["strategy"], row["ranker"]) == (expected.strategy, expected.ranker)
        assert (row["fallback"], row["unknown"]) == (expected.fallback, list(expected.unknown))
    assert answered[0]["unknown"] == ["no/such.mp4"]
    assert "'[\"'" in answered[3].pop("error")
    assert all(answered[3][name] is None for name in ("video_ids", "scores", "closest", "fallback", "unknown"))
    assert rows["status"].to_pylist() == ["ok", "popular", "ok", "error"]
    assert unknown_ids(rows) == Totals(
        {"num_ids": 3, "num_unknown_ids": 1, "num_users_with_unknown_ids": 1}, ("no/such.mp4",)
    )
    summary = summarize(rows.append_column("seconds", pa.array([0.5, 0.0, 0.0, 0.0])))
    assert (summary.shard, summary.stage_seconds) == (3, {"recommend": 0.5})
    assert [(note.video_id, note.status) for note in summary.failures] == [("d", "error")]


def test_an_invalid_query_is_an_error_of_each_row(index: VideoIndex) -> None:
    block = block_of(["a", "b"], [["cat/000.mp4"], []])
    rows = recommend_shard(block, index, RankingConfig(filters={"genre": "x"}))
    assert all("genre" in row["error"] and row["video_ids"] is None for row in rows.to_pylist())
    assert set(unknown_ids(rows).counts.values()) == {0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat/000.mp4,dog/001.mp4", ("cat/000.mp4", "dog/001.mp4")),
        ("cat/000.mp4, dog/001.mp4", ("cat/000.mp4", "dog/001.mp4")),
        ("cat/000.mp4;dog/001.mp4;no/such.mp4", ("cat/000.mp4", "dog/001.mp4", "no/such.mp4")),
        ("cat/000.mp4\tdog/001.mp4", ("cat/000.mp4", "dog/001.mp4")),
        ("no/such 1.mp4|cat/000.mp4", ("no/such 1.mp4", "cat/000.mp4")),
        ("no,such no;other", ("no,such", "no;other")),  # unknown however it is parsed
    ],
)
def test_a_text_is_read_as_what_the_index_knows(index: VideoIndex, text: str, expected: tuple[str, ...]) -> None:
    (user,) = parse(pa.table({"user_id": ["u"], "history": [text]}))
    assert watched(user, index.items.positions) == expected


def test_an_id_with_a_space_or_a_separator_is_read() -> None:
    ids = ["a b.mp4", "c,d.mp4", "e;f|g.mp4"]
    index = index_of(clustered(3, dim=4), {})
    index.items = Items(pa.table({"video_id": ids}), None)
    users = parse(pa.table({"user_id": ids, "history": ids}))
    assert [watched(user, index.items.positions) for user in users] == [(one,) for one in ids]
