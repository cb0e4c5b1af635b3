"""The classify job on a real Ray and a real S3 server, after a real embed."""

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from raypipe import cli, schema
from raypipe.config import ClassifyConfig, EmbedConfig
from raypipe.dataset.read import embeddings_manifests, read_rows
from raypipe.demo.s3_server import S3Server
from raypipe.errors import FingerprintError
from raypipe.jobs.classify.job import run_classify
from raypipe.jobs.classify.verify import verify
from raypipe.jobs.embed.job import run_embed
from raypipe.storage import Folder
from support.classify_outputs import NAMES, save_model
from support.folders import num_committed
from support.processes import Configure, StartDriver, wait_until
from support.videos import make_video, upload

pytestmark = pytest.mark.slow
_DIM = 512  # of resnet18


def classify_config(embedded: EmbedConfig, model: Path, output: Folder, **keys: Any) -> ClassifyConfig:  # noqa: ANN401 - of any type
    given = {"embeddings": embedded.output, "model": str(model), "output": output.uri}
    return ClassifyConfig(**given | keys)


def test_a_catalogue_is_classified_and_later_its_new_videos(
    bucket: str, s3: S3Server, configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, embeddings, output = (Folder(f"{bucket}/{name}") for name in ("in", "embeddings", "labels"))
    ids = upload(videos, 10)
    assert videos.put_new("broken.mp4", b"\0" * 1000)
    embedded = configure(videos.uri, embeddings.uri)
    run_embed(embedded)
    mark = embeddings_manifests(embeddings)[0]["fingerprint"]
    model = save_model(tmp_path / "model", dim=_DIM, mark=mark)
    config = classify_config(embedded, model, output, frame_scores=True)
    run = run_classify(config)
    assert (run.record.num_videos, run.record.num_failed_videos, run.record.labels.total()) == (11, 1, 10)
    assert verify(output).violations == []
    with pytest.raises(SystemExit, match="0"):
        cli.app(["verify", output.uri])
    assert "11 rows (10 ok, 1 forbidden_format), 20 frames" in capsys.readouterr().out

    options = {
        "aws_endpoint_url": s3.endpoint_url,
        "aws_access_key_id": s3.access_key,
        "aws_secret_access_key": s3.secret_key,
        "aws_region": "us-east-1",
        "aws_allow_http": "true",
    }
    found = pl.read_parquet(f"{output.uri}/data/*.parquet", storage_options=options)
    assert found.columns == schema.predictions_schema().names
    assert sorted(found[schema.VIDEO_ID]) == sorted([*ids, "broken.mp4"])
    ok = found.filter(pl.col(schema.STATUS) == "ok")
    assert set(ok[schema.LABEL]) <= set(NAMES)
    assert ok[schema.FRAME_SCORES].list.len().to_list() == [2] * 10
    assert found.filter(pl.col(schema.STATUS) != "ok")[schema.LABEL].to_list() == [None]
    summary = json.loads(output.read("reports/00000/summary.json"))
    assert (summary["job"], sum(summary["labels"].values())) == ("classify", 10)
    assert set(summary["stage_seconds"]) == {"read", "classify", "put"}

    assert run_classify(config).record.plans == ()
    upload(videos, 1, start=10)
    assert videos.put_new("z/one more.mp4", make_video(shade=99))
    run_embed(embedded)
    assert run_classify(config).record.num_videos == 2
    generations = [row[schema.GENERATION] for table in read_rows(output) for row in table.to_pylist()]
    assert sorted(generations) == [0] * 11 + [1] * 2
    assert verify(output).violations == []
    with pytest.raises(FingerprintError) as caught:
        run_classify(
            classify_config(embedded, save_model(tmp_path / "other", dim=_DIM, seed=1), output, frame_scores=True)
        )
    assert isinstance(caught.value.expected, dict)
    assert "model" in caught.value.expected


@pytest.mark.nightly  # test_faults.py covers killed drivers of batch jobs
def test_killed_drivers(bucket: str, configure: Configure, start_driver: StartDriver, tmp_path: Path) -> None:
    videos, embeddings, output = (Folder(f"{bucket}/{name}") for name in ("in", "embeddings", "labels"))
    ids = upload(videos, 24)
    embedded = configure(videos.uri, embeddings.uri, "shard.max_videos=2")
    run_embed(embedded)
    model = save_model(tmp_path / "model", dim=_DIM)
    config = classify_config(
        embedded, model, output, shard={"max_videos": 1, "max_frames": 100}, resources={"concurrency": 1, "gpus": 0.0}
    )
    for _ in range(2):
        upto = num_committed(output) + random.randint(1, 3)
        driver = start_driver(config, job="classify")
        wait_until(lambda upto=upto: num_committed(output) >= upto, what=f"{upto} shards")
        driver.kill()
    last = start_driver(config, job="classify")
    assert last.wait() == 0, last.log.read_text()
    assert "labels" in last.log.read_text()
    assert verify(output).violations == []
    rows = [row for table in read_rows(output) for row in table.to_pylist()]
    assert sorted(row[schema.VIDEO_ID] for row in rows) == sorted(ids)
    assert all(row[schema.LABEL] in NAMES for row in rows)
    summary = json.loads(output.read("reports/00000/summary.json"))
    assert summary["num_done_videos"] == len(ids)
