"""The classifier: its output for a video depends on that video's frames alone, in any batch and on any call."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModel, GPT2Config

from raypipe.models.classifier import (
    VideoClassifier,
    VideoClassifierConfig,
    by_length,
    classification_loss,
    frame_changes,
    masked_mean,
    pad_frames,
    thin,
)
from raypipe.models.pretraining import MaskedFrameModel
from support.properties import examples
from support.tiny_models import DIM, NAMES, random_videos, tiny_classifier, tiny_config, tiny_masked_frame

pytestmark = pytest.mark.usefixtures("one_thread")

MASKS = st.integers(1, 8).flatmap(  # of a few videos, each with at least one frame anywhere
    lambda longest: st.lists(
        st.lists(st.booleans(), min_size=longest, max_size=longest).filter(any), min_size=1, max_size=4
    )
)
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=6)
CLASSIFIER = tiny_classifier()
KINDS = {
    "gpt2": CLASSIFIER,
    "probe": tiny_classifier(probe="mean_slope_std", has_gpt2=False),
    "probe of means": tiny_classifier(probe="mean", has_gpt2=False),
    "both": tiny_classifier(probe="mean_slope_std"),
    "changes": tiny_classifier(probe="mean_slope_std", gpt2_reads="changes"),
}


def logits_of(model: VideoClassifier, videos: list[npt.NDArray[np.float16]]) -> torch.Tensor:
    padded = pad_frames(videos, max_frames=model.config.max_frames)
    with torch.no_grad():
        return cast("torch.Tensor", model(padded.frames, padded.mask).logits)


def alone(model: VideoClassifier, video: npt.NDArray[np.float16]) -> torch.Tensor:
    """Return the logits of one video alone, without padding and mask."""
    with torch.no_grad():
        return cast("torch.Tensor", model(torch.from_numpy(video)[None]).logits)[0]


@settings(max_examples=examples(40))
@given(lengths=LENGTHS, seed=st.integers(0, 9), kind=st.sampled_from(sorted(KINDS)))
def test_padding_never_changes_a_logit(lengths: list[int], seed: int, kind: str) -> None:
    model, videos = KINDS[kind], random_videos(lengths, seed=seed)
    one_by_one = torch.stack([alone(model, video) for video in videos])
    torch.testing.assert_close(logits_of(model, videos), one_by_one, rtol=0, atol=1e-5)


def test_the_logits_of_the_probe_and_of_gpt2_are_added() -> None:
    model, (video,) = KINDS["both"], random_videos([5])
    whole, frames = alone(model, video), torch.from_numpy(video)[None]
    with torch.no_grad():
        order = model.order_logits(frames, torch.ones(1, 5))[0]
        given = model(frames, probe_logits=torch.full((1, len(NAMES)), 7.0)).logits[0]
    torch.testing.assert_close(whole, probe_logits(model, video) + order, rtol=0, atol=1e-5)
    torch.testing.assert_close(given, 7 + order, rtol=0, atol=1e-5)
    probe = tiny_classifier(probe="mean_slope_std")
    probe.drop_gpt2()
    assert not any("encoder" in name or "head" in name for name in probe.state_dict())
    assert torch.equal(alone(probe, video), probe_logits(model, video))


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_temperature_divides_the_logits(*, multi_label: bool) -> None:
    model, (video,) = tiny_classifier(probe="mean", temperature=2.5, multi_label=multi_label), random_videos([4])
    scaled = alone(model, video) / 2.5
    expected = scaled.sigmoid() if multi_label else scaled.softmax(dim=0)
    np.testing.assert_allclose(model.classify([video]).probabilities[0], expected, atol=1e-6)


def test_the_content_of_the_padding_does_not_matter() -> None:
    padded = pad_frames(random_videos([3, 9]), max_frames=16)
    dirty = padded.frames.clone()
    dirty[padded.mask == 0] = 7
    with torch.no_grad():
        clean, other = (CLASSIFIER(frames, padded.mask).logits for frames in (padded.frames, dirty))
    torch.testing.assert_close(clean, other, rtol=0, atol=1e-5)


def test_every_frame_and_their_order_matter() -> None:
    (video,) = random_videos([6])
    before = alone(CLASSIFIER, video)
    assert not torch.allclose(before, alone(CLASSIFIER, video[::-1].copy()), atol=1e-3)
    for number in range(6):
        changed = video.copy()
        changed[number] += 3
        assert not torch.allclose(before, alone(CLASSIFIER, changed), atol=1e-3)


def test_a_mask_may_leave_out_any_frames() -> None:
    frames = torch.from_numpy(np.stack(random_videos([5])))
    for hidden in ([0], [0, 1, 2, 3], [2], [1, 4]):
        mask = torch.ones(1, 5, dtype=torch.long)
        mask[0, hidden] = 0
        changed = frames.clone()
        changed[0, hidden] = 9
        with torch.no_grad():
            logits, others = (CLASSIFIER(given, mask).logits for given in (frames, changed))
        assert logits.isfinite().all()
        torch.testing.assert_close(logits, others, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(20))
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9), batch_size=st.integers(1, 4), data=st.data())
def test_classify_gives_each_video_the_result_it_has_alone(
    kind: str, lengths: list[int], batch_size: int, data: st.DataObject
) -> None:
    model, videos = KINDS[kind], random_videos(lengths)
    whole = model.classify(videos, frame_scores=True, batch_size=batch_size)
    order = data.draw(st.permutations(range(len(videos))))
    shuffled = model.classify([videos[at] for at in order], frame_scores=True)
    for at, video in enumerate(videos):
        expected = alone(model, thinned(video)).softmax(dim=0).numpy()
        np.testing.assert_allclose(whole.probabilities[at], expected, atol=1e-5)
        np.testing.assert_allclose(shuffled.probabilities[order.index(at)], expected, atol=1e-5)
        for name in ("frame_scores", "order_scores"):
            scores, again = getattr(whole, name)[at], getattr(shuffled, name)[order.index(at)]
            assert scores.shape == (len(video),)
            np.testing.assert_allclose(again, scores, atol=1e-4)


@settings(max_examples=examples(20))
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    seed=st.integers(0, 9),
    kind=st.sampled_from(sorted(KINDS)),
)
def test_scores_explain_the_logit_of_the_most_likely_label(lengths: list[int], seed: int, kind: str) -> None:
    model, videos = KINDS[kind], random_videos(lengths, seed=seed)
    found = model.classify(videos, frame_scores=True)
    assert found.frame_scores is not None
    assert found.order_scores is not None
    for video, probabilities, scores, order in zip(
        videos, found.probabilities, found.frame_scores, found.order_scores, strict=True
    ):
        best, kept = int(probabilities.argmax()), thin(len(video), max_frames=model.config.max_frames)
        left_out = np.setdiff1d(np.arange(len(video)), kept)
        assert not scores[left_out].any()
        assert not order[left_out].any()
        of_probe = probe_logits(model, video[kept])[best]
        assert scores.sum() == pytest.approx(float(of_probe), abs=1e-4)
        assert scores[kept].all() == (model.config.probe is not None)
        np.testing.assert_allclose(order[kept], differences(model, video[kept], best), atol=1e-4)
        assert order[kept].all() == model.config.has_gpt2


def thinned(video: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
    """Return the frames of a video that a model reads."""
    return video[thin(len(video), max_frames=CLASSIFIER.config.max_frames)]


def probe_logits(model: VideoClassifier, video: npt.NDArray[np.float16]) -> torch.Tensor:
    """Return the logits of a model's probe; zeros if it has none."""
    if model.config.probe is None:
        return torch.zeros(len(NAMES))
    with torch.no_grad():
        return cast("torch.Tensor", model.probe(torch.from_numpy(video)[None], torch.ones(1, len(video))))[0]


