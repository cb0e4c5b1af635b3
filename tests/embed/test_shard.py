"""Process a whole shard: rows stay in the plan's order, and every failure of a video is its own row."""

import io
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raypipe import schema
from raypipe.dataset.plan import PlannedVideo, planned_videos
from raypipe.errors import JobError, StorageError
from raypipe.jobs.embed.inputs import pack
from raypipe.jobs.embed.shard import (
    FRAMES,
    NUM_THROTTLES,
    decode_shard,
    decoded_table,
    embed_shard,
    mean_embeddings,
    summarize,
    thumbnail,
)
from raypipe.models.backbones import Crops
from raypipe.runs.stages import output_rows
from raypipe.status import HAS_FRAMES, Status
from raypipe.storage import Folder, s3_client
from support.embed_outputs import CROP, DIM, FakeSandbox, content, decoded, embed, upload
from support.properties import examples

OUTCOMES = [("ok", 3), ("timeout", 0), ("partial", 1), ("decode_error", 0), ("ok", 5)]


def planned(videos: Sequence[PlannedVideo], *, generation: int = 4) -> pa.Table:
    rows = pack(videos, max_videos=100, max_frames=1000, frames_per_video=1, slots=1)
    return rows.append_column(schema.GENERATION, pa.repeat(pa.scalar(generation, pa.int32()), rows.num_rows))


def named(count: int) -> pa.Table:
    return planned([PlannedVideo(f"{at}.mp4", f"s3://nowhere/{at}.mp4", f"e{at}", 100 - at) for at in range(count)])


def decoded_rows(outcomes: Sequence[tuple[str, int]]) -> pa.Table:
    videos = [decoded(Status(status), num_frames=count, seed=at) for at, (status, count) in enumerate(outcomes)]
    seconds = [float(at) for at in range(len(outcomes))]
    return decoded_table(named(len(outcomes)), videos, fetch_seconds=seconds, decode_seconds=seconds)


def embedded_rows(rows: pa.Table) -> pa.Table:
    return embed_shard(rows, embed, embedding_dim=DIM, crop_size=CROP)


def test_videos_are_decoded_in_the_order_of_the_plan(folder: Folder) -> None:
    upload(
        folder,
        {
            "a.mp4": content("ok", num_frames=3, seed=1),
            "b.mp4": content("no_video_stream"),
            "c.mp4": content("partial", num_frames=2, seed=2),
            "large.mp4": b"x" * 500,
        },
    )
    videos = [PlannedVideo.of(stored) for stored in folder.list()]
    videos += [PlannedVideo("gone.mp4", folder.child("gone.mp4"), "e", 50)]
    rows = planned(videos)
    done = decode_shard(rows, FakeSandbox(), max_size_bytes=400)  # type: ignore[arg-type]
    for column in (schema.VIDEO_ID, schema.VIDEO_URI, schema.ETAG, schema.SIZE_BYTES, schema.GENERATION, schema.SHARD):
        assert done[column].equals(rows[column])
    found = {row[schema.VIDEO_ID]: row for row in done.to_pylist()}
    assert {name: (row[schema.STATUS], row[schema.NUM_FRAMES]) for name, row in found.items()} == {
        "a.mp4": ("ok", 3),
        "b.mp4": ("no_video_stream", 0),
        "c.mp4": ("partial", 2),
        "large.mp4": ("too_large", 0),
        "gone.mp4": ("missing", 0),
    }
    assert found["a.mp4"][schema.ERROR] is None
    assert found["b.mp4"][schema.ERROR] == "it is no_video_stream"
    assert found["gone.mp4"][schema.ERROR].startswith(folder.child("gone.mp4"))
    assert found["c.mp4"][FRAMES] == decoded(num_frames=2, seed=2).frames.tobytes()
    assert (found["c.mp4"][schema.CODEC], found["c.mp4"][schema.WIDTH]) == ("h264", 64)
    assert [found["gone.mp4"][name] for name in (schema.CODEC, schema.WIDTH, schema.DECODER, schema.AVERAGE_FPS)] == [
        None
    ] * 4
    assert found["gone.mp4"][FRAMES] == b""
    assert found["gone.mp4"][schema.FRAME_PTS_SECONDS] == []


def test_an_error_of_the_storage_ends_the_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> int:
        msg = "no such bucket"
        raise StorageError(msg)

    monkeypatch.setattr("raypipe.jobs.embed.fetch.read_object", fail)
    with pytest.raises(StorageError):
        decode_shard(named(3), FakeSandbox(), max_size_bytes=400)  # type: ignore[arg-type]


