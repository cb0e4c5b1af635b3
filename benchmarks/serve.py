"""The endpoint beside the pattern of Ray Serve's documentation, under load, in one run on one machine.

    python benchmarks/serve.py [--videos 100000] [--seconds 8] [--connections 1 16 64] [--quick]

The pattern is a FastAPI ingress that hands each request to a deployment which searches with faiss in batches
(``@serve.batch``), at Serve's defaults but for ``max_ongoing_requests``, without which no batch fills: two replicas in
all. raypipe searches inside its ingress, and has two replicas of it; it is measured behind Serve's Python proxy and,
where its binary is there, behind HAProxy. All search the same faiss file. ``similar`` asks for the 10 nearest of a
random video; ``recommend`` sends a history of 10 and a category, and takes 20. The load is ``wrk`` (``apt-get install
wrk``) on this machine, so that it takes its share of the processors from each. Answers of raypipe hold the videos'
fields and why each is there; the pattern's ids and scores.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from _common import describe_machine, print_table
from fastapi import FastAPI
from ray import serve

from raypipe.config import IndexSettings
from raypipe.endpoint.haproxy import find_binary
from raypipe.free_ports import free_ports
from raypipe.search.build import build_version
from raypipe.search.index import VideoIndex
from raypipe.search.versions import Versions
from raypipe.storage import Folder

DIM, CATEGORIES, CLUSTERS = 256, 20, 400
TARGETS = {"similar": 10.0, "recommend": 5.0}
_BATCH = 8192

_SIMILAR = """
math.randomseed(7)
request = function()
  return wrk.format("GET", string.format("%s/video-%07d?top_k=10", "{path}", math.random(0, {videos} - 1)))
end
"""
_RECOMMEND = """
math.randomseed(7)
local headers = {{["Content-Type"] = "application/json"}}
request = function()
  local ids = {{}}
  for n = 1, 10 do ids[n] = string.format('"video-%07d"', math.random(0, {videos} - 1)) end
  local category = string.format("category-%02d", math.random(0, {categories} - 1))
  local body = string.format('{{"history": [%s], "filters": {{"category": "%s"}}, "top_k": 20}}',
    table.concat(ids, ","), category)
  return wrk.format("POST", "{path}", headers, body)
end
"""


def write_index(folder: Path, count: int) -> None:
    """A version of an index of clustered vectors, as ``raypipe index`` would leave it."""
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, DIM), dtype=np.float32)

    def batches() -> Iterator[tuple[np.ndarray, list[None]]]:
        for start in range(0, count, _BATCH):
            random = np.random.default_rng([1, start])
            size = min(_BATCH, count - start)
            noise = random.standard_normal((size, DIM), dtype=np.float32)
            yield centres[random.integers(0, CLUSTERS, size)] + 0.8 * noise, [None] * size

    numbers = np.arange(count)
    items = pa.table(
        {
            "video_id": [f"video-{number:07d}" for number in numbers],
            "video_uri": [f"s3://videos/video-{number:07d}.mp4" for number in numbers],
            "etag": ["e"] * count,
            "generation": pa.array(np.zeros(count), pa.int32()),
            "duration_seconds": pa.array(numbers % 600, pa.float64()),
            "label": pa.nulls(count, pa.string()),
            "score": pa.nulls(count, pa.float32()),
            "title": [f"A video, number {number}" for number in numbers],
            "category": [f"category-{number % CATEGORIES:02d}" for number in numbers],
        }
    )
    with tempfile.TemporaryDirectory() as work:
        manifest = build_version(Path(work), items=items, batches=batches, settings=IndexSettings(), base=None)
        print(f"index: {manifest['kind']}, recall@10 {manifest['recall_at_10']:.3f}, {manifest['num_videos']} videos")
        embeddings = {"uri": "nowhere", "fingerprint": "0", "settings": {}}
        versions = Versions(Folder(str(folder)))
        versions.put(manifest["id"], Path(work), {**manifest, "previous": None, "embeddings": embeddings})
        versions.set_current(manifest["id"])


def plain(index: str, port: str) -> None:
    """The pattern of the documentation, until SIGINT."""
    api = FastAPI()

    @serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
    class Searcher:
        def __init__(self) -> None:
            versions = Versions(Folder(index))
            version = versions.current()
            folder = versions.fetch(version, Path(index) / "cache")
            self.index = VideoIndex.open(folder, versions.read_manifest(version))
            self.by_id = {self.index.items.video_id(at): at for at in range(len(self.index.items))}

        @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
        async def search(self, asked: list[tuple[list[str], str | None, int]]) -> list[list[dict]]:
            vectors = self.index.vectors
            answers: list[list[dict]] = [[] for _ in asked]
            groups: dict[str | None, list[int]] = {}
            for at, (_, category, _) in enumerate(asked):
                groups.setdefault(category, []).append(at)
            for category, members in groups.items():
                eligible = self.index.filters.eligible({"category": category}) if category else None
                queries = [
                    vectors[[self.by_id[one] for one in asked[at][0]]].astype(np.float32).mean(0) for at in members
                ]
                top_k = max(asked[at][2] for at in members) + 10
                scores, found = self.index.ann.search(np.stack(queries), top_k=top_k, eligible=eligible)
                for row, at in enumerate(members):
                    history, _, wanted = asked[at]
                    watched = {self.by_id[one] for one in history}
                    pairs = zip(found[row].tolist(), scores[row].tolist(), strict=True)
                    kept = [(one, score) for one, score in pairs if one >= 0 and one not in watched][:wanted]
                    answers[at] = [{"video_id": self.index.items.video_id(one), "score": score} for one, score in kept]
            return answers

    @serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
    @serve.ingress(api)
    class Ingress:
        def __init__(self, searcher: object) -> None:
            self.searcher = searcher

        @api.get("/similar/{video_id}")
        async def similar(self, video_id: str, top_k: int) -> list[dict]:
            return await self.searcher.search.remote(([video_id], None, top_k))

        @api.post("/recommend")
        async def recommend(self, body: dict) -> list[dict]:
            return await self.searcher.search.remote((body["history"], body["filters"]["category"], body["top_k"]))

        @api.get("/readyz")
        async def ready(self) -> bool:
            return True

    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(Ingress.bind(Searcher.bind()))
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    serve.shutdown()


@contextmanager
def serving(command: list[str], environment: Mapping[str, str], log: Path, port: int) -> Iterator[None]:
    """A server in a process of its own, from ready to gone."""
    with log.open("wb") as output:
        server = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output)
    try:
        _await_ready(server, log, port)
        yield
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.kill()


def _await_ready(server: subprocess.Popen, log: Path, port: int) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(log.read_text()[-4000:])


def load(script: Path, port: int, connections: int, seconds: int) -> tuple[float, float, float, int]:
    """Requests a second, p50 and p99 in milliseconds, and how many answers were errors."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script)]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}"], check=True, capture_output=True, text=True).stdout
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", done)
    sockets = [int(number) for number in re.findall(r"(?:connect|read|write|timeout) (\d+)", done)]
    speed = re.search(r"Requests/sec:\s+([\d.]+)", done)
    return (
        float(speed[1]),
        _milliseconds(done, 50),
        _milliseconds(done, 99),
        int(errors[1] if errors else 0) + sum(sockets),
    )