def differences(model: VideoClassifier, video: npt.NDArray[np.float16], label: int) -> list[float]:
    """Return by how much the logit of GPT-2 falls for a mask without one of the frames, for each frame."""
    if not model.config.has_gpt2:
        return [0.0] * len(video)
    masks = torch.cat([torch.ones(1, len(video)), 1 - torch.eye(len(video))])
    with torch.no_grad():
        logits = model.order_logits(torch.from_numpy(video).expand(len(masks), *video.shape), masks)[:, label]
    return cast("list[float]", (logits[0] - logits[1:]).tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_the_only_frame_has_the_whole_logit(kind: str) -> None:
    model, (video,) = KINDS[kind], random_videos([1])
    found = model.classify([video], frame_scores=True)
    assert found.frame_scores is not None
    assert found.order_scores is not None
    best = int(found.probabilities[0].argmax())
    assert found.frame_scores[0].tolist() == pytest.approx([float(probe_logits(model, video)[best])], abs=1e-5)
    assert np.isfinite(found.order_scores[0]).all()


def test_classify_without_scores_gives_the_same_probabilities_and_none() -> None:
    videos = random_videos([3, 5])
    found = CLASSIFIER.classify(videos)
    assert (found.frame_scores, found.order_scores) == (None, None)
    np.testing.assert_array_equal(found.probabilities, CLASSIFIER.classify(videos, frame_scores=True).probabilities)


def test_classify_of_no_videos_is_empty() -> None:
    found = CLASSIFIER.classify([], frame_scores=True)
    assert found.probabilities.shape == (0, len(NAMES))
    assert (found.frame_scores, found.order_scores) == ([], [])


def test_classify_ends_training_mode() -> None:
    model = tiny_classifier(dropout=0.5)
    model.train()
    videos = random_videos([4])
    np.testing.assert_array_equal(model.classify(videos).probabilities, model.classify(videos).probabilities)


def test_several_labels_are_each_their_own_probability() -> None:
    model = tiny_classifier(multi_label=True)
    (video,) = random_videos([4])
    expected = alone(model, video).sigmoid().numpy()
    np.testing.assert_allclose(model.classify([video]).probabilities[0], expected, atol=1e-6)
    assert abs(expected.sum() - 1) > 1e-3


@given(num_frames=st.integers(1, 500), max_frames=st.integers(2, 50))
def test_thinning_spreads_evenly_from_the_first_frame_to_the_last(num_frames: int, max_frames: int) -> None:
    kept = thin(num_frames, max_frames=max_frames)
    assert len(kept) == min(num_frames, max_frames)
    assert (kept[0], kept[-1]) == (0, num_frames - 1)
    steps = np.diff(kept)
    assert (steps >= 1).all()
    assert steps.size == 0 or steps.max() - steps.min() <= 1


def test_a_batch_of_mixed_types_loses_nothing() -> None:
    half, single = random_videos([1])[0], np.full((1, DIM), 1e6, dtype=np.float32)
    padded = pad_frames([half, single], max_frames=4)
    assert padded.frames[1].eq(1e6).all()
    assert pad_frames([half], max_frames=4).frames.dtype == torch.float16


@given(lengths=st.lists(st.integers(0, 20), max_size=30), batch_size=st.integers(1, 7))
def test_batches_hold_every_position_once_by_length(lengths: list[int], batch_size: int) -> None:
    batches = by_length(lengths, batch_size=batch_size)
    assert sorted(at for batch in batches for at in batch) == list(range(len(lengths)))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert [lengths[at] for batch in batches for at in batch] == sorted(lengths)


def test_the_mean_is_over_the_frames_there_are() -> None:
    states = torch.tensor([[[2.0], [4.0], [9.0]], [[1.0], [1.0], [1.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert masked_mean(states, mask).tolist() == [[3.0], [0.0]]


@given(masks=MASKS, seed=st.integers(0, 99))
def test_changes_are_differences_to_the_mean_and_the_previous_frame(masks: list[list[bool]], seed: int) -> None:
    mask = torch.tensor(masks)
    frames = torch.randn(*mask.shape, 2, generator=torch.Generator().manual_seed(seed))
    found = frame_changes(torch.where(mask[..., None], frames, 1e4), mask.long())
    for video, kept, changes in zip(frames.numpy(), mask.numpy(), found.numpy(), strict=True):
        chosen = video[kept]
        steps = np.diff(chosen, axis=0, prepend=chosen[:1])
        expected = np.concatenate([chosen - chosen.mean(axis=0), steps], axis=1)
        np.testing.assert_allclose(changes[kept], expected, atol=1e-5)


def test_what_stays_the_same_in_a_video_is_not_a_change() -> None:
    model, (video,) = KINDS["changes"], random_videos([6])
    moved = video.astype(np.float32) + 5 * np.arange(DIM, dtype=np.float32)
    before, after = (model.order_logits(torch.from_numpy(frames)[None], torch.ones(1, 6)) for frames in (video, moved))
    torch.testing.assert_close(before, after, rtol=0, atol=1e-4)


def test_gpt2_has_no_token_for_a_dropped_frame() -> None:
    frames, mask = torch.from_numpy(random_videos([5])[0])[None], torch.ones(1, 5)
    dropped = torch.tensor([[False, True, False, True, False]])
    with torch.no_grad():
        found = CLASSIFIER(frames, mask, dropped=dropped).logits
        torch.testing.assert_close(found, CLASSIFIER(frames, mask * ~dropped).logits, rtol=0, atol=1e-5)
        model = KINDS["changes"]
        found = model.order_logits(frames, mask, dropped=dropped)
        whole, without = (model.order_logits(frames, kept) for kept in (mask, mask * ~dropped))
    assert not torch.allclose(found, whole, atol=1e-3)
    assert not torch.allclose(found, without, atol=1e-3)  # changes are differences to dropped frames as well


def test_a_configuration_is_saved_completely() -> None:
    config = tiny_config(
        embedding_fingerprint="abc",
        metrics={"epoch": 3},
        dropout=0.25,
        probe="mean",
        temperature=1.5,
        gpt2_reads="changes",
    )
    tree = json.loads(config.to_json_string(use_diff=False))
    again = VideoClassifierConfig.from_dict(tree)
    assert again.to_dict() == config.to_dict()
    assert again.label_names == list(NAMES)
    assert isinstance(again.gpt2, GPT2Config)
    assert (again.gpt2.n_layer, again.gpt2.n_embd, again.gpt2.n_positions, again.gpt2.resid_pdrop) == (2, 16, 16, 0.25)
    assert (again.embedding_dim, again.max_frames, again.dropout) == (DIM, 16, 0.25)
    assert (again.embedding_fingerprint, again.metrics) == ("abc", {"epoch": 3})
    assert (again.probe, again.has_gpt2, again.temperature, again.gpt2_reads) == ("mean", True, 1.5, "changes")


def test_labels_of_more_than_ten_keep_their_numbers() -> None:
    names = [f"label {number}" for number in range(12)]
    tree = json.loads(tiny_config(names=names).to_json_string(use_diff=False))
    assert VideoClassifierConfig.from_dict(tree).label_names == names


def test_more_frames_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="max_frames") as caught:
        tiny_config(max_frames=17, gpt2={"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16})
    assert {"17", "16"} <= set(str(caught.value).split())


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_gives_the_same_logits(tmp_path: Path, kind: str) -> None:
    KINDS[kind].save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    videos = random_videos([2, 7])
    expected = logits_of(KINDS[kind], videos)
    for loaded in (VideoClassifier.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert isinstance(loaded, VideoClassifier)
        assert torch.equal(logits_of(loaded, videos), expected)
    assert AutoConfig.from_pretrained(tmp_path).label_names == list(NAMES)


def test_a_saved_masked_frame_model_gives_the_same_predictions(tmp_path: Path) -> None:
    model = tiny_masked_frame()
    model.save_pretrained(tmp_path)
    frames, mask = torch.randn(2, 5, DIM), torch.ones(2, 5, dtype=torch.long)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[:, 1] = True
    with torch.no_grad():
        before, after = (
            one(frames, mask, hidden).frames for one in (model, MaskedFrameModel.from_pretrained(tmp_path))
        )
    assert torch.equal(before, after)


def test_a_new_model_standardises_by_nothing() -> None:
    model = VideoClassifier(tiny_config())
    frames = torch.randn(1, 3, DIM)
    assert torch.equal(model.encoder.standardise(frames), frames)


def test_standardising_is_part_of_the_model() -> None:
    model = tiny_classifier()
    (video,) = random_videos([4])
    expected = alone(model, video)
    moved = (video.astype(np.float32) * 3 + 1).astype(np.float32)
    model.encoder.mean.mul_(3).add_(1)
    model.encoder.std.mul_(3)
    torch.testing.assert_close(alone(model, moved), expected, rtol=0, atol=1e-4)


def test_the_model_has_no_word_embeddings() -> None:
    assert not any("wte" in name for name in CLASSIFIER.state_dict())


def test_the_loss_of_one_label_is_cross_entropy() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]])
    labels = torch.tensor([0, 2])
    expected = -logits.log_softmax(dim=1)[torch.arange(2), labels]
    torch.testing.assert_close(classification_loss(logits, labels), expected)
    weights = torch.tensor([0.5, 1.0, 4.0])
    weighted = classification_loss(logits, labels, class_weights=weights)
    torch.testing.assert_close(weighted, expected * weights[labels])
    smoothed = classification_loss(logits, labels, label_smoothing=0.3)
    uniform = -logits.log_softmax(dim=1).mean(dim=1)
    torch.testing.assert_close(smoothed, 0.7 * expected + 0.3 * uniform)


def test_the_loss_of_several_labels_is_the_mean_of_binary_ones() -> None:
    logits, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    one, other = -torch.tensor(2.0).sigmoid().log(), -torch.tensor(1.0).sigmoid().log()
    torch.testing.assert_close(classification_loss(logits, labels), ((one + other) / 2)[None])
    weighted = classification_loss(logits, labels, class_weights=torch.tensor([3.0, 5.0]))
    torch.testing.assert_close(weighted, ((3 * one + other) / 2)[None])
    soft = classification_loss(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(soft, classification_loss(logits, torch.tensor([[0.9, 0.1]])))


def test_the_loss_of_forward_is_that_of_its_labels() -> None:
    frames, labels = torch.randn(3, 4, DIM), torch.tensor([0, 2, 1])
    found = CLASSIFIER(frames, labels=labels)
    torch.testing.assert_close(found.loss, nn.functional.cross_entropy(found.logits, labels))


def test_the_loss_of_masked_frames_looks_at_hidden_frames_alone() -> None:
    model, mask = tiny_masked_frame(), torch.ones(2, 5, dtype=torch.long)
    frames = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(0))
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[0, 1] = hidden[0, 3] = hidden[1, 4] = True
    with torch.no_grad():
        found = model(frames, mask, hidden)
        errors = (found.frames - model.encoder.standardise(frames)).square().mean(dim=2)
    expected = torch.stack([(errors[0, 1] + errors[0, 3]) / 2, errors[1, 4]])
    torch.testing.assert_close(found.losses, expected)
    torch.testing.assert_close(found.loss, expected.mean())


def test_a_hidden_frame_is_not_seen() -> None:
    model, mask = tiny_masked_frame(), torch.ones(1, 5, dtype=torch.long)
    frames = torch.randn(1, 5, DIM, generator=torch.Generator().manual_seed(0))
    hidden = torch.tensor([[False, True, False, True, False]])
    changed, seen = frames.clone(), frames.clone()
    changed[hidden] = 8
    seen[0, 0] = 8
    with torch.no_grad():
        before, after, other = (model(given, mask, hidden).frames for given in (frames, changed, seen))
    assert torch.equal(before, after)
    assert not torch.allclose(before[hidden], other[hidden], atol=1e-3)


def trained_to_find_one_frame() -> tuple[VideoClassifier, list[npt.NDArray[np.float16]]]:
    """Train a model that recognises labels by one frame of each video; return it and videos it has not seen."""
    random = np.random.default_rng(3)
    centres = 3 * np.eye(DIM)[: len(NAMES)]

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        frames, labels = 0.5 * random.standard_normal((count, 6, DIM)), random.integers(0, len(NAMES), count)
        frames[np.arange(count), random.integers(0, 6, count)] += centres[labels]
        return torch.from_numpy(frames).float(), torch.from_numpy(labels)

    torch.manual_seed(0)
    model = VideoClassifier(tiny_config())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        frames, labels = draw(32)
        optimizer.zero_grad()
        model(frames, labels=labels).loss.backward()
        optimizer.step()
    model.eval()
    frames, labels = draw(64)
    with torch.no_grad():
        assert (model(frames).logits.argmax(dim=1) == labels).float().mean() > 0.9
    return model, [video.numpy().astype(np.float16) for video in frames]


def test_without_the_frame_of_the_highest_score_a_trained_model_is_less_sure() -> None:
    model, videos = trained_to_find_one_frame()
    found = model.classify(videos, frame_scores=True)
    assert found.order_scores is not None
    drops = []
    for video, probabilities, scores in zip(videos, found.probabilities, found.order_scores, strict=True):
        best, whole = int(probabilities.argmax()), alone(model, video)
        for frame in (scores.argmax(), scores.argmin()):
            without = video.copy()
            without[frame] = 0
            drops.append(float(whole[best] - alone(model, without)[best]))
    highest, lowest = np.mean(drops[0::2]), np.mean(drops[1::2])
    assert highest > 0.5
    assert highest > lowest + 0.5


WITHOUT_RAY = """
import sys

class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoRay())
import numpy as np, torch
from raypipe.models.classifier import VideoClassifier

model = VideoClassifier.from_pretrained(sys.argv[1])
video = torch.from_numpy(np.load(sys.argv[2]))[None]
with torch.no_grad():
    print(model(video).logits[0].tolist())
assert not any(name.partition(".")[0] == "ray" for name in sys.modules)
"""


def test_a_script_without_ray_gives_the_same_logits(tmp_path: Path) -> None:
    (video,) = random_videos([5])
    np.save(tmp_path / "video.npy", video)
    CLASSIFIER.save_pretrained(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_RAY, str(tmp_path / "model"), str(tmp_path / "video.npy")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx(alone(CLASSIFIER, video).tolist(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_loaded_in_bfloat16_gives_nearly_the_same_result(tmp_path: Path, kind: str) -> None:
    model = KINDS[kind]
    model.save_pretrained(tmp_path)
    half = VideoClassifier.from_pretrained(tmp_path, dtype=torch.bfloat16)
    videos = random_videos([4, 3])
    logits = logits_of(half, videos)
    assert logits.dtype == (torch.bfloat16 if model.config.probe is None else torch.float32)
    torch.testing.assert_close(logits.float(), logits_of(model, videos), rtol=0, atol=0.05)
    found, expected = (one.classify(videos, frame_scores=True) for one in (half, model))
    for name in ("frame_scores", "order_scores"):
        for scores, meant in zip(getattr(found, name), getattr(expected, name), strict=True):
            np.testing.assert_allclose(scores, meant, atol=0.1)


def test_a_probe_computes_in_float32_under_autocast() -> None:
    model, (video,) = KINDS["both"], random_videos([5])
    frames, mask = torch.from_numpy(video)[None], torch.ones(1, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.probe(frames, mask)
    assert torch.equal(found, model.probe(frames, mask))


@pytest.mark.parametrize("given", [{"probe": "median"}, {"has_gpt2": False}, {"gpt2_reads": "words"}])
def test_a_configuration_of_no_classifier_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        tiny_config(**given)
