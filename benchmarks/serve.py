"""Compare the endpoint under load with the pattern in Ray Serve's documentation.

    python benchmarks/serve.py [--videos 100000] [--seconds 8] [--connections 1 16 64] [--quick]
    python benchmarks/serve.py --strategies [--videos 100000] [--seconds 8] [--quick]

The pattern is a FastAPI ingress that passes each request to a deployment, which searches with faiss in batches
(``@serve.batch``). It has two replicas in total, at Serve's defaults except for ``max_ongoing_requests``: batches do
not fill at its default. raypipe searches inside its ingress and has two replicas of it. It is measured behind Serve's
Python proxy and, if the binary is installed, behind HAProxy. All search the same faiss file. ``similar`` requests the
10 nearest neighbors of a random video; ``recommend`` sends a history of 10 and a category, and requests 20. ``wrk``
(``apt-get install wrk``) generates the load on this machine, so it takes CPU time from each way alike. raypipe returns
the videos' fields and the reason for each; the pattern returns ids and scores.

With ``--strategies``, raypipe's ``recommend`` with the strategies transitions and ranker is compared with content, at
16 connections, in turns. The ranker and the successors are random: their sizes decide the speed, not their values.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from fastapi import FastAPI
from ray import serve

from raypipe.config import IndexSettings
from raypipe.endpoint.haproxy.launch import find_binary
from raypipe.free_ports import free_ports
from raypipe.models.next_video import NextVideoConfig, NextVideoModel
from raypipe.search.build import build_version
from raypipe.search.index import VideoIndex
from raypipe.search.projection import Projection
from raypipe.search.successors import NUM_SUCCESSORS, Pairs, Successors
from raypipe.search.tower import TowerInput, TowerWeights
from raypipe.search.versions import SUCCESSORS, Versions
from raypipe.storage import Folder
from support import describe_machine, make_parser, print_table, scratch_folder

DIM, CATEGORIES, CLUSTERS = 256, 20, 400
PATTERN = "documented pattern"
TARGETS = {"similar": 10.0, "recommend": 5.0}
STRATEGIES, ROUNDS = ("content", "transitions", "ranker"), 3
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


_BY_STRATEGY = """
math.randomseed(7)
local headers = {{["Content-Type"] = "application/json"}}
request = function()
  local ids = {{}}
  for n = 1, 10 do ids[n] = string.format('"video-%07d"', math.random(0, {videos} - 1)) end
  local body = string.format('{{"history": [%s], "strategy": "{strategy}", "top_k": 20}}', table.concat(ids, ","))
  return wrk.format("POST", "{path}", headers, body)
