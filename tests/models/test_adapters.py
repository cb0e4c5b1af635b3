"""Frozen weights stay the same bit for bit; merged adapters become part of the weights and leave nothing behind."""

from pathlib import Path

import pytest
import torch

from raypipe.jobs.train.checkpoints import put_model
from raypipe.jobs.train.loop import make_optimizer, set_rate
from raypipe.models.classifier import VideoClassifier, pad_frames
from raypipe.models.gpt2 import VideoModel, add_lora, freeze, merge_lora
from raypipe.models.pretraining import MaskedFrameModel
from raypipe.storage import Folder
from support.tiny_models import DIM, random_videos, tiny_classifier, tiny_masked_frame

pytestmark = pytest.mark.usefixtures("one_thread")


def changed_by_a_step(model: VideoModel) -> set[str]:
    """Return the names of the parameters that an optimizer step changes."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, weight_decay=0.1)
    set_rate(optimizer, 0.01)
    model.train()
    frames, mask = torch.randn(4, 5, DIM), torch.ones(4, 5, dtype=torch.long)
    if isinstance(model, MaskedFrameModel):
        hidden = torch.zeros(4, 5, dtype=torch.bool)
        hidden[:, 2] = True
        loss = model(frames, mask, hidden).loss
    else:
        loss = model(frames, mask, labels=torch.tensor([0, 1, 2, 0])).loss
    loss.backward()
    optimizer.step()
    model.eval()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def names(model: VideoModel, *, but: tuple[str, ...] = ()) -> set[str]:
    return {name for name, _ in model.named_parameters() if not name.startswith(but)}


HIDDEN = "encoder.hidden_frame"  # only a masked-frame model uses it


@pytest.mark.parametrize(
    ("what", "frozen"),
    [
        ("none", ()),
        ("gpt2", ("encoder.gpt2.",)),
        ("all_but_last_1", ("encoder.gpt2.wpe", "encoder.gpt2.h.0.")),
        ("all_but_last_2", ("encoder.gpt2.wpe",)),
    ],
)
def test_a_step_changes_all_but_what_is_frozen(what: str, frozen: tuple[str, ...]) -> None:
    classifier, masked_frame = tiny_classifier(), tiny_masked_frame()
    for model in (classifier, masked_frame):
        freeze(model, what)
    assert changed_by_a_step(classifier) == names(classifier, but=(*frozen, HIDDEN))
    assert changed_by_a_step(masked_frame) == names(masked_frame, but=frozen)


def with_lora(*, dropout: float = 0.0) -> VideoClassifier:
    model = tiny_classifier()
    add_lora(model, rank=2, alpha=4, dropout=dropout)
    return model


def test_new_adapters_change_no_logit() -> None:
    videos = random_videos([3, 6])
    assert (with_lora().classify(videos).probabilities == tiny_classifier().classify(videos).probabilities).all()


def test_with_adapters_gpt2_itself_stays() -> None:
    model = with_lora()
    changed = changed_by_a_step(model)
    for _ in range(2):  # A changes only once B is no longer 0
        changed |= changed_by_a_step(model)
    adapters = {name for name in names(model) if ".lora_" in name}
    assert len(adapters) == 2 * 2 * 4  # two blocks, four matrices each, A and B of each matrix
    assert changed == adapters | names(model, but=("encoder.gpt2.", HIDDEN))


def test_merged_adapters_give_the_same_logits_and_leave_nothing(tmp_path: Path) -> None:
    model = with_lora(dropout=0.5)
    for _ in range(3):
        changed_by_a_step(model)
    padded = pad_frames(random_videos([3, 7]), max_frames=16)
    with torch.no_grad():
        expected = model(padded.frames, padded.mask).logits
        plain = tiny_classifier()(padded.frames, padded.mask).logits
        put_model(Folder(str(tmp_path)), model, metrics={})
        merge_lora(model)
        merged = model(padded.frames, padded.mask).logits
        loaded = VideoClassifier.from_pretrained(tmp_path / "model")
        again = loaded(padded.frames, padded.mask).logits
    assert not torch.allclose(expected, plain, atol=1e-3)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(again, expected, rtol=0, atol=1e-5)
    assert model.state_dict().keys() == tiny_classifier().state_dict().keys() == loaded.state_dict().keys()
    assert not any("lora" in type(module).__module__ for module in model.modules())


def test_putting_a_model_leaves_its_adapters_as_they_are(tmp_path: Path) -> None:
    model = with_lora()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    put_model(Folder(str(tmp_path)), model, metrics={})
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
