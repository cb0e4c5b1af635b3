"""The train job on a real Ray and a real S3 server: its output, and what the next job does with it."""

import io
import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import yaml
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from raypipe import cli, schema
from raypipe.config import ClassifyConfig, TrainConfig
from raypipe.dataset.read import read_rows
from raypipe.jobs.classify.job import run_classify
from raypipe.jobs.classify.verify import verify
from raypipe.jobs.train.classifier.probing import PROBE, TrainedProbe
from raypipe.jobs.train.classifier.self_training import PSEUDO_LABELS
from raypipe.jobs.train.inputs import TARGETS, find_samples
from raypipe.jobs.train.job import run_train
from raypipe.models.classifier_files import build_classifier, build_model, read_model
from raypipe.records import GPT2_ALONE, LABEL_SPREADING, MAJORITY, THIS_MODEL
from raypipe.storage import Folder
from support.folders import keys
from support.train_runs import LABELS, NUM_VIDEOS, Trained, embed_all, frames_of, history, train_config, video_ids

pytestmark = pytest.mark.slow
_NUM_TRAIN = 72
_MODEL_FILES = ("README.md", "complete.json", "config.json", "model.safetensors")
_LOAD = """
import builtins, json, sys
true_import = builtins.__import__
def refuse(name, *args, **kwargs):
    if name.partition(".")[0] == "ray":
        raise ImportError(name)
    return true_import(name, *args, **kwargs)
builtins.__import__ = refuse
import numpy as np
from raypipe.models.classifier import VideoClassifier
model = VideoClassifier.from_pretrained(sys.argv[1])
videos = [np.array(frames, dtype=np.float16) for frames in json.load(sys.stdin)]
print(json.dumps([model.config.label_names, model.classify(videos).probabilities.tolist()]))
"""


def train_by_command(config: TrainConfig, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str, str]:
    """Run ``raypipe train`` in this process; return its exit code, its stdout and its stderr."""
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump(config.model_dump()))
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        cli.app(["train", str(file)])
    printed = capsys.readouterr()
    return left.value.code, " ".join(printed.out.split()), printed.err


def scalars(data: bytes) -> Iterator[tuple[int, str, float]]:
    """Yield the scalars of a TensorBoard event file. A record: a length, its checksum, the event, its checksum."""
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        record = data[12 : 12 + size]
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
        assert struct.unpack("<I", data[12 + size : 16 + size])[0] == masked_crc32c(record)
        event = Event.FromString(record)
        yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)
        data = data[16 + size :]


def test_the_output_of_a_training(trained: Trained) -> None:
    output, epochs = trained.output, history(trained.output)
    assert keys(output, "model/") == [f"model/{name}" for name in _MODEL_FILES]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3, 4]
    # Each epoch sees each training video once.
    assert [round(epoch["samples_per_second"] * epoch["seconds"]) for epoch in epochs] == [_NUM_TRAIN] * 4
    assert [epoch["step"] for epoch in epochs] == [36, 72, 108, 144]
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"] / 2

    best = max(epochs, key=lambda epoch: (epoch["accuracy"], -epoch["validation_loss"]))
    assert best["accuracy"] > 0.8
    assert best["epoch"] < 4  # otherwise this could not show that the best epoch is kept, not the last
    timeless = {name: value for name, value in best.items() if name not in {"seconds", "samples_per_second"}}
    assert json.loads(output.read("model/config.json"))["metrics"] == timeless
    kept, in_checkpoint = (
        safetensors.torch.load(output.read(name))
        for name in ("model/model.safetensors", f"checkpoints/{best['epoch'] - 1:06d}/model.safetensors")
    )
    assert kept.keys() == in_checkpoint.keys()
    assert all(torch.equal(kept[name], in_checkpoint[name]) for name in kept)

    summary = json.loads(output.read("summary.json"))
    assert (summary["job"], summary["outcome"], summary["best_epoch"]) == ("train", "finished", best["epoch"])
    assert (summary["num_train_videos"], summary["num_validation_videos"]) == (_NUM_TRAIN, NUM_VIDEOS - _NUM_TRAIN)
    assert [epoch["train_loss"] for epoch in summary["epochs"]] == [epoch["train_loss"] for epoch in epochs]
    assert sum(map(sum, summary["confusion"])) == NUM_VIDEOS - _NUM_TRAIN
    right = sum(row[at] for at, row in enumerate(summary["confusion"]))
    assert right / (NUM_VIDEOS - _NUM_TRAIN) == pytest.approx(best["accuracy"])
    assert b"<html" in output.read("report.html")
    assert "epoch 4/4" in trained.log

    (events,) = keys(output, "tensorboard/")
    shown = {(step, tag): value for step, tag, value in scalars(output.read(events))}
    assert {step for step, _ in shown} == {1, 2, 3, 4}
    for epoch in epochs:
        for name in ("train_loss", "validation_loss", "accuracy", "learning_rate"):
            assert shown[epoch["epoch"], name] == pytest.approx(epoch[name], rel=1e-6)


