"""One real run of every job, in order: embed, verify, train, classify, index, recommend, serve, and the page.

Each fixture runs one job on the output of the previous one, with one local Ray and one S3 server. The tests read the
outputs.
"""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import expect

from raypipe import cli, schema
from raypipe.api import verify as verify_any
from raypipe.client import AnswerError, Client
from raypipe.config import (
    ClassifyConfig,
    EmbedConfig,
    IndexConfig,
    RecommendConfig,
    ServeConfig,
    TrainConfig,
    load_config,
)
from raypipe.dataset.read import read_embeddings, read_rows
from raypipe.jobs.classify.job import run_classify
from raypipe.jobs.classify.verify import verify as verify_predictions
from raypipe.jobs.embed.job import run_embed
from raypipe.jobs.embed.verify import verify
from raypipe.jobs.index.job import IndexRun, run_index
from raypipe.jobs.recommend.job import run_recommend
from raypipe.jobs.train.job import run_train
from raypipe.records import TrainingRecord
from raypipe.runs.job import BatchRun
from raypipe.search.index import VideoIndex
from raypipe.search.query import query_of
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.browser import Watch, chromium
from support.endpoints import FREE_OF_CHARGE, served
from support.fixtures.ray_session import CHEAP
from support.folders import keys
from support.processes import free_port
from support.train_runs import history
from support.videos import make_video

LABELS = ("dark", "light")  # the folders of the videos
IDS = [f"{LABELS[number % 2]}/{number:02d}.mp4" for number in range(24)]
BROKEN = "light/broken.mp4"
HISTORIES = {"one": [IDS[0]], "several": [*IDS[1:4], "no/such.mp4"], "new here": []}


@dataclass(frozen=True)
class Pipeline:
    """The configurations of the jobs. Each job reads what an earlier one wrote."""

    place: Folder
    work: Path

    def folder(self, job: str) -> Folder:
        """Return the output folder of a job."""
        return Folder(self.place.child(job))

    def uri(self, job: str) -> str:
        return self.folder(job).uri

    @property
    def embed(self) -> EmbedConfig:
        values = {"input": self.uri("videos"), "output": self.uri("embed")}
        return load_config(EmbedConfig, values=values, overrides=CHEAP)

    @property
    def train(self) -> TrainConfig:
        return TrainConfig.model_validate(
            {
                "embeddings": self.uri("embed"),
                "output": self.uri("train"),
                "labels_from": "folder",
                "model": {"gpt2": {"n_layer": 1, "n_head": 2, "n_embd": 16}},
                "data": {"validation_fraction": 0.25},
                "optimizer": {"epochs": 6, "batch_size": 2, "early_stop_epochs": 0},
                "resources": {"use_gpu": False},
            }
        )

    @property
    def classify(self) -> ClassifyConfig:
        return ClassifyConfig(embeddings=self.uri("embed"), model=self.uri("train"), output=self.uri("classify"))

    @property
    def index(self) -> IndexConfig:
        catalogue, labels = self.place.child("catalogue.csv"), self.uri("classify")
        return IndexConfig(
            embeddings=self.uri("embed"), output=self.uri("index"), catalogue=catalogue, labels=labels, append=True
        )

    @property
    def recommend(self) -> RecommendConfig:
        return RecommendConfig.model_validate(
            {
                "index": self.uri("index"),
                "history": self.place.child("history.csv"),
                "output": self.uri("recommend"),
                "cache": str(self.work / "recommend"),
                "ranking": {"top_k": 5},
            }
        )

    def serve(self, port: int) -> ServeConfig:
        return ServeConfig.model_validate(
            {
                "index": self.uri("index"),
                "model": self.uri("train"),
                "port": port,
                "cache": str(self.work / "serve"),
                "embedder": {"weights": "random", "enabled": True, "allowed_prefixes": [self.uri("videos")]},
                "replicas": FREE_OF_CHARGE,
                "model_replicas": FREE_OF_CHARGE,
            }
        )