def _milliseconds(text: str, percentile: int) -> float:
    found = re.search(rf"\s{percentile}%\s+([\d.]+)(us|ms|s)", text)
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--quick", action="store_true", help="20,000 videos, 2 s each at 16 connections")
    options = parser.parse_args()
    if options.quick:
        options.videos, options.seconds, options.connections = 20_000, 2, [16]
    if shutil.which("wrk") is None:
        print("There is no wrk here. apt-get install wrk.")
        raise SystemExit(0 if options.quick else 1)
    scratch = Path(tempfile.mkdtemp(prefix="raypipe-benchmark-"))
    try:
        write_index(scratch / "index", options.videos)
        rows, speeds = [], {}
        for way, command, environment, prefix, port in _ways(scratch / "index"):
            with serving(command, environment, scratch / f"{len(rows)}.log", port):
                for name, template in (("similar", _SIMILAR), ("recommend", _RECOMMEND)):
                    script = scratch / f"{name}.lua"
                    text = template.format(path=f"{prefix}/{name}", videos=options.videos, categories=CATEGORIES)
                    script.write_text(text)
                    load(script, port, 4, 3)  # warm
                    for connections in options.connections:
                        speed, p50, p99, errors = load(script, port, connections, options.seconds)
                        speeds[way, name, connections] = speed
                        rows.append(
                            (way, name, str(connections), f"{speed:.0f}", f"{p50:.1f}", f"{p99:.1f}", str(errors))
                        )
        _print(rows, speeds, options)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _ways(index: Path) -> Iterator[tuple[str, list[str], dict[str, str], str, int]]:
    """What is measured: its name, how it is started, the prefix of its paths, and its port."""
    port = free_ports(1)[0]
    options = ("embedder.enabled=false", "replicas.min=2", "replicas.max=2")
    settings = [word for option in options for word in ("--set", option)]
    ours = [sys.executable, "-m", "raypipe", "serve", "--index", str(index), *settings, "--port"]
    yield "documented pattern", [sys.executable, __file__, "--plain", str(index), str(port)], {}, "", port
    port = free_ports(1)[0]
    yield "raypipe, Python proxy", [*ours, str(port)], {"RAY_SERVE_ENABLE_HA_PROXY": "0"}, "/v1", port
    if find_binary():
        port = free_ports(1)[0]
        yield "raypipe, HAProxy", [*ours, str(port)], {}, "/v1", port


def _print(
    rows: list[tuple[str, ...]], speeds: Mapping[tuple[str, str, int], float], options: argparse.Namespace
) -> None:
    print(describe_machine())
    print(f"{options.videos} videos x {DIM}, wrk on the same processors, {options.seconds} s each\n")
    print_table(("way", "request", "connections", "requests/s", "p50 ms", "p99 ms", "errors"), rows)
    best = rows[-1][0]
    for name, target in TARGETS.items():
        for connections in options.connections:
            ratio = speeds[best, name, connections] / speeds["documented pattern", name, connections]
            print(f"{best}, {name}, {connections} connections: {ratio:.1f} x the pattern (target at 16: {target:g})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plain"]:
        plain(*sys.argv[2:])
    else:
        main()
