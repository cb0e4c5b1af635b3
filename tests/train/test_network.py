"""What a batch holds, which of its frames are dropped or hidden, and the loss of each video."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from raypipe.config import ClassifierConfig, OptimizerConfig
from raypipe.errors import ConfigError, WeightsError
from raypipe.jobs.train.network import Objective, Start, build, classifier_config, drop_frames, hide_frames, make_batch
from raypipe.jobs.train.outputs import put_model
from raypipe.models.classifier import MaskedFrameModel, VideoClassifier
from raypipe.models.classifier_files import ModelFiles, read_model
from raypipe.models.gpt2 import Gpt2
from raypipe.storage import Folder
from support.tiny_models import GPT2, random_videos, tiny_classifier, tiny_config, tiny_masked_frame

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


def test_a_batch_has_the_labels_of_its_videos() -> None:
    videos, config = random_videos([2, 5]), tiny_config(max_frames=4)
    batch = make_batch(videos, [np.array([2]), np.array([0])], config, device=CPU)
    assert batch.labels is not None
    assert (batch.labels.tolist(), batch.labels.dtype) == ([2, 0], torch.long)
    assert batch.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.frames[0, :2].tolist() == videos[0].tolist()
    several = make_batch(videos, [np.array([0, 2]), np.array([1])], tiny_config(multi_label=True), device=CPU)
    assert several.labels is not None
    assert several.labels.tolist() == [[1, 0, 1], [0, 1, 0]]
    none: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = [np.zeros(0, np.int64)] * 2
    assert make_batch(videos, none, config, device=CPU).labels is None


def test_a_loss_weighs_and_smooths_where_it_learns_alone() -> None:
    model = tiny_classifier()
    batch = make_batch(random_videos([3, 4]), [np.array([0]), np.array([2])], model.config, device=CPU)
    assert batch.labels is not None
    weights = torch.tensor([0.5, 1.0, 3.0])
    objective = Objective(OptimizerConfig(frame_dropout=0.0, label_smoothing=0.2), class_weights=weights)
    learned, logits = objective(model, batch, learning=True)
    measured, _ = objective(model, batch, learning=False)
    assert logits is not None
    assert not logits.requires_grad
    smoothed = nn.CrossEntropyLoss(weight=weights, label_smoothing=0.2, reduction="none")
    torch.testing.assert_close(learned.detach(), smoothed(logits, batch.labels))
    torch.testing.assert_close(measured.detach(), nn.functional.cross_entropy(logits, batch.labels, reduction="none"))


def test_frames_are_dropped_where_it_learns_alone() -> None:
    model = tiny_classifier()
    batch = make_batch(random_videos([9] * 8), [np.array([0])] * 8, model.config, device=CPU)
    objective = Objective(OptimizerConfig(frame_dropout=0.5), class_weights=None)
    with torch.no_grad():
        first, again = (objective(model, batch, learning=True)[0] for _ in range(2))
        measured, once_more = (objective(model, batch, learning=False)[0] for _ in range(2))
    assert not torch.equal(first, again)
    assert torch.equal(measured, once_more)


def test_without_labels_hidden_frames_are_predicted() -> None:
    model = tiny_masked_frame()
    none = [np.zeros(0, np.int64)] * 2
    batch = make_batch(random_videos([3, 4]), none, model.config, device=CPU)
    losses, logits = Objective(OptimizerConfig(), class_weights=None)(model, batch, learning=True)
    assert logits is None
    assert losses.shape == (2,)
    assert (losses > 0).all()


def start_of(*, classifies: bool = True, init_from: ModelFiles | None = None, dropout: float = 0.2) -> Start:
    model = ClassifierConfig(dropout=dropout)
    config = classifier_config(
        GPT2, model=model, max_frames=16, embedding_dim=8, fingerprint="f", label_names=["a", "b"], multi_label=False
    )
    return Start(config, model, classifies=classifies, gpt2=Gpt2(GPT2), init_from=init_from)


def test_the_same_seed_builds_the_same_model() -> None:
    first, again, other = (build(start_of(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_dropout_is_in_every_part_of_the_model() -> None:
    model = build(start_of(dropout=0.35), seed=0)
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    rates |= {block.attn.config.attn_pdrop for block in model.encoder.gpt2.h}
    assert rates == {0.35}


def test_nothing_is_hidden_from_a_classifier() -> None:
    assert isinstance(build(start_of(), seed=0), VideoClassifier)
    masked = build(start_of(classifies=False), seed=0)
    assert isinstance(masked, MaskedFrameModel)
    assert masked.encoder.hidden_frame.requires_grad
    assert not build(start_of(), seed=0).encoder.hidden_frame.requires_grad


def test_a_model_begins_with_the_encoder_of_another(tmp_path: object) -> None:
    learned = tiny_masked_frame()
    folder = Folder(str(tmp_path))
    put_model(folder, learned, metrics={})
    built = build(start_of(init_from=read_model(folder)), seed=0).encoder.state_dict()
    expected = learned.encoder.state_dict()
    assert built.keys() == expected.keys()
    assert all(torch.equal(built[name], expected[name]) for name in built)


def test_an_encoder_of_other_sizes_is_refused(tmp_path: object) -> None:
    folder = Folder(str(tmp_path))
    put_model(folder, tiny_classifier(gpt2={**GPT2, "n_embd": 8}), metrics={})
    with pytest.raises(WeightsError) as caught:
        build(start_of(init_from=read_model(folder)), seed=0)
    assert (caught.value.key, caught.value.value) == ("init_from", folder.child("model"))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\b3\b") as caught:
        classifier_config(
            {**GPT2, "n_head": 3},
            model=ClassifierConfig(),
            max_frames=4,
            embedding_dim=8,
            fingerprint="f",
            label_names=["a", "b"],
            multi_label=False,
        )
    assert (caught.value.key, caught.value.value) == ("model.gpt2.n_embd", 16)