def test_rows_without_frames_have_no_vectors() -> None:
    rows = output_rows(embedded_rows(decoded_rows(OUTCOMES)), schema.embeddings_schema(DIM))
    assert rows.schema == schema.embeddings_schema(DIM)
    rows.validate(full=True)
    for (status, count), row in zip(OUTCOMES, rows.to_pylist(), strict=True):
        assert (row[schema.STATUS], row[schema.NUM_FRAMES]) == (status, count)
        assert len(row[schema.FRAME_EMBEDDINGS]) == len(row[schema.FRAME_PTS_SECONDS]) == count
        assert (row[schema.EMBEDDING] is None) == (row[schema.THUMBNAIL] is None) == (status not in HAS_FRAMES)


def test_every_frame_is_embedded_once_and_in_one_batch() -> None:
    batches: list[int] = []

    def count(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        batches.append(len(frames))
        return embed(frames)

    done = embed_shard(decoded_rows(OUTCOMES), count, embedding_dim=DIM, crop_size=CROP)
    assert batches == [9]
    for at, (_, frames) in enumerate(OUTCOMES):
        vectors = embed(decoded(num_frames=frames, seed=at).frames)
        found = np.array(done[schema.FRAME_EMBEDDINGS][at].as_py(), dtype=np.float32).reshape(frames, DIM)
        assert np.array_equal(found, vectors.astype(np.float16).astype(np.float32))
    assert FRAMES not in done.column_names


def test_frames_are_embedded_where_they_were_decoded() -> None:
    videos = [decoded(num_frames=2, seed=at) for at in range(3)]
    rows = decoded_table(named(3), videos, fetch_seconds=[0] * 3, decode_seconds=[0] * 3)
    seen: list[npt.NDArray[np.uint8]] = []

    def see(frames: Crops) -> npt.NDArray[np.float32]:
        seen.extend(frames[at : at + 2] for at in (0, 2, 4))
        return embed(frames)

    embed_shard(rows, see, embedding_dim=DIM, crop_size=CROP)
    assert all(np.shares_memory(frames, video.frames) for frames, video in zip(seen, videos, strict=True))


def test_a_shard_without_any_frame_is_embedded_too() -> None:
    done = embedded_rows(decoded_rows([("timeout", 0), ("crashed", 0)]))
    rows = output_rows(done, schema.embeddings_schema(DIM))
    assert rows[schema.EMBEDDING].null_count == 2
    assert rows[schema.FRAME_EMBEDDINGS].to_pylist() == [[], []]
    assert len(summarize(done).failures) == 2


@settings(max_examples=examples(60))
@given(outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=8), data=st.data(), chunks=st.integers(1, 3))
def test_a_slice_of_a_shard_is_embedded_as_if_it_were_alone(
    outcomes: list[tuple[str, int]], data: st.DataObject, chunks: int
) -> None:
    whole = decoded_rows(outcomes)
    start = data.draw(st.integers(0, len(outcomes) - 1))
    stop = data.draw(st.integers(start + 1, len(outcomes)))
    bounds = sorted({start, stop, *data.draw(st.lists(st.integers(start, stop), max_size=chunks))})
    pieces = [whole.slice(at, until - at) for at, until in pairwise(bounds)]
    found = output_rows(embedded_rows(pa.concat_tables(pieces)), schema.embeddings_schema(DIM))
    found.validate(full=True)
    expected = output_rows(embedded_rows(whole), schema.embeddings_schema(DIM)).slice(start, stop - start)
    assert found.to_pylist() == expected.to_pylist()


@settings(max_examples=examples(100))
@given(lengths=st.lists(st.integers(0, 5), max_size=8), seed=st.integers(0, 2**32), scale=st.floats(1e-3, 1e3))
def test_the_mean_is_that_of_numpy_at_length_one(lengths: list[int], seed: int, scale: float) -> None:
    vectors = (np.random.default_rng(seed).standard_normal((sum(lengths), DIM)) * scale).astype(np.float32)
    stops = np.cumsum([0, *lengths], dtype=np.int32)
    means = mean_embeddings(vectors, stops)
    assert means.shape == (len(lengths), DIM)
    assert means.dtype == np.float32
    for at, length in enumerate(lengths):
        expected = np.zeros(DIM)
        if length:
            mean = vectors[stops[at] : stops[at + 1]].astype(np.float64).mean(axis=0)
            expected = mean / np.linalg.norm(mean)
        assert np.allclose(means[at], expected, atol=1e-5)


