"""An output of recommend is a sealed dataset: each user once, from one index, history and ranking; verify checks it."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe import cli, schema
from raypipe.api import verify as verify_any
from raypipe.config import IndexConfig, RecommendConfig
from raypipe.dataset.commit import unsealed_plans
from raypipe.dataset.plan import StoredPlans, plan_numbers, read_plan
from raypipe.dataset.read import read_rows
from raypipe.errors import ConfigError, FingerprintError
from raypipe.jobs.index.job import run_index
from raypipe.jobs.recommend.job import RecommendJob, run_recommend
from raypipe.jobs.recommend.verify import verify
from raypipe.records import ShardSummary
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.embed_outputs import replace_object
from support.executors import InlineExecutor
from support.train_runs import embed_all, video_ids

IDS = video_ids(24)


@pytest.fixture
def index(tmp_path: Path) -> Folder:
    output = Folder(str(tmp_path / "index"))
    run_index(IndexConfig(embeddings=embed_all(Folder(str(tmp_path / "embeddings")), IDS).uri, output=output.uri))
    return output


def config_of(index: Folder, *, num_users: int = 7, **keys: Any) -> RecommendConfig:  # noqa: ANN401
    """Return a configuration with two users per shard."""
    place = Folder(str(Path(index.uri).parent))
    place.put("history.csv", ("user_id,history\n" + "".join(f"u{at},{IDS[at]}\n" for at in range(num_users))).encode())
    given = {"index": index.uri, "history": place.child("history.csv"), "output": place.child("output")}
    return RecommendConfig(**given | {"users_per_shard": 2, "cache": place.child("cache")} | keys)


class Stopping(InlineExecutor):
    """An executor that stops after some shards, like a killed driver."""

    def __init__(self, num_shards: int) -> None:
        super().__init__()
        self._num_left = num_shards

    def run(self, *args: Any) -> Any:  # noqa: ANN401
        for summary in super().run(*args):
            yield summary
            self._num_left -= 1
            if not self._num_left:
                raise KeyboardInterrupt


def test_a_run_that_was_stopped_is_resumed_and_verified(index: Folder) -> None:
    config = config_of(index)
    output = Folder(config.output)
    with pytest.raises(KeyboardInterrupt):
        run_recommend(config, executor=Stopping(2))
    assert unsealed_plans(output) == [0]
    assert [one.check for one in verify(output).violations] == ["missing_shards", "unsealed"]
    executor = InlineExecutor()
    run = run_recommend(config, executor=executor)
    assert executor.num_blocks == [2]
    assert (run.record.num_resumed_videos, run.record.num_videos) == (4, 3)
    rows = pa.concat_tables(read_rows(output))
    assert rows[schema.ROW].to_pylist() == list(range(7))
    assert rows[schema.USER_ID].to_pylist() == [f"u{at}" for at in range(7)]
    assert rows.schema.remove_metadata() == schema.recommendations_schema()
    result = verify_any(output.uri)
    assert (result.violations, result.num_rows, dict(result.statuses)) == ([], 7, {"ok": 7})
    report = Path(run.report_uri).read_text()
    assert "All 7 users are done" in report
    assert "Frames" not in report
    assert not run_recommend(config, executor=executor).record.plans
    assert executor.num_blocks == [2]


def test_an_output_belongs_to_one_index_history_and_ranking(index: Folder) -> None:
    config = config_of(index)
    run_recommend(config, executor=InlineExecutor())
    for keys, key, before, now in (
        ({"ranking": {"top_k": 3}}, "ranking.top_k", 20, 3),
        ({"users_per_shard": 5}, "users_per_shard", 2, 5),
    ):
        with pytest.raises(FingerprintError) as caught:
            run_recommend(RecommendConfig(**config.model_dump() | keys), executor=InlineExecutor())
        assert (caught.value.key, caught.value.expected, caught.value.value) == (key, {key: before}, {key: now})
    config_of(index, num_users=9)
    with pytest.raises(FingerprintError) as caught:
        run_recommend(config, executor=InlineExecutor())
    assert caught.value.key == "history_etag"


def test_the_version_of_the_first_plan_counts(index: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """This holds even if another driver plans between this one's look at the output and its own plan."""
    config = config_of(index)
    first = Versions(index).require_current()
    late = RecommendJob(config)
    assert not late.is_done()
    embeddings = Folder(str(Path(index.uri).parent / "embeddings"))
    embed_all(embeddings, video_ids(28)[24:])
    run_index(IndexConfig(embeddings=embeddings.uri, output=index.uri))
    assert Versions(index).require_current() != first
    late.prepare()
    monkeypatch.setattr(Versions, "require_current", lambda _: first)
    run_recommend(config, executor=InlineExecutor())
    late.plan(late_plans := StoredPlans(late.output), num_slots=1)
    assert late_plans.numbers() == [0]
    assert late.settings["index_version"] == first


