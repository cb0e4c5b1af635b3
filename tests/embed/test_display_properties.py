"""Videos with display properties get nearly the same embeddings as the plain videos that they were made from."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from raypipe.models.backbone import Backbone
from raypipe.models.weights import resolve_weights
from raypipe.video.decode_request import Pixels
from raypipe.video.sandbox.parent import DecodeSandbox
from support.decoding import resnet_request

REQUEST = resnet_request(16)
PAIRS = {
    "interlaced.mp4": ("progressive.mp4", 0.99),
    "pq.mp4": ("sdr.mp4", 0.98),
    "sar_64_45.mp4": ("good.mp4", 0.99),
    "rotated.mp4": ("good.mp4", 0.99),
}

pytestmark = pytest.mark.slow  # runs a trained network on sixteen frames per video


@pytest.fixture(scope="module")
def backbone(assets: Path) -> Backbone:
    """Return trained weights: embeddings of random weights barely change with the picture."""
    uri = str(assets / "weights" / "resnet18_imagenet.safetensors")
    weights = resolve_weights("resnet18", uri, read_bytes=lambda path: Path(path).read_bytes())
    return Backbone(weights.state_dict, name="resnet18", dtype="float32")


def embedding(backbone: Backbone, frames: Pixels) -> npt.NDArray[np.float32]:
    """Return the normalized mean of the frames' vectors."""
    mean = np.asarray(backbone.embed(frames), np.float32).mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)


@pytest.mark.parametrize("name", PAIRS)
def test_display_properties_change_no_embedding(name: str, assets: Path, backbone: Backbone) -> None:
    reference, least = PAIRS[name]
    vectors = []
    with DecodeSandbox(REQUEST, decoder="pyav") as sandbox:
        for file in (name, reference):
            path = assets / "faults" / "videos" / file
            if not path.exists():
                pytest.skip(f"no {path}")
            with path.open("rb") as opened:
                video = sandbox.decode(opened)
            assert video.status == "ok"
            vectors.append(embedding(backbone, video.frames))
    assert float(vectors[0] @ vectors[1]) >= least
