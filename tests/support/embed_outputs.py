"""Run the embed job step by step without Ray: objects whose bytes say their outcome, and a tiny fake model."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe import schema
from raypipe.config.embed import Gone
from raypipe.dataset.commit import describe_shard, missing_shards, put_shard, seal, unsealed_plans
from raypipe.dataset.plan import PlannedVideo, StoredPlans, fingerprint, gone_flags, planned_videos, read_plan
from raypipe.dataset.planner import Planner, Retry
from raypipe.dataset.verify import Violation
from raypipe.jobs.embed import shard as work
from raypipe.jobs.embed.inputs import Planning, pack, plan_listing
from raypipe.models.backbones import Crops
from raypipe.runs.stages import output_rows
from raypipe.status import HAS_FRAMES, Status
from raypipe.storage import Folder, s3_client
from raypipe.video.sandbox.parent import DecodedVideo

DIM = 8
CROP = 4
SETTINGS: Mapping[str, Any] = {
    "format": schema.ROW_FORMAT,
    "vectors": "float32",
    "backbone": "tiny",
    "sampling": {"mode": "uniform", "num_frames": 3},
}
MARK = fingerprint(SETTINGS)
PACK = partial(pack, max_videos=3, max_frames=64, frames_per_video=4, slots=1)
VERSIONS = {"raypipe": "test"}


def content(status: str = "ok", *, num_frames: int = 3, seed: int = 0) -> bytes:
    """Return the bytes of a video that decodes to this outcome."""
    return f"{status} {num_frames if status in HAS_FRAMES else 0} {seed}".encode()


def upload(folder: Folder, videos: Mapping[str, bytes]) -> None:
    """Put objects by name."""
    for name, data in videos.items():
        assert folder.put_new(name, data)


def replace_object(folder: Folder, name: str, data: bytes | None) -> None:
    """Overwrite or delete an object, which raypipe itself never does."""
    uri = folder.child(name)
    if not uri.startswith("s3://"):
        path = Path(uri)
        path.unlink(missing_ok=True)
        if data is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return
    bucket, key = s3_client.split(uri)
    client = s3_client.client()
    if data is None:
        s3_client.call(partial(client.delete_object, Bucket=bucket, Key=key))
    else:
        s3_client.call(partial(client.put_object, Bucket=bucket, Key=key, Body=data))


def video(name: str = "a.mp4", *, etag: str = "e1", size_bytes: int = 10, is_gone: bool = False) -> PlannedVideo:
    """Return a planned video whose object does not exist."""
    return PlannedVideo(name, f"s3://nowhere/{name}", etag, size_bytes, is_gone=is_gone)


class FakeSandbox:
    """A fake sandbox that decodes what ``content`` wrote, and fails on any other bytes."""

    def decode(self, file: BinaryIO, *, part: object = None) -> DecodedVideo:
        """Return the outcome that the bytes name."""
        assert part is None
        word, number, seed = file.read().decode().split()
        return decoded(Status(word), num_frames=int(number), seed=int(seed))

    def isolation(self) -> dict[str, bool]:
        """Return nothing."""
        return {}


def decoded(status: Status = Status.OK, *, num_frames: int = 3, seed: int = 0) -> DecodedVideo:
    """Return a decoded video of random pixels."""
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, CROP, CROP, 3), dtype=np.uint8)
    error = "" if status in HAS_FRAMES else f"it is {status}"
    pts = np.arange(num_frames) / 10
    return DecodedVideo(status, error, "fake", pts, frames, "mov", "h264", 64, 48, num_frames / 10, 10.0)


def embed(frames: npt.NDArray[np.uint8] | Crops) -> npt.NDArray[np.float32]:
    """Embed like a model: [N, CROP, CROP, 3] to [N, DIM]."""
    pixels = frames[:].reshape(len(frames), CROP * CROP * 3).astype(np.float32) / 255
    weights = np.random.default_rng(1).standard_normal((CROP * CROP * 3, DIM))
    return (pixels @ weights).astype(np.float32)


def planner(output: Folder, settings: Mapping[str, Any] = SETTINGS, *, input_uri: str = "") -> Planner:
    """Return a planner that has loaded the stored plans."""
    made = Planner(StoredPlans(output), settings, input_uri)
    made.load()
    return made


def plan_new(
    source: str, output: Folder, *, retry: Retry = "none", gone: Gone = "auto", max_gone_fraction: float = 0.2
) -> list[int]:
    """Plan what is new and what is gone, and return the numbers of the plans stored."""
    planning = Planning.load(StoredPlans(output), SETTINGS, source, retry=retry, gone=gone)
    return plan_listing(planning, max_gone_fraction=max_gone_fraction, pack=PACK)


def made_rows(rows: pa.Table, statuses: Sequence[str]) -> pa.Table:
    """Return the rows of a shard's file without decoding; each status that has frames gets three."""
    outcomes = [
        decoded(Status(status), num_frames=3 * (status in HAS_FRAMES), seed=at) for at, status in enumerate(statuses)
    ]
    zeros = [0.0] * len(outcomes)
    table = work.decoded_table(rows, outcomes, fetch_seconds=zeros, decode_seconds=zeros)
    return output_rows(work.embed_shard(table, embed, embedding_dim=DIM, crop_size=CROP), schema.embeddings_schema(DIM))