def test_vectors_too_large_for_the_file_are_cut_before_their_mean_is_taken() -> None:
    def huge(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        vectors = np.ones((len(frames), DIM), np.float32)
        vectors[:, 0] = np.inf
        return vectors

    rows = embed_shard(decoded_rows(OUTCOMES), huge, embedding_dim=DIM, crop_size=CROP)
    assert rows[schema.FRAME_EMBEDDINGS][0].as_py()[0][0] == 65_504
    expected = np.array([65_504, *[1] * (DIM - 1)]) / np.linalg.norm([65_504, *[1] * (DIM - 1)])
    assert np.allclose(rows[schema.EMBEDDING][0].as_py(), expected, atol=1e-6)


def test_vectors_that_are_not_numbers_are_never_committed() -> None:
    def broken(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return np.full((len(frames), DIM), np.nan, np.float32)

    with pytest.raises(JobError) as caught:
        embed_shard(decoded_rows(OUTCOMES), broken, embedding_dim=DIM, crop_size=CROP)
    assert caught.value.key == schema.FRAME_EMBEDDINGS
    assert "dtype" in caught.value.remedy


def test_a_thumbnail_is_a_small_jpeg_of_the_middle_frame() -> None:
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    frames[1] = (250, 10, 10)
    jpeg = thumbnail(frames)
    assert jpeg
    picture = Image.open(io.BytesIO(jpeg))
    assert (picture.format, picture.size) == ("JPEG", (160, 160))
    assert np.allclose(np.asarray(picture)[80, 80], (250, 10, 10), atol=12)
    assert thumbnail(frames[:0]) is None


def test_the_rows_of_a_plan_become_videos_again() -> None:
    videos = [PlannedVideo("a", "s3://b/a", "e1", 2), PlannedVideo("ü", "s3://b/ü", "", 1)]
    assert planned_videos(planned(videos)) == videos


def test_a_summary_adds_up() -> None:
    done = embedded_rows(decoded_rows(OUTCOMES))
    summary = summarize(done)
    assert summary.size_bytes == 100 + 99 + 98 + 97 + 96
    assert {stage: summary.stage_seconds[stage] for stage in ("fetch", "decode")} == {"fetch": 10.0, "decode": 10.0}
    assert summary.stage_seconds["embed"] > 0
    assert [note.video_id for note in summary.slowest] == ["4.mp4", "3.mp4", "2.mp4"]
    assert [note.seconds for note in summary.slowest] == [8.0, 6.0, 4.0]
    assert [(note.video_id, note.status, note.error) for note in summary.failures] == [
        ("1.mp4", "timeout", "it is timeout"),
        ("3.mp4", "decode_error", "it is decode_error"),
    ]
    assert [name for name, _ in summary.thumbnails] == ["0.mp4", "4.mp4"]
    assert all(jpeg.startswith(b"\xff\xd8\xff") for _, jpeg in summary.thumbnails)
    assert summary.problem == ""
    assert (summary.wait_seconds, summary.num_throttles) == (0.0, 0)


def test_throttling_while_a_shard_is_fetched_is_recorded_with_its_rows(folder: Folder) -> None:
    upload(folder, {"a.mp4": content("ok"), "b.mp4": content("ok", seed=1)})
    rows = planned([PlannedVideo.of(stored) for stored in folder.list()])
    s3_client.take_throttles()
    for _ in range(2):
        s3_client._count_throttle((None, {"ResponseMetadata": {"HTTPStatusCode": 503}}))
    done = decode_shard(rows, FakeSandbox(), max_size_bytes=400)  # type: ignore[arg-type]
    assert done[NUM_THROTTLES].to_pylist() == [2, 0]
    assert decode_shard(rows, FakeSandbox(), max_size_bytes=400)[NUM_THROTTLES].to_pylist() == [0, 0]  # type: ignore[arg-type]


def test_a_summary_has_the_waiting_time_and_the_number_of_s3_throttles() -> None:
    rows = decoded_table(
        named(2), [decoded(seed=at) for at in range(2)], fetch_seconds=[0, 0], decode_seconds=[0, 0], num_throttles=3
    )
    done = embed_shard(rows, embed, embedding_dim=DIM, crop_size=CROP, wait_seconds=1.5)
    summary = summarize(done)
    assert (summary.wait_seconds, summary.num_throttles) == (1.5, 3)
    assert summary.stage_seconds.keys() == {"fetch", "decode", "embed"}, "waiting is no work"