def test_the_same_command_again_does_nothing(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {stored.key: stored.etag for stored in trained.output.list()}
    code, out, err = train_by_command(trained.config, tmp_path, capsys)
    assert (code, err) == (0, "")
    assert "Nothing to do" in out  # the display may break lines
    assert {stored.key: stored.etag for stored in trained.output.list()} == before


def test_other_settings_need_another_output(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = train_config(trained.embeddings, trained.output, optimizer={"weight_decay": 0.5})
    code, _, err = train_by_command(config, tmp_path, capsys)
    assert code == 2
    assert err.startswith("error: ")
    assert [part for part in (trained.output.uri, "optimizer.weight_decay", " 0.05 ", " 0.5") if part not in err] == []
    assert err.count("\n") == 1


def test_a_trained_model_labels_the_catalogue(trained: Trained, bucket: str, tmp_path: Path) -> None:
    output = Folder(f"{bucket}/labels")
    run_classify(ClassifyConfig(embeddings=trained.embeddings.uri, model=trained.output.uri, output=output.uri))
    assert verify(output).violations == []
    rows = [row for table in read_rows(output) for row in table.to_pylist()]
    assert sorted(row[schema.VIDEO_ID] for row in rows) == sorted(video_ids())
    right = sum(row[schema.LABEL] == row[schema.VIDEO_ID].partition("/")[0] for row in rows)
    assert right / NUM_VIDEOS > 0.8  # chance is 0.25

    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(trained.output.read(f"model/{name}"))
    videos = [frames_of(row[schema.VIDEO_ID]).astype(np.float16).tolist() for row in rows]
    loaded = subprocess.run(
        [sys.executable, "-W", "error", "-c", _LOAD, str(tmp_path)],
        input=json.dumps(videos),
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    label_names, probabilities = json.loads(loaded.stdout)
    assert label_names == list(LABELS)
    for row, said in zip(rows, probabilities, strict=True):
        assert [said[LABELS.index(label)] for label in row[schema.TOP_LABELS]] == pytest.approx(
            row[schema.TOP_SCORES], abs=1e-5
        )


def test_a_training_with_a_probe(trained: Trained, bucket: str) -> None:
    output = Folder(f"{bucket}/model")
    head = {"head": "auto", "compare": "all"}
    config = train_config(trained.embeddings, output, model=head, optimizer={"epochs": 2})
    record = run_train(config).record
    probe = TrainedProbe.from_bytes(output.read(PROBE))
    targets = find_samples(config).train[TARGETS].to_pylist()
    is_right = probe.out_of_fold.argmax(dim=1) == torch.tensor(targets)[:, 0]
    assert is_right.float().mean() > 0.8  # so the rows have the order of the samples

    first, *others = history(output)
    assert [epoch["epoch"] for epoch in others] == [1, 2]
    assert (first["epoch"], first["step"], first["train_loss"]) == (0, 0, pytest.approx(probe.loss))
    assert first["accuracy"] > 0.8
    model = build_classifier(read_model(output))
    assert model.config.has_gpt2 == (record.best_epoch != 0)
    videos = [frames_of(video_id).astype(np.float16) for video_id in video_ids()]
    labels = np.arange(NUM_VIDEOS) % len(LABELS)
    assert (model.classify(videos).probabilities.argmax(axis=1) == labels).mean() > 0.8
    assert {THIS_MODEL, GPT2_ALONE, MAJORITY} <= {peer.name for peer in record.peers}
    assert not run_train(config).is_new


def test_a_self_training_learns_from_videos_without_a_label(trained: Trained, bucket: str) -> None:
    output, labels = Folder(f"{bucket}/self-trained"), Folder(f"{bucket}/few")
    some = [*video_ids()[:16], *video_ids()[-16:]]
    lines = [json.dumps({"video_id": name, "label": name.partition("/")[0]}) for name in some]
    assert labels.put_new("labels.jsonl", "\n".join(lines).encode())
    head = {"head": "probe", "compare": "simple"}
    config = train_config(
        trained.embeddings, output, objective="self_train", labels=labels.child("labels.jsonl"), model=head
    )
    record = run_train(config).record
    found = record.self_training
    assert found is not None
    assert found.num_unlabelled == NUM_VIDEOS - len(some)
    assert 0 < found.num_given <= found.num_unlabelled
    assert found.accuracy > 0.8
    given = pq.read_table(io.BytesIO(output.read(PSEUDO_LABELS))).to_pylist()
    assert len(given) == found.num_unlabelled
    assert np.mean([row["label"] == row["video_id"].partition("/")[0] for row in given]) > 0.8
    assert json.loads(output.read("summary.json"))["self_training"]["num_given"] == found.num_given
    assert {THIS_MODEL, LABEL_SPREADING} <= {peer.name for peer in record.peers}
    assert not run_train(config).is_new


@pytest.mark.nightly  # two trainings; train/test_loop.py tests the loop of a masked-frame model
def test_a_classifier_starts_from_a_masked_frame_model(trained: Trained, bucket: str) -> None:
    first, second, labels = (Folder(f"{bucket}/{name}") for name in ("first", "second", "labels"))
    config = train_config(trained.embeddings, first, objective="masked_frame", optimizer={"epochs": 2})
    run = run_train(config)
    assert run.record.selected_by == "loss"
    epochs = history(first)
    assert epochs[1]["validation_loss"] < epochs[0]["validation_loss"] < 1.5  # always predicting the mean gives 1
    assert {epoch["accuracy"] for epoch in epochs} == {None}
    assert keys(first, "model/") == [f"model/{name}" for name in _MODEL_FILES]

    lines = [json.dumps({"video_id": name, "label": name.partition("/")[0]}) for name in video_ids()]
    assert labels.put_new("labels.jsonl", "\n".join(lines).encode())
    barely = {"epochs": 1, "learning_rate": 1e-7}
    config = train_config(
        trained.embeddings, second, labels=labels.child("labels.jsonl"), init_from=first.uri, optimizer=barely
    )
    run_train(config)
    before, after = (build_model(read_model(output)).encoder.state_dict() for output in (first, second))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.allclose(tensor, after[name], atol=1e-4), name
    assert not torch.equal(before["projection.weight"], after["projection.weight"])


def test_a_nan_loss_ends_the_training(
    trained: Trained, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, table = Folder(f"{bucket}/model"), io.BytesIO()
    labels = {"video_id": video_ids(), "label": [name.partition("/")[0] for name in video_ids()]}
    pq.write_table(pa.table(labels), table)
    assert Folder(bucket).put_new("labels.parquet", table.getvalue())
    config = train_config(
        trained.embeddings,
        output,
        labels=f"{bucket}/labels.parquet",
        optimizer={"learning_rate": 1e30},
        checkpoint={"minutes": 1e-6},
    )
    code, _, err = train_by_command(config, tmp_path, capsys)
    assert code == 1
    assert err.startswith("error: ")
    assert "epoch 1, step " in err
    assert err.count("\n") == 1
    assert keys(output, "model/") == []
    assert keys(output, "checkpoints/")
    assert json.loads(output.read("summary.json"))["outcome"] == "failed"


@pytest.mark.parametrize(
    ("rows", "given", "data"),
    [
        (["horse/0.mp4,horse", "x/1.mp4,horse"], {}, r"\b2\b.*\b98\b"),
        (["cat/000.mp4,lion"], {}, "'lion'"),
        ([], {"init_from": "model"}, r"/model\b.*\b[0-9a-f]{16}\b"),
        ([], {"resources": {"use_gpu": True}}, r"resources.use_gpu=true.* 0 GPUs"),
        (None, {}, "labels.csv"),
    ],
)
def test_wrong_inputs_are_refused_before_any_work(
    rows: list[str] | None,
    given: dict[str, Any],
    data: str,
    *,
    trained: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    embeddings = trained.embeddings
    if given.get("init_from"):
        given = {"init_from": trained.output.uri}
        embeddings = embed_all(
            Folder(str(tmp_path / "other")), video_ids(), settings={"format": 1, "backbone": "other"}
        )
    labels = {name: f"{name},{name.partition('/')[0]}" for name in video_ids()}
    labels |= {row.partition(",")[0]: row for row in rows or ()}
    if rows is not None:
        (tmp_path / "labels.csv").write_text("\n".join(["video_id,label", *labels.values()]))
    output = Folder(str(tmp_path / "model"))
    config = train_config(embeddings, output, labels=str(tmp_path / "labels.csv"), **given)
    code, _, err = train_by_command(config, tmp_path, capsys)
    assert code == 2
    assert err.startswith("error: ")
    assert re.search(data, err), err
    assert err.count("\n") == 1
    assert keys(output, "checkpoints/") == keys(output, "model/") == []


def test_embeddings_that_are_not_sealed_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embeddings = embed_all(Folder(str(tmp_path / "embeddings")), video_ids(12), sealed=False)
    code, _, err = train_by_command(train_config(embeddings, Folder(str(tmp_path / "model"))), tmp_path, capsys)
    assert code == 1
    assert err.startswith(f"error: {embeddings} ")
    assert [part for part in ("[0]", "raypipe embed") if part not in err] == []
