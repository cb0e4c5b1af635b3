"""The anomalies job in this process: one row per video outside the index, the findings, and what is refused."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from raypipe import schema
from raypipe.config import AnomaliesConfig
from raypipe.dataset.plan import plan_numbers, read_plan
from raypipe.dataset.read import read_embeddings, read_rows
from raypipe.errors import ConfigError, FingerprintError, IndexVersionError, RaypipeError, WeightsError
from raypipe.jobs.anomalies import shard
from raypipe.jobs.anomalies.findings import METRICS, REPORT, TABLE
from raypipe.jobs.anomalies.job import AnomaliesRun, run_anomalies
from raypipe.jobs.anomalies.verify import verify
from raypipe.models.classifier_files import build_masked_frame_model
from raypipe.models.model_files import read_model
from raypipe.search.index import VideoIndex
from raypipe.search.novelty import Novelty
from raypipe.storage import Folder
from support.anomaly_outputs import configured, put_catalogue, save_masked_frame_model
from support.classify_outputs import save_model
from support.embed_outputs import content, embed_all, make_output, replace_object, upload
from support.executors import InlineExecutor

KNOWN = ("1.mp4", "not embedded.mp4")


@pytest.fixture
def embeddings(tmp_path: Path) -> Folder:
    made = make_output(Folder(str(tmp_path)))
    put_catalogue(Folder(f"{made.uri}-index"), known=KNOWN)
    return made


def run(config: AnomaliesConfig) -> AnomaliesRun:
    return run_anomalies(config, executor=InlineExecutor())


def rows_of(config: AnomaliesConfig) -> dict[str, dict[str, Any]]:
    return {row[schema.VIDEO_ID]: row for table in read_rows(Folder(config.output)) for row in table.to_pylist()}


def test_every_video_outside_the_index_has_one_row_with_its_own_scores(embeddings: Folder) -> None:
    config = configured(embeddings)
    made = run(config)
    result = verify(Folder(config.output))
    assert (result.violations, result.statuses) == ([], {"ok": 4, "timeout": 1, "partial": 1})
    rows = rows_of(config)
    embedded = {row[schema.VIDEO_ID]: row for table in read_embeddings(embeddings) for row in table.to_pylist()}
    assert rows.keys() == embedded.keys() - set(KNOWN)
    novelty = Novelty.fit(VideoIndex.open(config.index), num_neighbors=1, max_scores=10_000)
    for video_id, row in rows.items():
        if video_id == "5.mp4":
            assert {row[name] for name in (schema.P_VALUE, schema.CLOSEST_VIDEO, schema.STRANGEST_SECONDS)} == {None}
            continue
        scores = novelty.score(np.array([embedded[video_id][schema.EMBEDDING]], np.float32))
        assert row[schema.P_VALUE] == novelty.calibration.p_values(scores)[0]
        assert row[schema.NEIGHBOR_DISTANCE] == pytest.approx(scores.distances[0])
        assert row[schema.CLOSEST_VIDEO] == novelty.index.items.video_id(int(scores.closest[0]))
        frames = novelty.frame_distances(np.array(embedded[video_id][schema.FRAME_EMBEDDINGS], np.float32))
        assert row[schema.FRAME_SCORES] == pytest.approx(frames)
        assert row[schema.STRANGEST_SECONDS] == embedded[video_id][schema.FRAME_PTS_SECONDS][int(frames.argmax())]
    found = made.findings.metrics
    assert (found["num_videos"], found["num_unscored"], found["num_already_in_index"]) == (5, 1, 1)
    assert (found["num_calibration_videos"], found["smallest_p_value"]) == (30, 1 / 31)
    assert found["fewest_discoveries"] == 4


def test_the_findings_are_of_all_runs_together_and_in_order(embeddings: Folder, tmp_path: Path) -> None:
    config = configured(embeddings)
    run(config)
    output = Folder(config.output)
    before = rows_of(config)
    put_catalogue(Folder(config.index), num_videos=40)  # a newer version, which this output does not use
    more = Folder(str(tmp_path / "in"))
    upload(more, {f"more {number}.mp4": content(seed=20 + number) for number in range(3)})
    embed_all(more, embeddings)
    again = run(configured(embeddings, false_discovery_rate=0.9))
    assert again.batch.record.num_videos == 3
    assert again.findings.metrics["num_videos"] == 8
    assert again.findings.metrics["num_calibration_videos"] == 30
    assert {name: row for name, row in rows_of(config).items() if name in before} == before
    table = pq.read_table(io.BytesIO(output.read(TABLE)))
    assert table.num_rows == 8
    p_values = table[schema.P_VALUE].to_pylist()
    assert p_values == sorted(p_values)
    assert table["is_anomaly"].to_pylist() == [q <= 0.9 for q in table["q_value"].to_pylist()]
    places = table.sort_by("place")
    assert places[schema.GENERATION].to_pylist() == sorted(places[schema.GENERATION].to_pylist())
    assert json.loads(output.read(METRICS))["num_videos"] == 8
    assert b"more 1.mp4" in output.read(REPORT)
    nothing = run(config)
    assert (nothing.batch.record.plans, nothing.findings.metrics["num_videos"]) == ((), 8)
    assert plan_numbers(output) == [0, 1]


def test_times_give_the_order_of_the_drift(embeddings: Folder, tmp_path: Path) -> None:
    times = tmp_path / "times.csv"
    ids = ["new.mp4", "0.mp4", "4.mp4", "2.mp4", "no such video.mp4"]
    pa_csv.write_csv(
        pa.table({"video_id": ids, "time": [f"2026-01-0{day}T00:00:00Z" for day in (1, 2, 3, 4, 5)]}), times
    )
    made = run(configured(embeddings, times=str(times)))
    assert made.findings.metrics["num_without_time"] == 1
    table = pq.read_table(io.BytesIO(Folder(configured(embeddings).output).read(TABLE))).sort_by("place")
    assert table[schema.VIDEO_ID].to_pylist() == [*ids[:4], "3.mp4"]
    for rows, key in (
        ({"video_id": ["a", "a"], "time": [1, 2]}, "video_id"),
        ({"video_id": ["a"], "time": ["soon"]}, "time"),
        ({"video_id": ["a"]}, "time"),
    ):
        pa_csv.write_csv(pa.table(rows), times)
        with pytest.raises(ConfigError) as caught:
            run(configured(embeddings, times=str(times)))
        assert caught.value.key == key


def test_a_masked_frame_model_says_when(embeddings: Folder, tmp_path: Path) -> None:
    config = configured(embeddings, model=str(save_masked_frame_model(tmp_path / "model")))
    run(config)
    assert verify(Folder(config.output)).violations == []
    model = build_masked_frame_model(read_model(Folder(str(config.model))))
    embedded = {row[schema.VIDEO_ID]: row for table in read_embeddings(embeddings) for row in table.to_pylist()}
    for video_id, row in rows_of(config).items():
        if row[schema.P_VALUE] is not None:
            errors = model.frame_errors(np.array(embedded[video_id][schema.FRAME_EMBEDDINGS], np.float16))
            assert row[schema.FRAME_SCORES][0] is None
            assert row[schema.FRAME_SCORES][1:] == pytest.approx(errors[1:], rel=1e-4)
            at = 1 + int(errors[1:].argmax())  # the first frame is predicted from nothing
            assert row[schema.STRANGEST_SECONDS] == embedded[video_id][schema.FRAME_PTS_SECONDS][at]


def test_frames_need_not_be_scored(embeddings: Folder) -> None:
    config = configured(embeddings, frame_scores=False)
    run(config)
    assert verify(Folder(config.output)).violations == []
    assert {(row[schema.FRAME_SCORES], row[schema.STRANGEST_SECONDS]) for row in rows_of(config).values()} == {
        (None, None)
    }


def test_embeddings_whose_videos_are_all_known_are_nothing_to_do(tmp_path: Path) -> None:
    source, made = Folder(str(tmp_path / "in")), Folder(str(tmp_path / "out"))
    upload(source, {"1.mp4": content()})
    embed_all(source, made)
    put_catalogue(Folder(f"{made.uri}-index"), known=KNOWN)
    found = run(configured(made))
    assert (found.batch.record.plans, found.findings.report_uri) == ((), "")
    assert (found.findings.metrics["num_videos"], found.findings.metrics["num_already_in_index"]) == (0, 1)


def test_what_cannot_be_compared_is_refused_before_any_work(embeddings: Folder, tmp_path: Path) -> None:
    def index(name: str, **about: Any) -> str:  # noqa: ANN401 - of any type
        put_catalogue(Folder(str(tmp_path / name)), **about)
        return str(tmp_path / name)

    (tmp_path / "empty").mkdir()
    classifier = str(save_model(tmp_path / "classifier"))
    other_model = str(save_masked_frame_model(tmp_path / "other model", mark="0" * 16))
    refused: list[tuple[dict[str, Any], type[RaypipeError], str]] = [
        ({"index": index("own", own_vectors=True)}, ConfigError, "index"),
        ({"index": index("other", fingerprint="0" * 16)}, FingerprintError, "embeddings"),
        ({"index": index("wide", dim=9)}, FingerprintError, "embeddings"),
        ({"index": index("small", num_videos=19)}, ConfigError, "index"),
        ({"index": str(tmp_path / "empty")}, IndexVersionError, str(tmp_path / "empty")),
        ({"output": embeddings.uri}, ConfigError, "output"),
        ({"model": classifier}, WeightsError, "architectures"),
        ({"model": other_model}, FingerprintError, "embedding_fingerprint"),
    ]
    for keys, kind, key in refused:
        with pytest.raises(kind) as caught:
            run(configured(embeddings, **keys))
        assert (caught.value.key, caught.value.exit_code) == (key, 2)
        assert "\n" not in str(caught.value)
    assert not Path(configured(embeddings).output).exists()


def test_other_settings_need_another_output(embeddings: Folder) -> None:
    config = configured(embeddings)
    run(config)
    settings = read_plan(Folder(config.output), 0).settings
    for keys in ({"neighbors": 2}, {"frame_scores": False}, {"calibration_videos": 20}):
        with pytest.raises(FingerprintError) as caught:
            run(configured(embeddings, **keys))
        assert caught.value.expected == {key: settings[key] for key in keys}
    put_catalogue(Folder(f"{embeddings.uri}-elsewhere"))
    with pytest.raises(FingerprintError):
        run(configured(embeddings, index=f"{embeddings.uri}-elsewhere"))
    with pytest.raises(ConfigError):
        run(configured(Folder(config.output), index=config.index, output=f"{config.output}-again"))


@pytest.mark.parametrize(
    ("video_id", "column", "value", "check"),
    [
        ("0.mp4", schema.P_VALUE, 0.0, "p_value"),
        ("0.mp4", schema.P_VALUE, float("nan"), "p_value"),
        ("0.mp4", schema.P_VALUE, None, "some_scores"),
        ("0.mp4", schema.NEIGHBOR_DISTANCE, -0.5, "score"),
        ("0.mp4", schema.MAHALANOBIS_LENGTH, float("inf"), "score"),
        ("0.mp4", schema.FRAME_SCORES, [0.5], "frame_scores"),
        ("0.mp4", schema.FRAME_SCORES, [0.5, float("nan"), 0.5], "frame_score"),
        ("0.mp4", schema.NUM_FRAMES, 0, "frames"),
        ("5.mp4", schema.STRANGEST_SECONDS, 1.0, "frame_scores"),
        ("5.mp4", schema.CLOSEST_VIDEO, "a.mp4", "some_scores"),
    ],
)
def test_every_corruption_is_found(embeddings: Folder, video_id: str, column: str, value: object, check: str) -> None:
    config = configured(embeddings)
    run(config)
    output = Folder(config.output)
    for stored in list(output.list("data/")):
        rows = pq.read_table(io.BytesIO(output.read(stored.key)))
        if video_id in (ids := rows[schema.VIDEO_ID].to_pylist()):
            values = rows[column].to_pylist()
            values[ids.index(video_id)] = value
            at = rows.schema.get_field_index(column)
            file = io.BytesIO()
            pq.write_table(rows.set_column(at, column, pa.array(values, rows.schema.field(column).type)), file)
            replace_object(output, stored.key, file.getvalue())
    found = [violation for violation in verify(output).violations if violation.check == check]
    assert len(found) == 1
    assert video_id in found[0]


def test_a_zero_embedding_has_no_scores(embeddings: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    original = shard._embeddings

    def zeroed(read: pa.Table) -> Any:  # noqa: ANN401 - arrays
        found = original(read)
        found[[video_id == "0.mp4" for video_id in read[schema.VIDEO_ID].to_pylist()]] = np.nan
        return found

    monkeypatch.setattr(shard, "_embeddings", zeroed)
    config = configured(embeddings)
    made = run(config)
    assert rows_of(config)["0.mp4"][schema.P_VALUE] is None
    assert made.findings.metrics["num_unscored"] == 2
    assert verify(Folder(config.output)).violations == []
