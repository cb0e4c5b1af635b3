"""The loop without Ray: it resumes exactly, and several workers compute what one would."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raypipe.config import OptimizerConfig
from raypipe.errors import JobError
from raypipe.jobs.train.checkpoints import Checkpoints, put_model
from raypipe.jobs.train.classifier.probing import TrainedProbe
from raypipe.jobs.train.classifier.video_task import FramesWindow, VideoTask
from raypipe.jobs.train.loop import Loop
from raypipe.jobs.train.run_spec import NetworkSpec, build
from raypipe.models.classifier import VideoClassifier, pad_frames
from raypipe.models.classifier_files import read_model
from raypipe.models.gpt2 import freeze
from raypipe.storage import Folder
from support import TESTS
from support.tiny_models import NAMES, Half
from support.train_loops import (
    CPU,
    copy_weights,
    labelled_videos,
    make_loop,
    make_model,
    probe_of,
    probed_model,
    settings_of,
    shaken,
    untimed,
)

TRAIN, VALIDATION = labelled_videos(30), labelled_videos(12, seed=1)
REGULAR: Mapping[str, Any] = {"frame_dropout": 0.3, "label_smoothing": 0.1, "accumulate": 2, "batch_size": 3}
EVERY_STEP = 1e-12


class Killed(BaseException):
    """Ends a worker at an arbitrary point."""


def kill_at_epoch(epoch: int) -> Callable[[str, Mapping[str, Any]], None]:
    """Return a ``notify`` that kills the worker after this epoch."""

    def notify(kind: str, about: Mapping[str, Any]) -> None:
        if kind == "epoch" and about["metrics"].epoch == epoch:
            raise Killed

    return notify


def watch(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, tuple[int, ...]]]:
    """Record the epoch and the sample numbers of every batch that a loop learns from."""
    fed: list[tuple[int, tuple[int, ...]]] = []
    feed = loop.task.batch

    def batch(window: FramesWindow, positions: Any) -> Any:  # noqa: ANN401 - passed through
        if loop.model.training:
            fed.append((loop.state.epoch, tuple(window.index[at] for at in positions)))
        return feed(window, positions)

    monkeypatch.setattr(loop.task, "batch", batch)
    return fed


@cache
def some_probe() -> TrainedProbe:
    """Return a probe that is fitted to half of the training videos."""
    return probe_of(TRAIN, stride=2)


def begin(folder: Path, *, kind: str = "gpt2", minutes: float = EVERY_STEP, cache_bytes: int = 10**6) -> Loop:
    """Return a loop that trains a masked-frame model, or a GPT-2, alone or next to a probe."""
    settings = settings_of(len(TRAIN), len(VALIDATION), minutes=minutes, **REGULAR)
    probe = some_probe() if kind == "probe" else None
    model = probed_model(probe, dropout=0.2) if probe else make_model(classifies=kind == "gpt2", dropout=0.2)
    videos = {"train": TRAIN, "validation": VALIDATION}
    return make_loop(settings, folder, **videos, model=model, probe=probe, cache_bytes=cache_bytes, rows=2)


def go_on(folder: Path, **options: Any) -> Loop:  # noqa: ANN401 - passed on
    """Return a new loop that resumes from the folder, like a restarted worker."""
    torch.manual_seed(12345)  # the result must not depend on earlier random numbers
    loop = begin(folder, **options)
    found = loop._checkpoints.latest()
    assert found is not None
    loop.resume(found)
    return loop


@pytest.mark.parametrize("cache_bytes", [10**6, 300], ids=["cached", "streamed"])
@pytest.mark.parametrize("kind", ["gpt2", "masked_frame", "probe"])
def test_a_training_that_is_cut_off_at_any_step_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, cache_bytes: int, kind: str
) -> None:
    options: dict[str, Any] = {"cache_bytes": cache_bytes, "kind": kind}
    whole = begin(tmp_path / "whole", **options)
    fed = watch(whole, monkeypatch)
    whole.standardise()
    state = whole.run()
    assert state.ended == "finished"
    assert_each_once_an_epoch(fed, epochs=3)
    steps, per_epoch, probes = state.step, state.step // 3, int(kind == "probe")
    # There is one checkpoint per step, and one after each epoch. A probe is epoch 0.
    for number in (0, *(probes + after for after in (0, per_epoch - 1, per_epoch, per_epoch + 2, steps + 1))):
        found = whole._checkpoints.read(number)
        assert found is not None
        assert found.state["step"] == number + 1 - found.state["epoch"] - probes
        assert len(found.state["history"]) == found.state["epoch"] + probes
        again = begin(tmp_path / f"cut-{number}", minutes=1e9, **options)
        torch.manual_seed(12345)  # the result must not depend on earlier random numbers
        again.resume(found)
        rest = watch(again, monkeypatch)
        ended = again.run()
        assert untimed(ended.history) == [pytest.approx(epoch, rel=0, abs=1e-6) for epoch in untimed(state.history)]
        assert (ended.step, ended.best_epoch, ended.ended) == (steps, state.best_epoch, "finished")
        assert rest == fed[len(fed) - len(rest) :]
        before = [numbers for epoch, numbers in fed[: len(fed) - len(rest)] if epoch == found.state["epoch"]]
        assert np.flatnonzero(found.seen).tolist() == sorted(number for batch in before for number in batch)
        for name, tensor in whole.model.state_dict().items():
            torch.testing.assert_close(again.model.state_dict()[name], tensor, rtol=0, atol=1e-6)


def assert_each_once_an_epoch(fed: list[tuple[int, tuple[int, ...]]], *, epochs: int) -> None:
    for epoch in range(epochs):
        numbers = sorted(number for at, batch in fed if at == epoch for number in batch)
        assert numbers == list(range(len(TRAIN)))


@pytest.mark.parametrize(("kind", "epoch"), [("gpt2", 1), ("gpt2", 3), ("probe", 0)])
def test_a_training_interrupted_between_epochs_resumes(tmp_path: Path, kind: str, epoch: int) -> None:
    whole = begin(tmp_path / "whole", minutes=1e9, kind=kind)
    whole.standardise()
    expected = whole.run()
    first = begin(tmp_path / "cut", minutes=1e9, kind=kind)
    first._notify = kill_at_epoch(epoch)
    first.standardise()
    with pytest.raises(Killed):
        first.run()
    again = go_on(tmp_path / "cut", minutes=1e9, kind=kind)
    assert again.state.epoch == epoch
    found = again.run()
    assert untimed(found.history) == [pytest.approx(one, rel=0, abs=1e-6) for one in untimed(expected.history)]
    assert found.best_epoch == expected.best_epoch


def test_a_training_learns(tmp_path: Path) -> None:
    loop = begin(tmp_path)
    loop.standardise()
    history = loop.run().history
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["accuracy"] > 1 / len(NAMES)


def test_frames_are_standardised_by_those_of_training(tmp_path: Path) -> None:
    loop = begin(tmp_path, cache_bytes=200)
    loop.standardise()
    frames = np.concatenate(TRAIN).astype(np.float64)
    np.testing.assert_allclose(loop.model.encoder.mean.numpy(), frames.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(loop.model.encoder.std.numpy(), frames.std(axis=0), atol=1e-5)


def test_numbers_that_never_change_do_not_divide_by_nothing(tmp_path: Path) -> None:
    still = [np.full((2, 8), 3, np.float16) for _ in range(4)]
    loop = make_loop(settings_of(4, 0), tmp_path, train=still)
    loop.standardise()
    assert (loop.model.encoder.std > 0).all()
    assert loop.run().ended == "finished"


def gradients_of_a_step(loop: Loop) -> dict[str, torch.Tensor]:
    """Return the gradients that the optimizer gets in an epoch of one step."""
    found: list[dict[str, torch.Tensor]] = []

    def keep(*_: Any) -> None:  # noqa: ANN401 - torch's own signature
        grads = {name: p.grad.clone() for name, p in loop.model.named_parameters() if p.grad is not None}
        found.append(grads)

    loop._optimizer.register_step_pre_hook(keep)
    loop._run_epoch()
    assert len(found) == 1
    return found[0]


def test_batches_of_a_step_are_one_batch(tmp_path: Path) -> None:
    videos = labelled_videos(11)
    at_once, in_three = (
        gradients_of_a_step(make_loop(settings, tmp_path, train=videos, model=shaken(make_model())))
        for settings in (
            settings_of(11, 0, batch_size=11, max_grad_norm=1e9),
            settings_of(11, 0, batch_size=4, accumulate=3, max_grad_norm=1e9),
        )
    )
    assert at_once.keys() == in_three.keys()
    for name, expected in at_once.items():
        torch.testing.assert_close(in_three[name], expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_mean_loss(tmp_path: Path) -> None:
    videos, model = labelled_videos(7), shaken(make_model())
    loop = make_loop(settings_of(7, 0, batch_size=7, max_grad_norm=1e9), tmp_path, train=videos, model=model)
    padded = pad_frames(videos, max_frames=16)
    model(padded.frames, padded.mask, labels=torch.arange(7) % len(NAMES)).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    found = gradients_of_a_step(loop)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


def test_a_gradient_is_cut_to_its_norm(tmp_path: Path) -> None:
    settings = settings_of(7, 0, batch_size=7, max_grad_norm=1e-3)
    found = gradients_of_a_step(make_loop(settings, tmp_path, train=labelled_videos(7), model=shaken(make_model())))
    norm = torch.stack([gradient.norm() for gradient in found.values()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def broken_videos() -> list[Half]:
    videos = labelled_videos(8)
    videos[3] = np.full((2, 8), np.inf, np.float16)
    return videos


def test_embeddings_that_are_not_finite_end_the_training(tmp_path: Path) -> None:
    loop = make_loop(settings_of(8, 4), tmp_path, train=broken_videos(), validation=VALIDATION[:4])
    loop.standardise()
    state = loop.run()
    assert (state.ended, state.epoch, state.step, state.history) == ("not_finite", 0, 0, [])
    assert re.findall(r"\b\d+\b", state.message) == ["1", "1"]  # the epoch and the step
    assert "optimizer.learning_rate" in state.message


def test_held_out_embeddings_that_are_not_finite_end_the_training(tmp_path: Path) -> None:
    loop = make_loop(settings_of(8, 8), tmp_path, train=labelled_videos(8), validation=broken_videos())
    loop.standardise()
    assert (loop.run().ended, loop.state.history) == ("not_finite", [])


def test_a_nan_loss_keeps_the_best_checkpoint(tmp_path: Path) -> None:
    def too_fast(kind: str, _: Mapping[str, Any]) -> None:
        if kind == "epoch":
            object.__setattr__(loop._settings, "learning_rate", 1e30)

    settings = settings_of(len(TRAIN), len(VALIDATION), minutes=EVERY_STEP, keep=1, warmup_fraction=0.0)
    loop = make_loop(settings, tmp_path, train=TRAIN, validation=VALIDATION, notify=too_fast)
    loop.standardise()
    state = loop.run()
    assert state.ended == "not_finite"
    assert len(state.history) == 1
    loop.load_best()
    assert all(tensor.isfinite().all() for tensor in loop.model.state_dict().values())
    assert loop.evaluate().metrics()["validation_loss"] == pytest.approx(state.history[0]["validation_loss"], abs=1e-6)
    number = state.best_checkpoint
    assert number is not None
    kept = Checkpoints(Folder(str(tmp_path))).read(number)
    assert kept is not None
    assert kept.state["epoch"] == 1


def values_of(loop: Loop, monkeypatch: pytest.MonkeyPatch, losses: list[float], accuracies: list[float]) -> None:
    """Make the epochs of a loop measure these values."""
    measured = zip(losses, accuracies, strict=True)

    class Told:
        def __init__(self, loss: float, accuracy: float) -> None:
            self.metrics = lambda: {"validation_loss": loss, "accuracy": accuracy, "macro_f1": 1 - accuracy}

    monkeypatch.setattr(loop, "evaluate", lambda: Told(*next(measured)))


@pytest.mark.parametrize(
    ("select_by", "best"),
    [("loss", 3), ("accuracy", 2), ("macro_f1", 1)],
)
def test_the_best_epoch_is_by_the_chosen_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select_by: str, best: int
) -> None:
    weights: dict[int, dict[str, torch.Tensor]] = {}

    def notify(kind: str, about: Mapping[str, Any]) -> None:
        if kind == "epoch":
            weights[about["metrics"].epoch] = copy_weights(loop.model)

    settings = settings_of(12, 12, epochs=4, keep=1, select_by=select_by)
    loop = make_loop(settings, tmp_path, train=TRAIN[:12], validation=VALIDATION, notify=notify)
    values_of(loop, monkeypatch, [3.0, 2.0, 1.0, 1.5], [0.2, 0.8, 0.4, 0.8 - 1e-9])
    assert loop.run().best_epoch == best
    loop.load_best()
    assert all(torch.equal(tensor, weights[best][name]) for name, tensor in loop.model.state_dict().items())
    assert any(not torch.equal(tensor, weights[4][name]) for name, tensor in loop.model.state_dict().items())


def test_of_equal_accuracy_the_lower_loss_is_better_and_then_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_loop(settings_of(12, 12, epochs=4), tmp_path, train=TRAIN[:12], validation=VALIDATION)
    values_of(loop, monkeypatch, [2.0, 1.0, 1.0, 1.5], [0.5, 0.5, 0.5, 0.5])
    assert loop.run().best_epoch == 2


def test_a_training_stops_early_without_a_better_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(12, 12, epochs=9, early_stop_epochs=2, select_by="loss")
    loop = make_loop(settings, tmp_path, train=TRAIN[:12], validation=VALIDATION)
    values_of(loop, monkeypatch, [3.0, 4.0, 2.0, 2.0, 2.5], [0.5] * 5)
    state = loop.run()
    assert (state.ended, state.epoch, state.best_epoch) == ("stopped_early", 5, 3)
    again = make_loop(settings, tmp_path, train=TRAIN[:12], validation=VALIDATION)
    found = again._checkpoints.latest()
    assert found is not None
    again.resume(found)
    assert (again.run().ended, again.state.epoch) == ("stopped_early", 5)


def test_without_held_out_videos_the_last_epoch_is_kept_and_none_stops_early(tmp_path: Path) -> None:
    loop = make_loop(settings_of(12, 0, epochs=5, early_stop_epochs=1, keep=1), tmp_path, train=TRAIN[:12])
    state = loop.run()
    assert (state.ended, state.best_epoch) == ("finished", 5)
    assert state.history[0]["validation_loss"] is None
    assert state.history[0]["accuracy"] is None


def test_a_best_checkpoint_that_is_damaged_is_named(tmp_path: Path) -> None:
    loop = make_loop(settings_of(12, 0), tmp_path, train=TRAIN[:12])
    number = loop.run().best_checkpoint
    (tmp_path / "checkpoints" / f"{number:06d}" / "model.safetensors").write_bytes(b"")
    with pytest.raises(JobError) as caught:
        loop.load_best()
    assert (caught.value.key, caught.value.value) == ("best_checkpoint", number)


def test_classifying_starts_from_a_masked_frame_model(tmp_path: Path) -> None:
    settings = settings_of(12, 6)
    first = make_loop(
        settings, tmp_path, train=TRAIN[:12], validation=VALIDATION[:6], model=make_model(classifies=False)
    )
    first.standardise()
    history = first.run().history
    assert history[0]["validation_loss"] > 0
    assert history[0]["accuracy"] is None
    first.load_best()
    put_model(Folder(str(tmp_path)), first.model, metrics={})
    files = read_model(Folder(str(tmp_path)))
    template = make_model()
    from raypipe.config import ClassifierConfig  # noqa: PLC0415
    from raypipe.models.gpt2 import Gpt2  # noqa: PLC0415

    spec = NetworkSpec(template.config, ClassifierConfig(), objective="classify", gpt2=Gpt2({}), init_from=files)
    model = build(spec, seed=1)
    assert isinstance(model, VideoClassifier)
    for name, tensor in first.model.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], tensor), name
    second = make_loop(settings, tmp_path / "second", train=TRAIN[:12], validation=VALIDATION[:6], model=model)
    assert second.run().ended == "finished"
    assert torch.equal(model.encoder.hidden_frame, first.model.encoder.hidden_frame)


def test_a_frozen_gpt2_stays_as_it_was(tmp_path: Path) -> None:
    model = make_model()
    freeze(model, "gpt2")
    before = copy_weights(model)
    make_loop(settings_of(12, 6), tmp_path, train=TRAIN[:12], validation=VALIDATION[:6], model=model).run()
    for name, tensor in model.state_dict().items():
        is_frozen = "gpt2." in name or name.endswith(("hidden_frame", "mean", "std"))
        assert torch.equal(tensor, before[name]) == is_frozen, name


def test_bfloat16_runs_and_is_not_float32(tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        settings = settings_of(12, 6, precision=precision)
        loop = make_loop(settings, tmp_path / precision, train=TRAIN[:12], validation=VALIDATION[:6])
        loop.standardise()
        state = loop.run()
        assert state.ended == "finished"
        assert {p.dtype for p in loop.model.parameters()} == {torch.float32}
        losses.append([epoch["validation_loss"] for epoch in state.history])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_classes_are_weighed_in_training_alone(tmp_path: Path) -> None:
    first = []
    for weights in (None, [5.0, 0.1, 0.1]):
        settings = settings_of(12, 6, batch_size=12, epochs=1, class_weights=weights, learning_rate=1e-12)
        loop = make_loop(settings, tmp_path / str(weights), train=TRAIN[:12], validation=VALIDATION[:6])
        first.append(loop.run().history[0])
    assert first[0]["train_loss"] != pytest.approx(first[1]["train_loss"], abs=0.01)
    assert first[0]["validation_loss"] == pytest.approx(first[1]["validation_loss"], abs=1e-6)


def test_the_rate_of_an_epoch_is_that_of_its_last_step(tmp_path: Path) -> None:
    settings = settings_of(8, 0, epochs=2, learning_rate=0.5, warmup_fraction=0.5, batch_size=4)
    loop = make_loop(settings, tmp_path, train=TRAIN[:8])
    rates: list[float] = []
    loop._optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    history = loop.run().history
    assert [epoch["step"] for epoch in history] == [2, 4]
    assert [epoch["learning_rate"] for epoch in history] == rates[1::2]
    assert rates == pytest.approx([0.125, 0.375, 0.5 * 0.853553, 0.5 * 0.146447], abs=1e-5)


def test_a_worker_without_samples_makes_a_batch_of_nothing() -> None:
    for classifies, multi_label in ((True, False), (True, True), (False, False)):
        model = make_model(classifies=classifies, multi_label=multi_label)
        task = VideoTask(model, OptimizerConfig(), device=CPU)
        batch = task.batch(FramesWindow(), np.zeros(0, np.int64))
        assert batch.frames.shape == (1, 1, 8)
        assert (batch.labels is None) == (not classifies)


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the results of two workers in separate processes, and of a single one: ``support/train_team.py``."""
    folder = tmp_path_factory.mktemp("team")
    done = subprocess.run(
        [sys.executable, "-m", "support.train_team", str(folder)],
        cwd=TESTS,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.parametrize("case", ["unequal", "empty", "masked_frame", "probe", "next_video"])
def test_two_workers_have_the_gradient_of_one_with_all_samples(of_two: dict[str, Any], case: str) -> None:
    alone, first, second = of_two[f"gradient {case}"]
    assert first.keys() == second.keys() == alone.keys()
    for name, expected in alone.items():
        np.testing.assert_allclose(first[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_two_workers_rank_as_one_would(of_two: dict[str, Any]) -> None:
    first, second, alone = of_two["scores next_video"]
    assert first == second == pytest.approx(alone, abs=1e-9)
    assert 0 < first["coverage_at_10"] <= 1


def test_two_workers_compare_with_the_probe_as_one_would(of_two: dict[str, Any]) -> None:
    first, second, alone = of_two["scores probe"]
    assert first == second == pytest.approx(alone, abs=1e-6)
    assert first["probe_gain"] != 0 < first["probe_gain_error"]


@pytest.mark.parametrize("case", ["cached", "streamed", "mixed", "idle"])
def test_two_workers_see_every_sample_once_an_epoch(of_two: dict[str, Any], case: str) -> None:
    for epoch, numbers in enumerate(of_two[f"seen {case}"]):
        assert sorted(numbers) == list(range(29)), epoch
    assert len(of_two[f"seen {case}"]) == 3


@pytest.mark.parametrize("case", ["cached", "streamed", "mixed", "idle"])
def test_two_workers_measure_what_one_would(of_two: dict[str, Any], case: str) -> None:
    measured, alone = of_two[f"measured {case}"]
    assert measured == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("case", ["cached", "streamed", "mixed", "idle"])
def test_two_workers_end_with_the_same_model(of_two: dict[str, Any], case: str) -> None:
    first, second = of_two[f"digest {case}"]
    assert first == second


def test_two_workers_resume_exactly(of_two: dict[str, Any]) -> None:
    whole, resumed = of_two["resumed"]
    assert resumed == [pytest.approx(epoch, rel=0, abs=1e-6) for epoch in whole]