@pytest.fixture(scope="module")
def pipeline(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:  # noqa: ARG001 - Ray must run
    pipeline = Pipeline(Folder(f"s3://videos/{secrets.token_hex(8)}"), tmp_path_factory.mktemp("pipeline"))
    videos = pipeline.folder("videos")
    for number, name in enumerate(IDS):
        assert videos.put_new(name, make_video(shade=number + 150 * (number % 2)))
    assert videos.put_new(BROKEN, b"this is not a video")
    rows = [f"{one},Video {one},{one.partition('/')[0]},{at}" for at, one in enumerate(IDS)]
    pipeline.place.put("catalogue.csv", "\n".join(["video_id,title,category,popularity", *rows]).encode())
    lines = [f'{user},"{json.dumps(watched).replace(chr(34), chr(34) * 2)}"' for user, watched in HISTORIES.items()]
    pipeline.place.put("history.csv", "\n".join(["user_id,history", *lines]).encode())
    return pipeline


@pytest.fixture(scope="module")
def embedded(pipeline: Pipeline) -> BatchRun:
    return run_embed(pipeline.embed)


@pytest.fixture(scope="module")
def trained(embedded: BatchRun, pipeline: Pipeline) -> TrainingRecord:
    assert embedded.record.num_videos == len(IDS) + 1
    return run_train(pipeline.train).record


@pytest.fixture(scope="module")
def classified(trained: TrainingRecord, pipeline: Pipeline) -> BatchRun:
    assert trained.outcome == "finished"
    return run_classify(pipeline.classify)


@pytest.fixture(scope="module")
def indexed(classified: BatchRun, pipeline: Pipeline) -> IndexRun:
    assert classified.record.num_videos == len(IDS) + 1
    return run_index(pipeline.index)


@pytest.fixture(scope="module")
def index(indexed: IndexRun, pipeline: Pipeline) -> VideoIndex:
    versions, version = Versions(pipeline.folder("index")), indexed.manifest["id"]
    return VideoIndex.load(versions.fetch(version, pipeline.work / "index"), versions.read_manifest(version))


@pytest.fixture(scope="module")
def recommended(indexed: IndexRun, pipeline: Pipeline) -> BatchRun:
    assert indexed.is_new
    return run_recommend(pipeline.recommend)


@pytest.fixture(scope="module")
def url(indexed: IndexRun, pipeline: Pipeline) -> Iterator[str]:
    """Serve the index with embedder and classifier, and yield the address."""
    assert indexed.is_new
    with served(pipeline.serve(free_port())) as url:
        yield url


def rows_of(tables: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401 - of Arrow
    return {row[schema.VIDEO_ID]: row for table in tables for row in table.to_pylist()}


def test_embed_gives_every_video_one_row(embedded: BatchRun, pipeline: Pipeline) -> None:
    output = pipeline.folder("embed")
    found = verify(output)
    assert (found.violations, found.num_rows, found.num_frames) == ([], len(IDS) + 1, 2 * len(IDS))
    rows = rows_of(read_embeddings(output))
    assert {name for name, row in rows.items() if row[schema.STATUS] == "ok"} == set(IDS)
    assert rows[BROKEN][schema.EMBEDDING] is None
    assert rows[BROKEN][schema.ERROR]
    for name in IDS:
        frames = np.asarray(rows[name][schema.FRAME_EMBEDDINGS], np.float32)
        assert frames.shape == (2, 512)
        mean = frames.mean(axis=0)
        np.testing.assert_allclose(rows[name][schema.EMBEDDING], mean / np.linalg.norm(mean), atol=1e-3)
    assert embedded.report_uri == output.child("reports/00000/report.html")
    assert b"<html" in output.read("reports/00000/report.html")


def test_verify_is_a_command(embedded: BatchRun, pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert embedded.record.plans
    with pytest.raises(SystemExit) as left:
        cli.app(["verify", pipeline.uri("embed")])
    assert left.value.code == 0
    assert str(len(IDS) + 1) in capsys.readouterr().out


def test_train_leaves_a_model_that_has_learned(trained: TrainingRecord, pipeline: Pipeline) -> None:
    output = pipeline.folder("train")
    assert keys(output, "model/") == [
        f"model/{name}" for name in ("README.md", "complete.json", "config.json", "model.safetensors")
    ]
    first, *_, last = [epoch["train_loss"] for epoch in history(output) if epoch["epoch"]]  # epoch 0 is the probe
    assert last < first
    assert trained.num_train_videos + trained.num_validation_videos == len(IDS)
    assert keys(output, "checkpoints/")


def test_classify_labels_what_was_embedded(classified: BatchRun, pipeline: Pipeline) -> None:
    output = pipeline.folder("classify")
    assert verify_predictions(output).violations == []
    rows = rows_of(read_rows(output))
    assert rows.keys() == {*IDS, BROKEN}
    assert rows[BROKEN][schema.LABEL] is None
    right = sum(rows[name][schema.LABEL] == name.partition("/")[0] for name in IDS)
    assert right / len(IDS) > 0.8  # chance is 0.5
    assert classified.record.labels.total() == len(IDS)


def test_index_holds_the_videos_with_their_columns(index: VideoIndex) -> None:
    assert sorted(index.items.video_id(position) for position in range(len(index.items))) == sorted(IDS)
    position = index.items.position(IDS[3])
    assert position is not None
    row = index.items.row(position)
    assert (row["title"], row["category"]) == (f"Video {IDS[3]}", "light")


def test_recommend_answers_as_the_index_does(recommended: BatchRun, index: VideoIndex, pipeline: Pipeline) -> None:
    assert recommended.record.statuses == {"ok": 2, "popular": 1}
    output = pipeline.folder("recommend")
    assert verify_any(output.uri).violations == []
    files = [pa.BufferReader(output.read(name)) for name in keys(output, "data/")]
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert [row["user_id"] for row in rows] == list(HISTORIES)
    for row, watched in zip(rows, HISTORIES.values(), strict=True):
        expected = index.recommend(query_of(pipeline.recommend.ranking, tuple(watched)))
        assert row["video_ids"] == [one.video_id for one in expected.results]
        assert not set(watched) & set(row["video_ids"])
        assert len(row["video_ids"]) == 5


@pytest.mark.usefixtures("recommended")
def test_the_same_commands_again_write_nothing(pipeline: Pipeline) -> None:
    before = {stored.key: stored.etag for stored in pipeline.place.list()}
    assert run_embed(pipeline.embed).record.plans == ()
    assert not run_train(pipeline.train).is_new
    assert run_classify(pipeline.classify).record.plans == ()
    assert not run_index(pipeline.index).is_new
    assert run_recommend(pipeline.recommend).record.plans == ()
    assert {stored.key: stored.etag for stored in pipeline.place.list()} == before


def test_the_endpoint_recommends(url: str) -> None:
    client = Client(url, timeout_seconds=60)
    about = client.index()
    assert (about["num_videos"], about["can_embed"], about["can_classify"]) == (len(IDS), True, True)
    answer = client.recommend(IDS[:3], top_k=4, filters={"category": ["light"]})
    assert {one["video"]["fields"]["category"] for one in answer["results"]} == {"light"}
    similar = [one["video"]["video_id"] for one in client.similar(IDS[5], top_k=4)["results"]]
    assert similar == [one["video"]["video_id"] for one in client.recommend([IDS[5]], top_k=4)["results"]]
    assert client.thumbnail(IDS[0]).startswith(b"\xff\xd8")


def test_the_endpoint_embeds_and_classifies_a_video(url: str, pipeline: Pipeline, tmp_path: Path) -> None:
    client = Client(url, timeout_seconds=60)
    found = client.embed(Folder(pipeline.uri("videos")).child(IDS[5]), top_k=1)
    assert found["neighbors"]["results"][0]["video"]["video_id"] == IDS[5]
    stored = np.asarray(rows_of(read_embeddings(pipeline.folder("embed")))[IDS[5]][schema.EMBEDDING], np.float32)
    np.testing.assert_allclose(found["embedding"], stored / np.linalg.norm(stored), atol=1e-5)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(make_video(shade=199))
    assert client.classify(clip)["label"] in LABELS


def test_the_endpoint_refuses_in_json(url: str, pipeline: Pipeline) -> None:
    with pytest.raises(AnswerError) as caught:
        Client(url).similar("no/such.mp4")
    assert (caught.value.status, caught.value.code) == (404, "not_found")
    denied = httpx.post(f"{url}/v1/embed", json={"uri": "file:///etc/passwd"}, timeout=60)
    assert (denied.status_code, denied.json()["error"]["code"]) == (403, "forbidden_uri")
    assert httpx.get(f"{url}/readyz").json()["version"] == Versions(pipeline.folder("index")).current()


def test_the_page_recommends_from_what_was_watched(url: str) -> None:
    watch = Watch(url)
    with chromium() as browser:
        page = browser.new_page()
        watch.follow(page)
        page.goto(url)
        expect(page.locator("#grid .card")).to_have_count(len(IDS))
        expect(page.locator("#recommended .row").first).to_be_visible()
        popular = page.locator("#recommended .title").all_text_contents()
        page.locator("#grid .watch").nth(0).click()
        expect(page.locator("#strip li")).to_have_count(1)
        expect(page.locator("#recommended .title")).not_to_have_text(popular)
    assert watch.troubles == []
