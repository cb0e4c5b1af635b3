"""The index command on a real S3 server, and builds that get killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from raypipe import cli
from raypipe.dataset.footer import parquet_bytes
from raypipe.demo.s3_server import S3Server
from raypipe.search.index import VideoIndex
from raypipe.search.versions import Versions
from raypipe.storage import Folder
from support.folders import keys
from support.train_runs import embed_all, video_ids

pytestmark = pytest.mark.slow
# A build that is killed just before it puts the first object whose name ends with the first argument.
KILLED = """
import os, signal, sys
from raypipe.storage import Folder

def dying(method):
    def call(self, name, data):
        if name.endswith(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, name, data)
    return call

Folder.put_new, Folder.put = dying(Folder.put_new), dying(Folder.put)
from raypipe.cli import app
app(["index", *sys.argv[2:]])
"""


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.app(list(arguments))
    return int(left.value.code or 0)


def num_videos(output: Folder, cache: Path) -> int:
    versions = Versions(output)
    version = versions.require_current()
    return len(VideoIndex.load(versions.fetch(version, cache), versions.read_manifest(version)).items)


def test_the_command(
    bucket: str, s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    place = Folder(bucket)
    embeddings, output = Folder(place.child("embeddings")), Folder(place.child("index"))
    embed_all(embeddings, video_ids(24))
    place.put("catalogue.csv", b"video_id,title,published_at\ncat/000.mp4,A cat,2024-05-31\nno/such.mp4,,\n")
    catalogue = place.child("catalogue.csv")
    arguments = ("index", "--embeddings", embeddings.uri, "--catalog", catalogue, "--output", output.uri)
    assert run(*arguments) == 0
    told = capsys.readouterr().out
    version = Versions(output).current()
    assert version
    for said in (version, "24", "flat, 16 of 16", "1.0000", "1 catalogue row ", "23 videos not in the"):
        assert said in told
    names = ("index.faiss", "items.parquet", "manifest.json", "projection.safetensors", "thumbnails.arrow")
    assert keys(output, "versions/") == [
        f"versions/{version}/{name}" for name in ("embeddings.npy", *names, "vectors.npy")
    ]

    options = {
        "aws_endpoint_url": s3.endpoint_url,
        "aws_access_key_id": s3.access_key,
        "aws_secret_access_key": s3.secret_key,
        "aws_region": "us-east-1",
        "aws_allow_http": "true",
    }
    items = pl.read_parquet(output.child(f"versions/{version}/items.parquet"), storage_options=options)
    assert items.filter(pl.col("title") == "A cat")["published_at"].dt.year().to_list() == [2024]

    assert run(*arguments, "--append") == 0
    assert capsys.readouterr().out.strip() == f"Nothing new: version {version} of {output.uri} holds all of it."
    assert run("index", "--embeddings", place.child("nothing"), "--output", output.uri) == 1
    assert "raypipe embed" in capsys.readouterr().err
    assert run(*arguments, "--set", "index.dim=0") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: index.dim=0: ")
    assert said.count("\n") == 1

    embed_all(embeddings, video_ids(30)[24:])
    assert run(*arguments, "--append") == 0
    assert "6 new, 0 embedded again, 0 gone" in capsys.readouterr().out
    assert Versions(output).rollback() == version
    assert num_videos(output, tmp_path) == 24


@pytest.mark.parametrize("name", ["vectors.npy", "manifest.json", "CURRENT", "successors.arrow"])
def test_a_killed_build_leaves_the_index_as_it_was(
    bucket: str, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    place = Folder(bucket)
    embeddings, output = Folder(place.child("embeddings")), Folder(place.child("index"))
    embed_all(embeddings, video_ids(24))
    arguments, address = ["--embeddings", embeddings.uri, "--output", output.uri], ""
    if name == "successors.arrow":  # a history that is counted on Ray
        address = request.getfixturevalue("ray_address")
        rows = pa.table({"user_id": ["a", "b"], "history": [video_ids(24)[:9], video_ids(24)[5:]]})
        place.put("history.parquet", parquet_bytes(rows, {}))
        arguments += ["--history", place.child("history.parquet"), "--set", "events.in_process=0"]
    assert run("index", *arguments) == 0
    first = Versions(output).current()
    embed_all(embeddings, video_ids(30)[24:])
    (tmp_path / "work").mkdir()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, name, *arguments],
        env={**os.environ, "TMPDIR": str(tmp_path / "work"), "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert Versions(output).current() == first
    assert len({key.split("/")[1] for key in keys(output, "versions/")}) == 2, "part of a version is there"
    assert len(Versions(output).list()) == (2 if name == "CURRENT" else 1)
    assert num_videos(output, tmp_path / "cache") == 24
    assert run("index", *arguments, "--append") == 0
    assert Versions(output).current() != first
    assert num_videos(output, tmp_path / "cache") == 30
