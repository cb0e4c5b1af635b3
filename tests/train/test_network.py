"""The content of a batch, which of its frames are dropped or hidden, and the loss of each video."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raypipe.config import ClassifierConfig, OptimizerConfig
from raypipe.config.train import Objective
from raypipe.errors import WeightsError
from raypipe.jobs.train.checkpoints import put_model
from raypipe.jobs.train.classifier.video_task import FramesBatch, FramesWindow, VideoTask, drop_frames, hide_frames
from raypipe.jobs.train.run_spec import NetworkSpec, build
from raypipe.models.classifier import VideoClassifier, pad_frames
from raypipe.models.classifier_files import ModelFiles, read_model
from raypipe.models.gpt2 import Gpt2, VideoModel
from raypipe.models.pretraining import MaskedFrameModel
from raypipe.storage import Folder
from support.tiny_models import GPT2, NAMES, Half, random_videos, tiny_classifier, tiny_config, tiny_masked_frame
from support.train_loops import labelled_videos, probe_of

CPU = torch.device("cpu")
MASKS = st.tuples(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.floats(0.01, 0.99), st.integers(0, 999))


def mask_of(lengths: list[int]) -> torch.Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


@given(case=MASKS)
def test_dropping_keeps_one_frame_of_every_video_and_adds_none(case: tuple[list[int], float, int]) -> None:
    lengths, fraction, seed = case
    mask = mask_of(lengths)
    torch.manual_seed(seed)
    dropped = drop_frames(mask, fraction)
    assert dropped.dtype == mask.dtype
    assert (dropped <= mask).all()
    assert (dropped.sum(dim=1) >= 1).all()


@given(case=MASKS)
def test_hiding_takes_one_frame_of_every_video_and_no_padding(case: tuple[list[int], float, int]) -> None:
    lengths, fraction, seed = case
    mask = mask_of(lengths)
    torch.manual_seed(seed)
    hidden = hide_frames(mask, fraction)
    assert hidden.dtype == torch.bool
    assert not hidden[mask == 0].any()
    assert (hidden.sum(dim=1) >= 1).all()


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_about_the_fraction_is_dropped_or_hidden(fraction: float) -> None:
    torch.manual_seed(0)
    mask = mask_of([200] * 100)
    assert float(drop_frames(mask, fraction).float().mean()) == pytest.approx(1 - fraction, abs=0.02)
    assert float(hide_frames(mask, fraction).float().mean()) == pytest.approx(fraction, abs=0.02)


def test_every_frame_of_a_short_video_may_be_the_one_that_is_kept_or_hidden() -> None:
    torch.manual_seed(0)
    mask = mask_of([4] * 300)
    for one in (drop_frames(mask, 0.999), hide_frames(mask, 1e-6)):
        assert one.sum(dim=1).eq(1).all()
        assert (one.sum(dim=0) > 40).all()


def batch_of(model: VideoModel, videos: list[Half], targets: list[list[int]]) -> FramesBatch:
    numbers = [np.array(target, dtype=np.int64) for target in targets]
    window = FramesWindow(index=list(range(len(videos))), targets=numbers, frames=videos)
    return VideoTask(model, OptimizerConfig(), device=CPU).batch(window, np.arange(len(videos)))


def test_a_batch_has_the_labels_of_its_videos() -> None:
    videos, model = random_videos([2, 5]), tiny_classifier(max_frames=4)
    batch = batch_of(model, videos, [[2], [0]])
    assert batch.labels is not None
    assert (batch.labels.tolist(), batch.labels.dtype) == ([2, 0], torch.long)
    assert batch.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.frames[0, :2].tolist() == videos[0].tolist()
    several = batch_of(tiny_classifier(multi_label=True), videos, [[0, 2], [1]])
    assert several.labels is not None
    assert several.labels.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert batch_of(model, videos, [[], []]).labels is None


def test_a_loss_weighs_and_smooths_where_it_learns_alone() -> None:
    model = tiny_classifier()
    batch = batch_of(model, random_videos([3, 4]), [[0], [2]])
    assert batch.labels is not None
    weights = torch.tensor([0.5, 1.0, 3.0])
    task = VideoTask(model, OptimizerConfig(frame_dropout=0.0, label_smoothing=0.2), device=CPU, class_weights=weights)
    learned, logits = task.run(model, batch, learning=True)
    measured, _ = task.run(model, batch, learning=False)
    assert logits is not None
    assert not logits.requires_grad
    smoothed = nn.CrossEntropyLoss(weight=weights, label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(learned.detach(), smoothed(logits, batch.labels))
    torch.testing.assert_close(measured.detach(), nn.functional.cross_entropy(logits, batch.labels, reduction="none"))


def test_frames_are_dropped_where_it_learns_alone() -> None:
    model = tiny_classifier()
    batch = batch_of(model, random_videos([9] * 8), [[0]] * 8)
    task = VideoTask(model, OptimizerConfig(frame_dropout=0.5), device=CPU)
    with torch.no_grad():
        first, again = (task.run(model, batch, learning=True)[0] for _ in range(2))
        measured, once_more = (task.run(model, batch, learning=False)[0] for _ in range(2))
    assert not torch.equal(first, again)
    assert torch.equal(measured, once_more)


def test_without_labels_hidden_frames_are_predicted() -> None:
    model = tiny_masked_frame()
    batch = batch_of(model, random_videos([3, 4]), [[], []])
    losses, logits = VideoTask(model, OptimizerConfig(), device=CPU).run(model, batch, learning=True)
    assert logits is None
    assert losses.shape == (2,)
    assert (losses > 0).all()


def spec_of(
    *, objective: Objective = "classify", init_from: ModelFiles | None = None, names: Sequence[str] = ("a", "b")
) -> NetworkSpec:
    config = tiny_config(names=names, dropout=0.2)
    return NetworkSpec(config, ClassifierConfig(), objective=objective, gpt2=Gpt2(GPT2), init_from=init_from)


def test_the_same_seed_builds_the_same_model() -> None:
    first, again, other = (build(spec_of(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_nothing_is_hidden_from_a_classifier() -> None:
    assert isinstance(build(spec_of(), seed=0), VideoClassifier)
    masked = build(spec_of(objective="masked_frame"), seed=0)
    assert isinstance(masked, MaskedFrameModel)
    assert masked.encoder.hidden_frame.requires_grad
    assert not build(spec_of(), seed=0).encoder.hidden_frame.requires_grad


def test_a_model_begins_with_the_encoder_of_another(tmp_path: object) -> None:
    learned = tiny_masked_frame()
    folder = Folder(str(tmp_path))
    put_model(folder, learned, metrics={})
    built = build(spec_of(init_from=read_model(folder)), seed=0).encoder.state_dict()
    expected = learned.encoder.state_dict()
    assert built.keys() == expected.keys()
    assert all(torch.equal(built[name], expected[name]) for name in built)


@pytest.mark.parametrize("reads", ["frames", "changes"])
def test_a_classifier_reads_what_the_model_before_it_read(tmp_path: object, reads: str) -> None:
    folder, probe = Folder(str(tmp_path)), probe_of(labelled_videos(12))
    learned = tiny_classifier(probe="mean", gpt2_reads=reads)
    put_model(folder, learned, metrics={})
    files = read_model(folder)
    for spec in (spec_of(init_from=files), replace(spec_of(init_from=files, names=NAMES), probe=probe)):
        built = build(spec, seed=0)
        assert built.config.gpt2_reads == reads
        assert torch.equal(built.encoder.projection.weight, learned.encoder.projection.weight)
    assert build(spec_of(), seed=0).config.gpt2_reads == "frames"
    assert build(replace(spec_of(names=NAMES), probe=probe), seed=0).config.gpt2_reads == "changes"


def test_gpt2_starts_from_the_probe() -> None:
    videos = labelled_videos(12)
    probe = probe_of(videos)
    built = build(replace(spec_of(names=NAMES), probe=probe), seed=0)
    assert isinstance(built, VideoClassifier)
    assert not any(parameter.requires_grad for parameter in built.probe.parameters())
    padded = pad_frames(videos, max_frames=16)
    assert torch.equal(built(padded.frames, padded.mask).logits, built.probe(padded.frames, padded.mask))
    assert torch.equal(built.probe.linear.weight, probe.weights["linear.weight"])


def test_an_encoder_of_other_sizes_is_refused(tmp_path: object) -> None:
    folder = Folder(str(tmp_path))
    put_model(folder, tiny_classifier(gpt2={**GPT2, "n_embd": 8}), metrics={})
    with pytest.raises(WeightsError) as caught:
        build(spec_of(init_from=read_model(folder)), seed=0)
    assert (caught.value.key, caught.value.value) == ("init_from", folder.child("model"))