end
"""


def write_index(folder: Path, count: int, *, has_ranker: bool = False) -> None:
    """Write a version of an index of clustered vectors, as ``raypipe index`` would."""
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
    with scratch_folder() as work:
        tower = random_ranker(count) if has_ranker else None
        manifest = build_version(work, items=items, batches=batches, settings=IndexSettings(), base=None, tower=tower)
        if has_ranker:
            random_successors(count).save(work / SUCCESSORS)
            manifest["ranker"] |= {"id": "random", "weight": 0.7}
        print(f"index: {manifest['kind']}, recall@10 {manifest['recall_at_10']:.3f}, {manifest['num_videos']} videos")
        embeddings = {"uri": "nowhere", "fingerprint": "0", "settings": {}}
        versions = Versions(Folder(str(folder)))
        versions.put(manifest["id"], work, {**manifest, "previous": None, "embeddings": embeddings})
        versions.set_current(manifest["id"])


def random_ranker(count: int) -> TowerInput:
    """Return a ranker of the size for many videos, with random weights and clustered ID embeddings."""
    config = NextVideoConfig(num_ids=count, content_dim=DIM, n_embd=128)
    tensors = {name: tensor.numpy() for name, tensor in NextVideoModel(config).state_dict().items()}
    tensors.pop("ids.weight")
    random = np.random.default_rng(4)
    tensors["content.weight"] = 0.01 * random.standard_normal((config.n_embd, DIM), dtype=np.float32)
    centres = random.standard_normal((CLUSTERS, config.n_embd), dtype=np.float32)
    noise = random.standard_normal((count + 1, config.n_embd), dtype=np.float32)
    ids = 0.02 * (centres[random.integers(0, CLUSTERS, count + 1)] + 0.8 * noise)
    about = {name: getattr(config, name) for name in ("n_layer", "n_head", "n_embd", "max_events")}
    identity = Projection(np.zeros(DIM, np.float32), np.eye(DIM, dtype=np.float32))
    return TowerInput(TowerWeights(tensors, {**about, "scale": 20.0}), identity, ids, np.arange(1, count + 1))


def random_successors(count: int) -> Successors:
    """Return 100 random successors for each video."""
    random = np.random.default_rng(3)
    users = random.integers(1, 50, count * NUM_SUCCESSORS)
    firsts, seconds = np.repeat(np.arange(count), NUM_SUCCESSORS), random.integers(0, count, len(users))
    return Successors.of("transitions", Pairs(firsts, seconds, users / 2, users), num_items=count)


def serve_pattern(index: str, port: str) -> None:
    """Serve the documented pattern until SIGINT."""
    api = FastAPI()

    @serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.5})
    class Searcher:
        def __init__(self) -> None:
            versions = Versions(Folder(index))
            version = versions.current()
            folder = versions.fetch(version, Path(index) / "cache")
            self.index = VideoIndex.load(folder, versions.read_manifest(version))
            self.by_id = {self.index.items.video_id(at): at for at in range(len(self.index.items))}

        @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
        async def search(self, asked: list[tuple[list[str], str | None, int]]) -> list[list[dict]]:
            """Answer (history, category, top_k) requests; requests with the same category are searched together."""
            vectors = self.index.vectors
            answers: list[list[dict]] = [[] for _ in asked]
            groups: dict[str | None, list[int]] = {}
            for at, (_, category, _) in enumerate(asked):
                groups.setdefault(category, []).append(at)
            for category, members in groups.items():
                eligible = self.index.filters.eligible({"category": category}) if category else None
                histories = [[self.by_id[video_id] for video_id in asked[at][0]] for at in members]
                queries = np.stack([vectors[history].astype(np.float32).mean(0) for history in histories])
                most = max(asked[at][2] for at in members) + 10
                scores, found = self.index.ann.search(queries, top_k=most, eligible=eligible)
                for row, (at, history) in enumerate(zip(members, histories, strict=True)):
                    pairs = zip(found[row].tolist(), scores[row].tolist(), strict=True)
                    kept = [(one, score) for one, score in pairs if one >= 0 and one not in history][: asked[at][2]]
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
    """Run a server in its own process; the block starts when the server is ready."""
    with log.open("wb") as output:
        server = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=output)
    try:
        end = time.monotonic() + 180
        while not _is_ready(port):
            if time.monotonic() > end or server.poll() is not None:
                raise SystemExit(log.read_text()[-4000:])
            time.sleep(0.5)
        yield
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.kill()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return True
    except OSError:
        return False


def load(script: Path, port: int, connections: int, seconds: int) -> tuple[float, float, float, int]:
    """Return requests/s, p50 and p99 in milliseconds, and the number of errors."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script)]
    done = subprocess.run([*command, f"http://127.0.0.1:{port}"], check=True, capture_output=True, text=True).stdout
    errors = re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", done)
    (speed,) = re.findall(r"Requests/sec:\s+([\d.]+)", done)
    units = {"us": 0.001, "ms": 1.0, "s": 1000.0}
    p50, p99 = (float(one) * units[unit] for one, unit in re.findall(r"\s(?:50|99)%\s+([\d.]+)(us|ms|s)", done))
    return float(speed), p50, p99, sum(map(int, errors))


def ways(index: Path) -> Iterator[tuple[str, list[str], dict[str, str], str, int]]:
    """Yield the servers to measure: name, command, environment, path prefix and port."""
    options = ("embedder.enabled=false", "replicas.min=2", "replicas.max=2")
    settings = [word for option in options for word in ("--set", option)]
    ours = [sys.executable, "-m", "raypipe", "serve", "--index", str(index), *settings, "--port"]
    ports = free_ports(3)
    yield PATTERN, [sys.executable, __file__, "--pattern", str(index), str(ports[0])], {}, "", ports[0]
    yield "raypipe, Python proxy", [*ours, str(ports[1])], {"RAY_SERVE_ENABLE_HA_PROXY": "0"}, "/v1", ports[1]
    if find_binary():
        yield "raypipe, HAProxy", [*ours, str(ports[2])], {}, "/v1", ports[2]


