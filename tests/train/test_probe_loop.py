"""The loop with a probe: it is epoch 0, and GPT-2 is kept only if it helps on the validation videos."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raypipe.evaluation.calibration import fit_temperature
from raypipe.jobs.train import worker
from raypipe.jobs.train.classifier.probing import TrainedProbe
from raypipe.jobs.train.loop import Loop
from raypipe.models.classifier import VideoClassifier, pad_frames
from raypipe.models.classifier_files import build_classifier, read_model
from raypipe.models.frame_probe import FrameProbe
from raypipe.storage import Folder
from support.tiny_models import DIM, NAMES, Half
from support.train_loops import copy_weights, labelled_videos, make_loop, probe_of, settings_of

TRAIN, VALIDATION = labelled_videos(30, noise=2.0), labelled_videos(24, seed=1, noise=2.0)
PRECISIONS = ["float32", "bfloat16"]


@pytest.fixture(scope="module")
def probe() -> TrainedProbe:
    return probe_of(TRAIN)


def logits_of(probe: TrainedProbe, videos: Sequence[Half]) -> torch.Tensor:
    """Return the logits of the probe alone."""
    model = FrameProbe(probe.features, embedding_dim=DIM, num_labels=len(NAMES))
    model.load_state_dict(dict(probe.weights))
    padded = pad_frames(videos, max_frames=16)
    return model(padded.frames, padded.mask)


def finish(
    loop: Loop, output: Folder, *, refitted: Mapping[str, torch.Tensor] | None = None
) -> tuple[VideoClassifier, Mapping[str, Any]]:
    """Store the model of a loop that has ended; return the stored model and the last event."""
    events: list[tuple[str, Mapping[str, Any]]] = []
    settings: Any = SimpleNamespace(metrics=None, model_files={}, output_uri=output.uri, peer=None, refitted=refitted)
    worker._finish(loop, loop._workers, lambda *event: events.append(event), settings, make_loop=lambda: loop)
    ((kind, about),) = events
    assert kind == "ended"
    return build_classifier(read_model(output)), about


def raw_logits(model: VideoClassifier, videos: Sequence[Half]) -> torch.Tensor:
    padded = pad_frames(videos, max_frames=16)
    with torch.no_grad():
        logits: torch.Tensor = model(padded.frames, padded.mask).logits
    return logits


@pytest.mark.parametrize("precision", PRECISIONS)
def test_epoch_0_is_the_probe(tmp_path: Path, probe: TrainedProbe, precision: str) -> None:
    settings = settings_of(len(TRAIN), len(VALIDATION), epochs=1, precision=precision, select_by="loss")
    loop = make_loop(settings, tmp_path, train=TRAIN, validation=VALIDATION, probe=probe)
    loop.standardise()
    first, second = loop.run().history
    labels, logits = torch.arange(len(VALIDATION)) % len(NAMES), logits_of(probe, VALIDATION)
    assert (first["epoch"], first["step"], second["epoch"]) == (0, 0, 1)
    assert first["train_loss"] == probe.loss
    assert first["validation_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-6)
    assert first["accuracy"] == pytest.approx(float((logits.argmax(dim=1) == labels).float().mean()))
    assert (first["probe_gain"], first["probe_gain_error"]) == (0, 0)
    assert second["probe_gain"] == pytest.approx(first["validation_loss"] - second["validation_loss"], abs=1e-6)
    assert second["probe_gain_error"] > 0


@pytest.mark.parametrize("num_validation", [0, len(VALIDATION)])
def test_a_probe_alone_takes_no_step(tmp_path: Path, probe: TrainedProbe, num_validation: int) -> None:
    settings = replace(settings_of(len(TRAIN), num_validation), stop_epoch=0)
    loop = make_loop(settings, tmp_path, train=TRAIN, validation=VALIDATION[:num_validation], probe=probe)
    loop.standardise()
    state = loop.run()
    assert (state.ended, state.step, state.best_epoch, len(state.history)) == ("finished", 0, 0, 1)
    model, about = finish(loop, Folder(str(tmp_path)))
    assert not model.config.has_gpt2
    assert torch.equal(raw_logits(model, VALIDATION), logits_of(probe, VALIDATION))
    assert sum(len(part["index"]) for part in about["predictions"]) == num_validation
    assert (model.config.temperature == 1) == (num_validation == 0)


def test_the_refitted_probe_is_stored_but_not_measured(tmp_path: Path, probe: TrainedProbe) -> None:
    settings = replace(settings_of(len(TRAIN), len(VALIDATION)), stop_epoch=0)
    loop = make_loop(settings, tmp_path, train=TRAIN, validation=VALIDATION, probe=probe)
    loop.run()
    other = probe_of(VALIDATION)
    model, about = finish(loop, Folder(str(tmp_path)), refitted=other.weights)
    assert torch.equal(raw_logits(model, VALIDATION), logits_of(other, VALIDATION))
    measured = (logits_of(probe, VALIDATION) / model.config.temperature).softmax(dim=1)
    for part in about["predictions"]:
        np.testing.assert_allclose(part["probabilities"], measured[part["index"]], atol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gpt2_that_does_not_help_is_left_out(tmp_path: Path, precision: str) -> None:
    train, validation = (labelled_videos(count, seed=count, noise=50) for count in (30, 24))  # only noise
    probe = probe_of(train)
    settings = settings_of(30, 24, epochs=9, early_stop_epochs=4, precision=precision, select_by="accuracy")
    loop = make_loop(settings, tmp_path, train=train, validation=validation, probe=probe)
    loop.standardise()
    state = loop.run()
    assert loop.model.head.weight.any()  # GPT-2 has learned something
    assert (state.ended, state.epoch, state.best_epoch) == ("stopped_early", 4, 0)
    model, about = finish(loop, Folder(str(tmp_path)))
    logits = logits_of(probe, validation)
    assert not model.config.has_gpt2
    assert model.config.metrics["epoch"] == 0
    assert torch.equal(raw_logits(model, validation), logits)
    truth = np.eye(len(NAMES), dtype=bool)[np.arange(24) % len(NAMES)]
    temperature = fit_temperature(logits.numpy(), truth, multi_label=False)
    assert model.config.temperature == pytest.approx(temperature, abs=1e-3)
    for part in about["predictions"]:
        expected = (logits[part["index"]] / model.config.temperature).softmax(dim=1)
        np.testing.assert_allclose(part["probabilities"], expected, atol=1e-5)
        assert [target.tolist() for target in part["targets"]] == [[at % len(NAMES)] for at in part["index"]]


def moving_videos(count: int, *, seed: int) -> list[Half]:
    """Return videos in which a number rises (label 0), falls (label 1) or stays the same (label 2)."""
    videos = 0.3 * np.random.default_rng(seed).standard_normal((count, 3, DIM))
    for number, video in enumerate(videos):
        video[:, 0] += (1, -1, 0)[number % len(NAMES)] * np.array([-2, 0, 2])
    return [video.astype(np.float16) for video in videos]


def test_a_gpt2_that_helps_is_added_to_the_probe(tmp_path: Path, probe: TrainedProbe) -> None:
    train, validation = moving_videos(60, seed=0), moving_videos(45, seed=1)
    nothing = {"linear.weight": torch.zeros(len(NAMES), DIM), "linear.bias": torch.zeros(len(NAMES))}
    knows_nothing = replace(probe, weights={**probe.weights, **nothing}, out_of_fold=torch.zeros(60, len(NAMES)))
    settings = settings_of(len(train), len(validation), epochs=5, select_by="loss")
    loop = make_loop(settings, tmp_path, train=train, validation=validation, probe=knows_nothing)
    loop.standardise()
    state = loop.run()
    assert state.history[0]["validation_loss"] == pytest.approx(np.log(len(NAMES)))
    best = state.history[state.best_epoch or 0]
    assert best["epoch"] > 0
    assert best["probe_gain"] > best["probe_gain_error"] > 0
    model, _ = finish(loop, Folder(str(tmp_path)))
    assert model.config.has_gpt2
    assert model.config.metrics["epoch"] == best["epoch"]
    labels = torch.arange(len(validation)) % len(NAMES)
    loss = torch.nn.functional.cross_entropy(raw_logits(model, validation), labels)
    assert float(loss) == pytest.approx(best["validation_loss"], abs=1e-5)


def measures(loop: Loop, monkeypatch: pytest.MonkeyPatch, epochs: list[dict[str, float]]) -> None:
    """Make the epochs of a loop measure these values."""
    measured = iter(epochs)

    def evaluate() -> object:
        values = next(measured)
        return SimpleNamespace(metrics=lambda: values)

    monkeypatch.setattr(loop, "evaluate", evaluate)


def epoch(loss: float, *, error: float = 0.1, accuracy: float = 0.5) -> dict[str, float]:
    """Return what an epoch measures next to a probe whose loss is 1."""
    return {"validation_loss": loss, "accuracy": accuracy, "probe_gain": 1 - loss, "probe_gain_error": error}


PROBE = epoch(1.0, error=0.0)
MEASURED: list[tuple[str, list[dict[str, float]], int]] = [
    ("loss", [PROBE, epoch(0.95), epoch(1.2), epoch(0.91)], 0),  # all within a standard error
    ("loss", [PROBE, epoch(0.95), epoch(0.85), epoch(0.89)], 2),
    ("loss", [PROBE, epoch(0.85, error=0.2), epoch(0.89, error=0.1), epoch(0.8, error=0.3)], 2),
    ("accuracy", [PROBE, epoch(0.95, accuracy=0.9), epoch(0.99, accuracy=1), epoch(1.1, accuracy=1)], 0),
    ("accuracy", [PROBE, epoch(0.8, accuracy=0.4), epoch(0.7, accuracy=0.3), epoch(0.95, accuracy=1)], 1),
]


@pytest.mark.parametrize("case", MEASURED)
def test_an_epoch_must_be_better_than_the_probe_by_a_standard_error(
    tmp_path: Path, probe: TrainedProbe, monkeypatch: pytest.MonkeyPatch, case: tuple[str, list[dict[str, float]], int]
) -> None:
    select_by, epochs, best = case
    weights: dict[int, dict[str, torch.Tensor]] = {}

    def notify(kind: str, about: Mapping[str, Any]) -> None:
        if kind == "epoch":
            weights[about["metrics"].epoch] = copy_weights(loop.model)

    settings = settings_of(12, 12, epochs=3, keep=1, select_by=select_by)
    videos = {"train": TRAIN[:12], "validation": VALIDATION[:12]}
    loop = make_loop(settings, tmp_path, **videos, probe=probe, notify=notify)
    measures(loop, monkeypatch, epochs)
    assert loop.run().best_epoch == best
    assert sorted(weights) == [0, 1, 2, 3]
    loop.load_best()
    assert all(torch.equal(tensor, weights[best][name]) for name, tensor in loop.model.state_dict().items())


def test_the_patience_begins_with_the_probe(
    tmp_path: Path, probe: TrainedProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(12, 12, epochs=9, early_stop_epochs=2, select_by="loss")
    loop = make_loop(settings, tmp_path, train=TRAIN[:12], validation=VALIDATION[:12], probe=probe)
    measures(loop, monkeypatch, [PROBE, epoch(1.1), epoch(0.99)])
    state = loop.run()
    assert (state.ended, state.epoch, state.best_epoch) == ("stopped_early", 2, 0)


def test_a_probe_that_is_not_finite_ends_the_training(tmp_path: Path, probe: TrainedProbe) -> None:
    broken = replace(probe, weights={name: tensor * np.nan for name, tensor in probe.weights.items()})
    settings = settings_of(12, 12)
    loop = make_loop(settings, tmp_path, train=TRAIN[:12], validation=VALIDATION[:12], probe=broken)
    state = loop.run()
    assert (state.ended, state.step, state.history) == ("not_finite", 0, [])