def commit_statuses(output: Folder, statuses: Mapping[str, str], *, sealed: bool = True) -> None:
    """Commit every missing shard without videos; ``statuses`` maps ``video_id``, with ``ok`` or ``gone`` by default."""
    for rows in missing_shards(StoredPlans(output), unsealed_plans(output)):
        plan, shard = rows[schema.GENERATION][0].as_py(), rows[schema.SHARD][0].as_py()
        planned = zip(rows[schema.VIDEO_ID].to_pylist(), gone_flags(rows), strict=True)
        wanted = ["gone" if is_gone else statuses.get(video_id, "ok") for video_id, is_gone in planned]
        assert commit(output, made_rows(rows, wanted), plan=plan, shard=shard)
    if sealed:
        assert all(seal(StoredPlans(output), number, versions=VERSIONS) for number in unsealed_plans(output))


def shard_rows(rows: pa.Table) -> pa.Table:
    """Decode and embed one shard of a plan; return the rows of its file, with the right generation."""
    done = work.decode_shard(rows, FakeSandbox(), max_size_bytes=2**20)  # type: ignore[arg-type]
    done = work.embed_shard(done, embed, embedding_dim=DIM, crop_size=CROP)
    return output_rows(done, schema.embeddings_schema(DIM))


def commit(output: Folder, rows: pa.Table, *, plan: int, shard: int, mark: str = MARK) -> bool:
    """Put rows as a shard's file."""
    return put_shard(output, rows, describe_shard(rows, plan=plan, shard=shard, fingerprint=mark))


def finish(output: Folder, *, sealed: bool = True) -> None:
    """Commit every missing shard, and seal."""
    for rows in missing_shards(StoredPlans(output), unsealed_plans(output)):
        plan, shard = rows[schema.GENERATION][0].as_py(), rows[schema.SHARD][0].as_py()
        assert commit(output, shard_rows(rows), plan=plan, shard=shard)
    if sealed:
        assert all(seal(StoredPlans(output), number, versions=VERSIONS) for number in unsealed_plans(output))


def embed_all(source: Folder, output: Folder, *, retry: Retry = "none", gone: Gone = "auto") -> list[int]:
    """Run the whole job."""
    numbers = plan_new(source.uri, output, retry=retry, gone=gone)
    finish(output)
    return numbers


def places(folder: Folder) -> tuple[Folder, Folder]:
    """Return an input and an output next to each other."""
    return Folder(folder.child("in")), Folder(folder.child("out"))


def planned(output: Folder, numbers: Sequence[int]) -> list[PlannedVideo]:
    """Return the videos of some plans, in order."""
    return [one for number in numbers for one in planned_videos(read_plan(output, number).rows)]


def make_output(folder: Folder) -> Folder:
    """Make two sealed plans: one of three shards with two videos each, where one failed, and one of one video."""
    source, output = places(folder)
    upload(source, {f"{number}.mp4": content(seed=number) for number in range(5)} | {"5.mp4": content("timeout")})
    assert plan_new(source.uri, output) == [0]
    finish(output)
    upload(source, {"new.mp4": content("partial", num_frames=2, seed=9)})
    assert embed_all(source, output) == [1]
    return output


def names_violation(found: Sequence[Violation], check: str, *data: object) -> bool:
    """Return whether a violation of this check names all the data, each as a separate word."""
    words = [rf"(?<![\w.-]){re.escape(str(item))}(?![\w-])" for item in data]
    return any(one.check == check and all(re.search(word, one) for word in words) for one in found)
