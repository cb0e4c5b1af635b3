"""Which rows of an output of row format 1 would change under the rules of format 2."""

import io
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest

from raypipe import schema
from raypipe.cli import app
from raypipe.config import DecodeConfig
from raypipe.dataset.commit import describe_shard, missing_shards, put_shard, seal
from raypipe.dataset.plan import StoredPlans, fingerprint
from raypipe.dataset.read import read_embeddings
from raypipe.jobs.embed import shard as work
from raypipe.jobs.embed.inputs import find_videos
from raypipe.jobs.embed.verify import RecheckedRow, recheck_inputs, verify
from raypipe.runs.stages import output_rows
from raypipe.storage import Folder
from raypipe.video.decode_request import request_of_settings
from raypipe.video.sandbox.parent import DecodeSandbox
from support.embed_outputs import CROP, DIM, PACK, VERSIONS, embed, planner
from support.videos import make_video

SETTINGS = {
    "format": 1,
    "backbone": "tiny",
    "sampling": {"mode": "uniform", "num_frames": 3, "nearest_keyframe": False},
    "resize_size": CROP,
    "crop_size": CROP,
}
OLD_ROWS = schema.embeddings_schema(DIM, row_format=1, vectors="float16")


def wide_pixels() -> bytes:
    """Return a video whose pixels are twice as wide as high."""
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"threads": "1", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        for number in range(10):
            picture = np.full((48, 64, 3), 20 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return data.getvalue()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return a sealed output of row format 1: an ordinary video, one with wide pixels, and one that is gone by now."""
    place = tmp_path_factory.mktemp("recheck")
    source, output = Folder(str(place / "in")), Folder(str(place / "out"))
    for name, data in {
        "gone.mp4": make_video(shade=3),
        "usual.mp4": make_video(shade=9),
        "wide.mp4": wide_pixels(),
    }.items():
        assert source.put_new(name, data)
    made = planner(output, SETTINGS, input_uri=source.uri)
    made.store(made.new_videos(find_videos(source.uri, output_uri=output.uri)), pack=PACK)
    request = request_of_settings(SETTINGS, DecodeConfig(max_pixels=10**6, max_duration_seconds=60))
    assert request.row_format == 1
    with DecodeSandbox(request, decoder="pyav") as sandbox:
        for rows in missing_shards(StoredPlans(output), [0]):
            put_shard(output, _finished(rows, sandbox), _about(_finished(rows, sandbox), rows))
    assert seal(StoredPlans(output), 0, versions=VERSIONS)
    Path(source.child("gone.mp4")).unlink()
    return output


def _finished(rows: pa.Table, sandbox: DecodeSandbox) -> pa.Table:
    decoded = work.decode_shard(rows, sandbox, max_size_bytes=2**20)
    embedded = work.embed_shard(decoded, embed, embedding_dim=DIM, crop_size=CROP)
    return output_rows(embedded, OLD_ROWS)


def _about(finished: pa.Table, rows: pa.Table) -> Any:  # noqa: ANN401 - passed on
    shard = rows[schema.SHARD][0].as_py()
    return describe_shard(finished, plan=0, shard=shard, fingerprint=fingerprint(SETTINGS))


def test_rows_of_format_1_keep_its_columns(output: Folder) -> None:
    rows = pa.concat_tables(read_embeddings(output))
    assert schema.NUM_CORRUPT_FRAMES not in rows.column_names
    assert rows.schema.remove_metadata() == OLD_ROWS
    assert not verify(output).violations


def test_rows_that_change_are_listed(output: Folder) -> None:
    found = {row.video_id: row for row in recheck_inputs(output, SETTINGS, decode=DecodeConfig(), num_workers=2)}
    assert found["usual.mp4"] == RecheckedRow("usual.mp4", found["usual.mp4"].video_uri)
    assert any({"64", "48", "128"} <= set(re.findall(r"\d+", change)) for change in found["wide.mp4"].changes)
    assert found["gone.mp4"].changes == ()
    assert "missing" in found["gone.mp4"].problem


def test_verify_lists_them(output: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["verify", output.uri, "--inputs"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "wide.mp4" in said
    assert "gone.mp4" in said
    assert "usual.mp4" not in said
