"""What the classifier's deployment computes, without Serve: labels, and the scores of frames on request."""

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raypipe.config import ServeConfig
from raypipe.endpoint.http import HttpError
from raypipe.endpoint.models import Classifier, classify_videos
from raypipe.endpoint.uploads import MAX_PICTURES, ClassifiedUpload, frame_pictures
from support.classify_outputs import DIM, save_model
from support.tiny_models import random_videos, tiny_classifier

SCORED = (np.zeros(2, np.float32), np.ones(2, np.float32))


def test_a_batch_is_scored_as_the_model_does() -> None:
    model, videos = tiny_classifier(), random_videos([3, 1, 5])
    expected = model.classify(videos, frame_scores=True)
    assert expected.order_scores is not None
    answers = classify_videos(videos, model, frame_scores=True)
    for (found, batch_size), order, probabilities in zip(
        answers, expected.order_scores, expected.probabilities, strict=True
    ):
        assert batch_size == len(videos)
        assert found.scored_frames is not None
        np.testing.assert_array_equal(found.scored_frames[0], np.zeros(len(order)))  # there is no probe
        np.testing.assert_array_equal(found.scored_frames[1], order)
        assert dict(found.labels) == pytest.approx(dict(zip(model.config.label_names, probabilities, strict=True)))
        assert [score for _, score in found.labels] == sorted(probabilities, reverse=True)
    plain = classify_videos(videos, model, frame_scores=False)
    assert plain == [(ClassifiedUpload(found.labels), len(videos)) for found, _ in answers]


@pytest.mark.parametrize(
    ("help_is", "asked", "is_scored"),
    [(False, True, False), (None, True, True), (True, True, True), (True, False, False)],
)
def test_frames_are_scored_if_asked_and_if_it_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, help_is: bool | None, asked: bool, is_scored: bool
) -> None:
    answer = served(tmp_path, monkeypatch, SCORED, frame_scores_help=help_is, frame_scores=asked)
    assert not isinstance(answer, HttpError)
    assert (answer[0].scored_frames is not None) == is_scored


def test_a_score_that_is_not_finite_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = served(tmp_path, monkeypatch, (SCORED[0], np.float32([0, np.nan])), frame_scores=True)
    assert isinstance(answer, HttpError)
    assert answer.status == 500


def test_few_frames_become_small_pictures() -> None:
    frames = np.repeat(7 * np.arange(MAX_PICTURES), 224 * 224 * 3).reshape(-1, 224, 224, 3).astype(np.uint8)
    pictures = [Image.open(io.BytesIO(jpeg)) for jpeg in frame_pictures(frames)]
    for shade, picture in enumerate(pictures):
        assert picture.getpixel((5, 5)) == pytest.approx([7 * shade] * 3, abs=2)
    assert frame_pictures(np.concatenate([frames, frames[:1]])) == []


def served(folder: Path, monkeypatch: pytest.MonkeyPatch, scored: object, *, frame_scores: bool, **keys: object) -> Any:  # noqa: ANN401
    """Classify one video with fixed results in place of Serve's batches, which need a replica."""

    async def plain(*_: object) -> tuple[ClassifiedUpload, int]:
        return ClassifiedUpload([("cat", 1.0)]), 1

    async def with_scores(*_: object) -> tuple[ClassifiedUpload, int]:
        return ClassifiedUpload([("cat", 1.0)], scored), 1  # type: ignore[arg-type]

    monkeypatch.setattr(Classifier, "_classify", plain)
    monkeypatch.setattr(Classifier, "_classify_and_score", with_scores)
    model = save_model(folder / "model", **keys)  # type: ignore[arg-type]
    deployment = Classifier(ServeConfig(index="nowhere", model=str(model)))
    return asyncio.run(deployment.classify(np.zeros((2, DIM), np.float16), frame_scores=frame_scores))
