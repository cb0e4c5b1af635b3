"""The compress job of a classifier on a real Ray: its output is a model that classify loads without any option."""

from pathlib import Path
from typing import Any

import pytest

import raypipe
from raypipe.jobs.train.checkpoints import put_model
from raypipe.models.classifier import VideoClassifier
from raypipe.results import JobResult
from raypipe.storage import Folder
from support.folders import keys
from support.tiny_models import tiny_classifier
from support.train_runs import DIM, LABELS, embed_all, video_ids

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def place(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with embeddings and a model."""
    assert ray_address
    place = tmp_path_factory.mktemp("compress")
    embed_all(Folder(str(place / "embeddings")), video_ids(40))
    put_model(Folder(str(place / "model")), tiny_classifier(names=LABELS, embedding_dim=DIM), metrics={})
    return place


def compress(place: Path) -> JobResult:
    given: dict[str, Any] = {"embeddings": place / "embeddings", "labels_from": "folder", "distill": {"epochs": 1}}
    given |= {"blocks": [1], "max_accuracy_loss": 0.9, "min_speedup": 1.0, "use_gpu": False}
    return raypipe.compress(place / "model", place / "small", **given)


@pytest.fixture(scope="module")
def compressed(place: Path) -> JobResult:
    return compress(place)


@pytest.fixture(scope="module")
def classified(place: Path, compressed: JobResult) -> JobResult:
    assert compressed.is_new
    return raypipe.classify(place / "embeddings", place / "small", place / "labels")


def test_the_output_is_a_model_with_a_report(compressed: JobResult, place: Path) -> None:
    assert compressed.record.num_labelled == 40
    assert [one.num_blocks for one in compressed.record.candidates] == [2, 2, 1, 1]
    assert keys(Folder(str(place / "small")), "model/") == [
        f"model/{name}" for name in ("complete.json", "config.json", "model.safetensors")
    ]
    assert "<html" in Path(compressed.report).read_text()
    model = VideoClassifier.from_pretrained(place / "small" / "model")
    assert model.config.int8 == compressed.record.kept_candidate.int8


def test_classify_loads_it(classified: JobResult) -> None:
    assert (classified.videos, classified.ok) == (40, 40)


def test_a_second_run_has_nothing_to_do(compressed: JobResult, place: Path) -> None:
    again = compress(place)
    assert (again.is_new, again.record) == (False, compressed.record)