@pytest.mark.parametrize(
    ("column", "value", "check"),
    [
        (schema.ROW, pa.array([0, 2], pa.int64()), "planned_rows"),
        (schema.STATUS, pa.array(["ok", "popular"]), "status_fits"),
        (schema.SCORES, pa.array([[float("nan")] * 20] * 2, pa.list_(pa.float32())), "score"),
        (schema.CLOSEST, pa.array([[], []], pa.list_(pa.string())), "list_lengths"),
        (schema.UNKNOWN, pa.array([None, []], pa.list_(pa.string())), "answer"),
    ],
)
def test_rows_that_were_changed_are_found(index: Folder, column: str, value: pa.Array, check: str) -> None:
    config = config_of(index)
    run_recommend(config, executor=InlineExecutor())
    output = Folder(config.output)
    name = "data/00000-000000.parquet"
    rows = pq.read_table(pa.BufferReader(output.read(name)))
    changed = rows.set_column(rows.schema.get_field_index(column), rows.schema.field(column), value)
    pq.write_table(changed, file := pa.BufferOutputStream())
    replace_object(output, name, file.getvalue().to_pybytes())
    assert check in {one.check for one in verify(output).violations}


def test_an_output_of_an_earlier_version_is_refused(index: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(index)
    output = Folder(config.output)
    assert output.put_new("run.json", json.dumps({"settings": {"job": "recommend"}}).encode())
    assert output.put_new("data/000000.parquet", b"PAR1")
    for use in (lambda: run_recommend(config, executor=InlineExecutor()), lambda: verify_any(output.uri)):
        with pytest.raises(ConfigError) as caught:
            use()
        assert (caught.value.key, caught.value.value) == ("output", output.uri)
    with pytest.raises(SystemExit) as left:
        cli.app(["verify", output.uri])
    assert left.value.code == 2
    assert output.uri in capsys.readouterr().err


def test_the_output_of_another_job_is_refused(index: Folder) -> None:
    embeddings = str(Path(index.uri).parent / "embeddings")
    for other in (index.uri, embeddings):
        with pytest.raises(ConfigError) as caught:
            run_recommend(config_of(index, output=other), executor=InlineExecutor())
        assert (caught.value.key, caught.value.value) == ("output", other)


def test_a_large_history_is_several_plans(index: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypipe.jobs.recommend.job.MAX_PLAN_VIDEOS", 2)
    config = config_of(index)
    run_recommend(config, executor=InlineExecutor())
    output = Folder(config.output)
    assert plan_numbers(output) == [0, 1]
    assert [read_plan(output, number).num_rows for number in (0, 1)] == [4, 3]
    assert verify(output).violations == []
    assert pa.concat_tables(read_rows(output))[schema.ROW].to_pylist() == list(range(7))


def test_a_shard_that_fails_is_retried(index: Folder) -> None:
    class Failing(InlineExecutor):
        def run(self, stages: Any, blocks: Any) -> Any:  # noqa: ANN401
            self.num_blocks.append(len(blocks))
            if len(self.num_blocks) == 1:
                yield ShardSummary(0, 0, problem="StorageError: it is down")
                blocks = blocks[1:]
            yield from InlineExecutor().run(stages, blocks)

    config = config_of(index)
    executor = Failing()
    run_recommend(config, executor=executor)
    assert executor.num_blocks == [4, 1]
    assert verify(Folder(config.output)).violations == []
