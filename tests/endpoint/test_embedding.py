"""A video outside the catalogue gets exactly the embedding that the index would hold of it."""

import pickle
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.config import DecodeConfig, EmbedConfig, load_config
from raypipe.endpoint.http import HttpError, as_http_error
from raypipe.endpoint.uploads import AllowedUri, EmbeddingSettings, Prefixes, embed_videos
from raypipe.errors import FingerprintError, ObjectMissingError, WeightsError
from raypipe.jobs.embed.setup import prepare
from raypipe.jobs.embed.shard import mean_embeddings
from raypipe.models.backbone import Backbone
from raypipe.models.backbones import mean_embedding
from support.properties import examples
from support.videos import make_video

_CONFIG = ("backbone.name=resnet18", "backbone.weights=random")


def job(tmp_path: Path, *overrides: str) -> Any:  # noqa: ANN401 - the embed job's own
    config = load_config(EmbedConfig, values={"input": "in", "output": str(tmp_path)}, overrides=(*_CONFIG, *overrides))
    return prepare(config, dtype="float32")


@pytest.mark.parametrize(
    "overrides",
    [
        ("sampling.num_frames=3",),
        ("sampling.num_frames=3", "sampling.nearest_keyframe=true"),
        ("sampling.num_frames=3", "sampling.loop_filter=false"),
        ("sampling.mode=fps", "sampling.fps=2.5", "sampling.max_frames=19"),
        ("sampling.mode=keyframes", "sampling.max_frames=17"),
        ("sampling.mode=all", "sampling.max_frames=18"),
    ],
)
def test_uploads_are_sampled_like_the_embed_job(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    setup = job(tmp_path, *overrides)
    asked = EmbeddingSettings("f", setup.settings, "v").decode_request(setup.config.decode)
    expected = setup.decode_request
    keys = {"uniform": ("num_frames",), "fps": ("fps", "max_frames")}.get(asked.mode, ("max_frames",))
    for name in ("mode", "nearest_keyframe", "loop_filter", "resize_size", "crop_size", "limits", "row_format", *keys):
        assert getattr(asked, name) == getattr(expected, name)
    assert asked.max_frames >= (asked.num_frames if asked.mode == "uniform" else 1)


@pytest.mark.parametrize(("stored", "row_format"), [({"format": 2}, 2), ({"format": 1}, 1), ({}, 1)])
def test_uploads_are_decoded_by_the_rules_of_the_rows_of_the_index(
    tmp_path: Path, stored: dict[str, int], row_format: int
) -> None:
    made = {name: value for name, value in job(tmp_path).settings.items() if name != "format"}
    asked = EmbeddingSettings("f", {**made, **stored}, "v").decode_request(DecodeConfig())
    assert asked.row_format == row_format


@settings(max_examples=examples(50))
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_the_mean_is_that_of_the_embed_job_to_the_last_bit(lengths: list[int], seed: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((sum(lengths), 16)).astype(np.float32)
    stops = np.cumsum([0, *lengths], dtype=np.int32)
    expected = mean_embeddings(vectors, stops)
    for number, (start, stop) in enumerate(pairwise(stops)):
        assert np.array_equal(mean_embedding(vectors[start:stop]), expected[number])


@pytest.mark.usefixtures("one_thread")
def test_videos_are_decoded_and_embedded_together_as_alone(tmp_path: Path) -> None:
    setup = job(tmp_path, "sampling.num_frames=2")
    about = EmbeddingSettings("f", setup.settings, "v")
    backbone = Backbone(about.resolve_weights("random").state_dict, name=about.backbone, dtype="float32")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(make_video(shade=3))
    prefixes = Prefixes([str(tmp_path / "videos")])
    sandbox = about.sandbox(DecodeConfig())
    decode = partial(prefixes.decode, sandbox=sandbox, max_size_bytes=DecodeConfig().max_size_bytes)
    try:
        named = decode(prefixes.allow(f"{tmp_path}/videos/a.mp4"))
        sent = decode(make_video(shade=90))
        with pytest.raises(HttpError) as caught:
            decode(b"no video")
        assert (caught.value.status, caught.value.code) == (422, "undecodable")
        assert "(forbidden_format)" in caught.value.message
        with pytest.raises(ObjectMissingError):
            decode(prefixes.allow(f"{tmp_path}/videos/none.mp4"))
        with pytest.raises(HttpError) as caught:
            decode(AllowedUri("/etc/passwd"))
        assert (caught.value.status, caught.value.code) == (403, "forbidden_uri")
    finally:
        sandbox.close()
    together = embed_videos([named.frames, sent.frames], backbone)
    for frames, embedded in zip((named.frames, sent.frames), together, strict=True):
        [alone] = embed_videos([frames], backbone)
        assert not isinstance(embedded, HttpError)
        assert not isinstance(alone, HttpError)
        embedding, frame_embeddings = embedded
        assert frame_embeddings.shape == (2, 512)
        assert frame_embeddings.dtype == np.float16
        assert embedding == pytest.approx(alone[0], abs=1e-5)
        assert embedding == pytest.approx(mean_embedding(backbone.embed(frames)), abs=1e-5)
        assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)


def test_other_weights_than_those_of_the_index_are_refused(tmp_path: Path) -> None:
    setup = job(tmp_path)
    about = EmbeddingSettings.of(
        {"id": "v", "embeddings": {"fingerprint": "f", "settings": {**setup.settings, "weights": "0" * 64}}}
    )
    with pytest.raises(FingerprintError) as caught:
        about.resolve_weights("random")
    assert (caught.value.key, caught.value.value) == ("embedder.weights", setup.settings["weights"])
    assert caught.value.expected == "0" * 64
    assert "'random'" in str(caught.value)
    assert "embedder.enabled" in caught.value.remedy
    with pytest.raises(WeightsError, match=r"none\.pth"):
        about.resolve_weights(str(tmp_path / "none.pth"))


def test_a_nan_embedding_is_an_error_and_affects_no_other_video() -> None:
    class Broken:
        def embed(self, frames: Any) -> Any:  # noqa: ANN401 - arrays
            return np.where(frames[:, 0, 0, :1] == 0, np.nan, np.ones((1, 4), np.float32))

    black, white = (np.full((2, 2, 2, 3), shade, np.uint8) for shade in (0, 255))
    before, poisoned, after = embed_videos([white, black, white], Broken())
    assert isinstance(poisoned, HttpError)
    assert (poisoned.status, poisoned.code) == (500, "internal")
    for embedded in (before, after):
        assert not isinstance(embedded, HttpError)
        assert embedded[0] == pytest.approx([0.5] * 4)


def test_an_error_travels_between_processes() -> None:
    error = HttpError(429, "Too much.", headers={"Retry-After": "1"})
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - pickled here
    assert (again.status, again.code, again.message, dict(again.headers)) == (
        429,
        "overloaded",
        "Too much.",
        error.headers,
    )
    assert as_http_error(again) is again
    assert as_http_error(KeyError("secret")).status == 500
    assert "secret" not in as_http_error(KeyError("secret")).message