def main() -> None:
    parser = make_parser(__doc__, quick="20,000 videos, 2 s each at 16 connections")
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--strategies", action="store_true", help="compare the strategies of raypipe instead")
    options = parser.parse_args()
    if options.quick:
        options.videos, options.seconds, options.connections = 20_000, 2, [16]
    if shutil.which("wrk") is None:
        print("wrk is not installed. Install it with apt-get install wrk.")
        raise SystemExit(0 if options.quick else 1)
    with scratch_folder() as scratch:
        write_index(scratch / "index", options.videos, has_ranker=options.strategies)
        (report_strategies if options.strategies else report)(scratch, options)


def report_strategies(scratch: Path, options: argparse.Namespace) -> None:
    """Measure ``recommend`` by strategy in three rounds, and print medians."""
    way, command, environment, prefix, port = list(ways(scratch / "index"))[-1]
    measured: dict[str, list[tuple[float, float, float, int]]] = {name: [] for name in STRATEGIES}
    with serving(command, environment, scratch / "serve.log", port):
        for number in range(ROUNDS + 1):  # the first one warms up
            for strategy in STRATEGIES:
                script = scratch / f"{strategy}.lua"
                body = _BY_STRATEGY.format(path=f"{prefix}/recommend", videos=options.videos, strategy=strategy)
                script.write_text(body)
                found = load(script, port, 16, options.seconds if number else 3)
                measured[strategy] += [found] if number else []
    print(describe_machine())
    print(f"{options.videos} videos x {DIM}, {way}, 16 connections, medians of {ROUNDS} rounds\n")
    medians = {name: np.median(np.array(rounds), axis=0) for name, rounds in measured.items()}
    rows = [
        (name, f"{speed:.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{errors:.0f}", f"{speed / medians['content'][0]:.2f}")
        for name, (speed, p50, p99, errors) in medians.items()
    ]
    print_table(("strategy", "requests/s", "p50 ms", "p99 ms", "errors", "requests/s over content"), rows)
    ratio = medians["ranker"][2] / medians["content"][2]
    print(f"p99 of ranker over content: {ratio:.2f} (targets: requests/s >= 0.75 x, p99 <= 1.3 x)")


def report(scratch: Path, options: argparse.Namespace) -> None:
    rows: list[tuple[str, ...]] = []
    speeds: dict[tuple[str, str, int], float] = {}
    for way, command, environment, prefix, port in ways(scratch / "index"):
        with serving(command, environment, scratch / f"{len(rows)}.log", port):
            for name, template in (("similar", _SIMILAR), ("recommend", _RECOMMEND)):
                script = scratch / f"{name}.lua"
                text = template.format(path=f"{prefix}/{name}", videos=options.videos, categories=CATEGORIES)
                script.write_text(text)
                load(script, port, 4, 3)  # warm
                for connections in options.connections:
                    speed, p50, p99, errors = load(script, port, connections, options.seconds)
                    speeds[way, name, connections] = speed
                    rows.append((way, name, str(connections), f"{speed:.0f}", f"{p50:.1f}", f"{p99:.1f}", str(errors)))
    print(describe_machine())
    print(f"{options.videos} videos x {DIM}, wrk on the same CPUs, {options.seconds} s each\n")
    print_table(("way", "request", "connections", "requests/s", "p50 ms", "p99 ms", "errors"), rows)
    best = rows[-1][0]
    for name, target in TARGETS.items():
        for connections in options.connections:
            ratio = speeds[best, name, connections] / speeds[PATTERN, name, connections]
            print(f"{best}, {name}, {connections} connections: {ratio:.1f} x the pattern (target at 16: {target:g})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--pattern"]:
        serve_pattern(*sys.argv[2:])
    else:
        main()
