"""The compress job of a classifier on a real Ray: its output is a model that classify loads without any option."""

from pathlib import Path

import pytest

import raypipe
from raypipe.jobs.train.checkpoints import put_model
from raypipe.models.classifier import VideoClassifier
from raypipe.storage import Folder
from support.folders import keys
from support.tiny_models import tiny_classifier
from support.train_runs import DIM, LABELS, embed_all, video_ids


@pytest.mark.timeout(300)
def test_a_classifier_is_compressed_and_classifies(ray_address: str, tmp_path: Path) -> None:
    assert ray_address
    embeddings = embed_all(Folder(str(tmp_path / "embeddings")), video_ids(40))
    put_model(Folder(str(tmp_path / "model")), tiny_classifier(names=LABELS, embedding_dim=DIM), metrics={})
    settings = {"labels_from": "folder", "max_accuracy_loss": 0.9, "min_speedup": 1.0, "use_gpu": False}
    given = {"embeddings": embeddings.uri, "distill": {"epochs": 1}, "blocks": [1], **settings}
    result = raypipe.compress(tmp_path / "model", tmp_path / "small", **given)
    assert result.is_new
    assert result.record.num_labelled == 40
    assert [one.num_blocks for one in result.record.candidates] == [2, 2, 1, 1]
    assert keys(Folder(str(tmp_path / "small")), "model/") == [
        f"model/{name}" for name in ("complete.json", "config.json", "model.safetensors")
    ]
    assert "<html" in Path(result.report).read_text()
    model = VideoClassifier.from_pretrained(tmp_path / "small" / "model")
    assert model.config.int8 == result.record.kept_candidate.int8
    classified = raypipe.classify(embeddings.uri, tmp_path / "small", tmp_path / "labels")
    assert classified.videos == 40
    assert not raypipe.compress(tmp_path / "model", tmp_path / "small", **given).is_new
