"""Compare the Parquet file with an independent reference: PyAV's frames, torchvision's transform and model."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from raypipe import schema
from raypipe.jobs.embed.shard import decode_shard, embed_shard
from raypipe.models.backbone import Backbone
from raypipe.models.backbones import Dtype
from raypipe.models.weights import prepare_torchvision, resolve_weights
from raypipe.runs.stages import output_rows
from raypipe.storage import Folder
from raypipe.video.sandbox.parent import DecodeSandbox
from support.decoding import resnet_request
from support.videos import make_video

NUM_FRAMES = 4
REQUEST = resnet_request(NUM_FRAMES)
REAL_CLIPS = (
    "torchcodec_test_resources_h264_10bits.mp4",
    "torchcodec_test_resources_h265_video.mp4",
    "torchcodec_test_resources_av1_video.mkv",
    "torchcodec_test_resources_bt709_full_range.mp4",
    "torchcodec_test_resources_nasa_13013.mp4",
    "imageio_test_images_test.webm",
    "mmaction2_demo_demo_skeleton.mp4",
    "mmaction2_tests_data_test.avi",
    "clip-video-encode_tests_test_videos_vid2.mp4",
    "intel_sample-videos_asl_gestures_walk.mkv",
)


@pytest.fixture(scope="module")
def clips(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Put real clips of several codecs and a generated one into a folder."""
    folder = Folder(str(tmp_path_factory.mktemp("clips")))
    for name in REAL_CLIPS:
        folder.put_new(name, (assets / "videos" / name).read_bytes())
    folder.put_new("generated.mp4", make_video(shade=90, num_frames=30, size=320))
    return folder


@pytest.fixture(scope="module")
def weights(assets: Path) -> str:
    """Return trained weights: embeddings of random weights barely change with the picture."""
    return str(assets / "weights" / "resnet18_imagenet.safetensors")


Images = list[npt.NDArray[np.uint8]]
Times = npt.NDArray[np.float64]


def reference_frames(path: Path) -> tuple[Images, Times, Times, float]:
    """Decode all frames with PyAV, full size and upright, and keep the frame nearest to the centre of each equal span.

    Also return their times, the requested times, and half the longest time that a frame is shown.
    """
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        frames = list(container.decode(stream))
        if container.format.name == "avi":  # stores no times, so frames are equally spaced
            seconds = np.arange(len(frames)) / float(stream.average_rate)
        else:
            frames.sort(key=lambda frame: frame.pts)
            seconds = np.array([float((frame.pts - frames[0].pts) * stream.time_base) for frame in frames])
        duration = seconds[-1] + seconds[-1] / max(1, len(frames) - 1)
        asked = (np.arange(NUM_FRAMES) + 0.5) * duration / NUM_FRAMES
        nearest = [int(np.abs(seconds - one).argmin()) for one in asked]
        images = [np.rot90(frames[at].to_ndarray(format="rgb24"), frames[at].rotation // 90) for at in nearest]
        half_frame = float(np.diff(seconds).max()) / 2
        return [np.ascontiguousarray(image) for image in images], seconds[nearest], asked, half_frame


def reference_vectors(images: list[npt.NDArray[np.uint8]], state_dict: dict[str, Any]) -> npt.NDArray[np.float32]:
    """Embed with torchvision's own model and its weights' transform, in float32, one frame at a time."""
    prepare_torchvision()
    from torchvision.models import ResNet18_Weights, resnet18  # noqa: PLC0415  # importable only now

    model = resnet18(weights=None).eval()
    tensors = {name: torch.tensor(array) for name, array in state_dict.items()}
    model.load_state_dict(tensors, strict=False)
    model.fc = torch.nn.Identity()
    transform = ResNet18_Weights.DEFAULT.transforms()
    with torch.inference_mode():
        return np.concatenate(
            [model(transform(torch.from_numpy(image).permute(2, 0, 1))[None]).numpy() for image in images]
        )


def plan_rows(folder: Folder) -> pa.Table:
    stored = sorted(folder.list(), key=lambda one: one.key)
    return pa.table(
        {
            schema.VIDEO_ID: [one.key for one in stored],
            schema.VIDEO_URI: [one.uri for one in stored],
            schema.ETAG: [one.etag for one in stored],
            schema.SIZE_BYTES: pa.array([one.size_bytes for one in stored], pa.int64()),
            schema.SHARD: pa.array([0] * len(stored), pa.int32()),
            schema.GENERATION: pa.array([0] * len(stored), pa.int32()),
        }
    )


def cosines(left: npt.NDArray[np.float32], right: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return (left * right).sum(1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1))


@pytest.mark.parametrize(
    ("dtype", "least", "num_clips"),
    [
        ("float32", 0.99, 3),
        pytest.param("float32", 0.99, 11, marks=pytest.mark.slow),
        pytest.param("bfloat16", 0.98, 3, marks=pytest.mark.slow),  # slow on a CPU without bfloat16
    ],
)
def test_vectors_equal_an_independent_reference(
    clips: Folder, weights: str, dtype: Dtype, least: float, num_clips: int
) -> None:
    state = resolve_weights("resnet18", weights, read_bytes=lambda uri: Path(uri).read_bytes()).state_dict
    backbone = Backbone(state, name="resnet18", dtype=dtype)
    with DecodeSandbox(REQUEST, decoder="pyav") as sandbox:
        decoded = decode_shard(plan_rows(clips).slice(0, num_clips), sandbox, max_size_bytes=2**30)
    embedded = embed_shard(decoded, backbone.embed, embedding_dim=512, crop_size=REQUEST.crop_size)
    rows = output_rows(embedded, schema.embeddings_schema(512)).to_pylist()
    assert len(rows) == num_clips
    for row in rows:
        assert row[schema.STATUS] == "ok", row
        images, taken, asked, half_frame = reference_frames(Path(row[schema.VIDEO_URI]))
        pts = np.array(row[schema.FRAME_PTS_SECONDS])
        assert np.abs(pts - taken).max() < 1e-4, row[schema.VIDEO_ID]
        assert np.abs(pts - asked).max() <= half_frame + 1e-4, row[schema.VIDEO_ID]
        expected = reference_vectors(images, dict(state))
        found = np.array(row[schema.FRAME_EMBEDDINGS], dtype=np.float32)
        assert cosines(found, expected).min() >= least, (row[schema.VIDEO_ID], cosines(found, expected))
