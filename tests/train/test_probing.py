"""The probe of a training: which statistics it reads, how it is stored, and what it predicts for unseen videos."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch

from raypipe.config import OptimizerConfig
from raypipe.errors import CommitError, JobError
from raypipe.jobs.train.classifier.probing import (
    PROBE,
    LabelSpace,
    PooledVideos,
    TrainedProbe,
    check_finite,
    find_probe,
    fit_probe,
)
from raypipe.jobs.train.classifier.video_task import FramesWindow, UnseenLogits, VideoTask, label_tensor
from raypipe.models.classifier import VideoClassifier
from raypipe.models.frame_probe import FrameProbe
from raypipe.storage import Folder
from support.embed_outputs import replace_object
from support.tiny_models import DIM, NAMES, Half
from support.train_loops import CPU, labelled_videos, pooled, probe_of, probed_model

if TYPE_CHECKING:
    from raypipe.jobs.train.inputs import TrainingSamples

NOTHING = cast("TrainingSamples", None)
SPACE = LabelSpace(len(NAMES), multi_label=False)
TRAIN = labelled_videos(30)


@pytest.fixture(scope="module")
def probe() -> TrainedProbe:
    return probe_of(TRAIN, stride=2)


def find(output: Folder) -> TrainedProbe:
    """Return the probe in an output, where it must be found: there are no samples to fit one to."""
    return find_probe(output, NOTHING, embeddings_uri="", space=SPACE, max_frames=16)


def test_a_stored_probe_is_found_as_it_was(folder: Folder, probe: TrainedProbe) -> None:
    assert folder.put_new(PROBE, probe.to_bytes())
    found = find(folder)
    for name in ("features", "loss", "stride"):
        assert getattr(found, name) == getattr(probe, name), name
    assert torch.equal(found.out_of_fold, probe.out_of_fold)
    assert found.weights.keys() == probe.weights.keys()
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in probe.weights.items())


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("features", ["mean", "mean_slope_std"])
def test_a_stored_probe_goes_into_a_model(features: str, stride: int) -> None:
    model = FrameProbe(features, embedding_dim=DIM, num_labels=2)  # type: ignore[arg-type]
    probe = TrainedProbe(features, model.state_dict(), torch.zeros(4, 2), 0.1, stride)  # type: ignore[arg-type]
    found = TrainedProbe.from_bytes(probe.to_bytes())
    assert (found.features, found.loss, found.stride) == (features, 0.1, stride)
    model.load_state_dict(dict(found.weights))


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_corrupt_probe_is_named(tmp_path: Path, probe: TrainedProbe, keep: int) -> None:
    output = Folder(str(tmp_path))
    assert output.put_new(PROBE, probe.to_bytes())
    replace_object(output, PROBE, probe.to_bytes()[:keep])
    assert_corrupt(output)


def test_another_file_of_tensors_is_no_probe(tmp_path: Path) -> None:
    output = Folder(str(tmp_path))
    probed_model(probe_of(TRAIN)).save_pretrained(tmp_path)
    assert output.put_new(PROBE, (tmp_path / "model.safetensors").read_bytes())
    assert_corrupt(output)


def assert_corrupt(output: Folder) -> None:
    with pytest.raises(CommitError) as caught:
        find(output)
    assert caught.value.key == output.child(PROBE)
    assert output.child(PROBE) in str(caught.value)
    assert str(caught.value).isprintable()


def rising(count: int, *, slope: float) -> list[Half]:
    """Return videos of label 0 whose first dimension rises with time, and of label 1 in which it falls."""
    random = np.random.default_rng(0)
    videos = []
    for number in range(count):
        video = random.standard_normal((6, DIM))
        video[:, 0] += slope * (-1) ** number * np.linspace(-1, 1, 6)
        videos.append(video.astype(np.float16))
    return videos


def test_slopes_that_mislead_on_validation_videos_are_not_read() -> None:
    labels = [number % 2 for number in range(60)]
    space, videos = LabelSpace(2, multi_label=False), rising(60, slope=3.0)
    found = fit_probe(pooled(videos, labels), space, validation=pooled(videos, [1 - label for label in labels]))
    assert found.features == "mean"


def test_few_videos_are_fitted_again_with_the_validation_videos() -> None:
    labels = [number % 2 for number in range(60)]
    space, videos = LabelSpace(2, multi_label=False), pooled(rising(60, slope=3.0), labels)
    once, again = fit_probe(videos, space), fit_probe(videos, space, validation=videos)
    assert once.refitted is None
    assert again.refitted is not None
    assert again.refitted.keys() == again.weights.keys()
    assert torch.equal(again.weights["linear.weight"], once.weights["linear.weight"])
    assert not torch.equal(again.refitted["linear.weight"], once.weights["linear.weight"])
    restored = TrainedProbe.from_bytes(again.to_bytes())
    assert restored.refitted is not None
    assert all(torch.equal(restored.refitted[name], tensor) for name, tensor in again.refitted.items())


def test_slopes_are_read_if_they_help() -> None:
    labels = [number % 2 for number in range(60)]
    space = LabelSpace(2, multi_label=False)
    helps, noise = (fit_probe(pooled(rising(60, slope=slope), labels), space) for slope in (3.0, 0.0))
    assert (helps.features, noise.features) == ("mean_slope_std", "mean")
    assert (helps.out_of_fold.argmax(dim=1) == torch.tensor(labels)).float().mean() > 0.9
    assert helps.loss == pytest.approx(float(space.losses(torch.tensor(labels))(helps.out_of_fold).mean()))
    assert noise.loss == pytest.approx(np.log(2), abs=0.1)
    assert len(helps.weights["mean"]) == 3 * len(noise.weights["mean"]) == 3 * DIM


def test_one_video_is_enough_for_a_probe() -> None:
    found = fit_probe(pooled(TRAIN[:1], [2]), SPACE)
    assert found.features == "mean"
    assert found.loss == pytest.approx(np.log(len(NAMES)))  # no other video could tell


def test_several_labels_are_fitted_and_weighed() -> None:
    labels = torch.eye(len(NAMES))[torch.arange(30) % len(NAMES)]
    labels[:, 0] = 1  # two labels for most videos
    videos = PooledVideos(pooled(TRAIN, [0] * 30).statistics, labels)
    plain = fit_probe(videos, LabelSpace(len(NAMES), multi_label=True))
    right = (plain.out_of_fold > 0) == labels.bool()
    assert right.float().mean() > 0.9
    weighed = fit_probe(videos, LabelSpace(len(NAMES), multi_label=True, class_weights=(1.0, 30.0, 1.0)))
    assert weighed.weights["linear.bias"][1] > plain.weights["linear.bias"][1]


def test_videos_that_are_not_finite_are_named() -> None:
    videos = [*TRAIN[:3], np.full((2, DIM), np.inf, np.float16), *TRAIN[3:5], np.full((1, DIM), np.nan, np.float16)]
    samples = pa.table({"video_id": [f"{number}.mp4" for number in range(len(videos))]})
    check_finite(pooled(TRAIN[:3], [0] * 3), samples)
    with pytest.raises(JobError) as caught:
        check_finite(pooled(videos, [0] * len(videos)), samples)
    assert (caught.value.key, caught.value.value) == ("video_id", "3.mp4")
    assert "2" in str(caught.value).split()


@pytest.mark.parametrize("stride", [1, 2])
def test_videos_that_the_probe_was_not_fitted_to_are_predicted_by_it(stride: int) -> None:
    probe = probe_of(TRAIN, stride=stride)
    unseen = UnseenLogits(probe.out_of_fold, stride=stride, loss=probe.loss)
    model = probed_model(probe)
    task = VideoTask(model, OptimizerConfig(), device=CPU, unseen=unseen)
    numbers = [3, 8, 0, 29, 14]
    window = FramesWindow(
        index=numbers, targets=[np.array([at % 3]) for at in numbers], frames=[TRAIN[at] for at in numbers]
    )
    batch = task.batch(window, np.arange(len(numbers)))
    assert batch.index.tolist() == numbers
    assert isinstance(model, VideoClassifier)
    found, itself = unseen.of(batch, model.probe), model.probe(batch.frames, batch.mask)
    for row, number in enumerate(numbers):
        is_stored = number % stride == 0
        expected = probe.out_of_fold[number // stride] if is_stored else itself[row]
        assert torch.equal(found[row], expected)
        assert is_stored != torch.equal(found[row], itself[row])


def test_gpt2_learns_next_to_unseen_logits_and_is_measured_next_to_the_probe(probe: TrainedProbe) -> None:
    model = probed_model(probe)
    unseen = UnseenLogits(probe.out_of_fold, stride=2, loss=probe.loss)
    task = VideoTask(model, OptimizerConfig(frame_dropout=0.9, label_smoothing=0.0), device=CPU, unseen=unseen)
    window = FramesWindow(index=[4, 10], targets=[np.array([1]), np.array([1])], frames=[TRAIN[4], TRAIN[10]])
    batch = task.batch(window, np.arange(2))
    learned, measured = (task.run(model, batch, learning=learning)[1] for learning in (True, False))
    assert learned is not None
    assert measured is not None
    assert torch.equal(learned, probe.out_of_fold[[2, 5]])  # the untrained GPT-2 adds 0
    assert torch.equal(measured, model.probe(batch.frames, batch.mask))


@pytest.mark.parametrize(("multi_label", "expected"), [(False, [1, -1]), (True, [[0, 1, 0], [0, 0, 0]])])
def test_a_video_without_a_label_has_none(*, multi_label: bool, expected: list[Any]) -> None:
    targets = [np.array(numbers, dtype=np.int64) for numbers in ([1], [])]
    assert label_tensor(targets, 3, multi_label=multi_label).tolist() == expected
