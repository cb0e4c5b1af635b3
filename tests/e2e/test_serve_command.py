"""``raypipe serve`` as a user starts it: a separate process with its own Ray, behind HAProxy."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import yaml

from raypipe import schema
from raypipe.client import AnswerError, Client
from raypipe.endpoint.haproxy.launch import find_binary
from raypipe.runs.ray_private import token_path
from support.endpoints import NUM_EMBEDDED, Endpoint, Source, serve_config
from support.listeners import check_strangers_get_nothing
from support.load import Load, get, post
from support.processes import free_port, pids_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TOKEN = "s3cret"  # noqa: S105 - a test's
_REPLICA = "ServeReplica:raypipe:Api"
_MAX_IN_FLIGHT = 4
_MAX_STREAMS = 2
_MAX_GROWTH_BYTES = 100_000_000


class Command:
    """A running ``raypipe serve``; its output is in ``log``."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.log = folder / "serve.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raypipe", "serve", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment, "COLUMNS": "200", **variables},
            )

    def said(self) -> str:
        return self.log.read_text()

    def wait_until_ready(self) -> None:
        def is_ready() -> bool:
            assert self.process.poll() is None, self.said()
            return "Stop with Ctrl-C" in self.said()

        wait_until(is_ready, timeout_seconds=240, what="the endpoint")

    def replicas(self) -> set[int]:
        """Return the processes of its own ingress, without those of other endpoints that the tests run."""
        return set(pids_of(_REPLICA, below=self.process.pid))

    def check_clean_end(self, number: signal.Signals, port: str) -> None:
        """Send the signal: the command exits with 0 and leaves no process behind."""
        replicas = self.replicas()
        assert replicas
        self.process.send_signal(number)
        assert self.process.wait(120) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/healthz")
        wait_until(lambda: not pids_of(port, "haproxy.cfg"), what="the end of HAProxy")
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in replicas), what="the end of the replicas")


@pytest.fixture(scope="module")
def command(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Command, Endpoint]]:
    """Run two replicas of the index with all features, a token and small limits."""
    folder = tmp_path_factory.mktemp("serve")
    limits = {"max_in_flight": _MAX_IN_FLIGHT, "max_streams": _MAX_STREAMS, "video_deadline_seconds": 10.0}
    replicas = {"min": 2, "max": 2, "num_cpus": 0.1}
    config = serve_config(source, folder / "cache", limits=limits, replicas=replicas)
    (folder / "serve.yaml").write_text(yaml.safe_dump(config.model_dump()))
    started = Command(folder, str(folder / "serve.yaml"), RAYPIPE_API_TOKEN=TOKEN)
    try:
        started.wait_until_ready()
        ids = source.items[schema.VIDEO_ID].to_pylist()[:NUM_EMBEDDED]
        yield started, Endpoint(f"http://127.0.0.1:{config.port}", config, ids, source)
        started.check_clean_end(signal.SIGINT, str(config.port))
    finally:
        if started.process.poll() is None:
            started.process.send_signal(signal.SIGINT)
            started.process.wait(120)


@pytest.fixture
def client(command: tuple[Command, Endpoint]) -> Client:
    """Return a client that sends the token."""
    return Client(command[1].url, TOKEN, timeout_seconds=120)


def test_it_prints_its_address_and_answers(command: tuple[Command, Endpoint], client: Client) -> None:
    started, endpoint = command
    said = started.said()
    assert f"Serving {endpoint.source.index.uri} on {endpoint.url} " in said
    assert ("HAProxy" in said) == (find_binary() is not None)
    assert f"The page: {endpoint.url}/" in said
    assert "Without /v1/embed" not in said
    assert "Traceback" not in said
    assert TOKEN not in said
    assert client.index()["num_videos"] == 2012
    assert len(client.similar(endpoint.ids[0], top_k=5)["results"]) == 5
    assert client.classify(f"{endpoint.source.videos.uri}/{endpoint.ids[0]}", neighbors=1)["label"]


def test_the_token_is_required(command: tuple[Command, Endpoint]) -> None:
    url = command[1].url
    for path in ("/v1/index", "/v1/videos", "/v1/none", "/none"):
        response = httpx.get(f"{url}{path}")
        assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized")
    with pytest.raises(AnswerError) as caught:
        Client(url, "other").index()
    assert caught.value.status == 401
    for path in ("/", "/page/app.js", "/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert httpx.get(f"{url}{path}").status_code == 200


def test_strangers_get_nothing_from_its_ports(command: tuple[Command, Endpoint]) -> None:
    """The page and the names of routes are public. Other paths of the endpoint are tested above."""
    pids = pids_of("", below=command[0].process.pid)
    check_strangers_get_nothing(pids, token=token_path().read_text(), public={"/", "/-/routes"})


@pytest.mark.skipif(find_binary() is None, reason="no HAProxy")
def test_haproxy_is_not_reachable_by_others(command: tuple[Command, Endpoint]) -> None:
    port = command[1].config.port
    listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    addresses = [line.split()[3] for line in listening if '"haproxy"' in line]
    assert f"127.0.0.1:{port}" in addresses
    assert all(address.startswith("127.0.0.1:") for address in addresses)


def test_a_replica_is_killed_under_load(command: tuple[Command, Endpoint], client: Client) -> None:
    started, endpoint = command
    requests = [
        *(get(f"/v1/similar/{one}?top_k=10") for one in endpoint.ids),
        post("/v1/recommend", {"history": endpoint.ids[:3], "top_k": 10}),
    ]
    with Load(endpoint.url, requests, connections=_MAX_IN_FLIGHT, token=TOKEN) as load:
        wait_until(lambda: load.num_answered > 500, what="500 answers")
        before = started.replicas()
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda: len(started.replicas() - before) == 1, what="a new replica")
        after = load.num_answered
        wait_until(lambda: load.num_answered > max(4000, after + 500), what="4000 answers")
    assert len(load.failures) <= load.num_answered / 1000, load.failures[:10]
    assert client.index()["num_videos"] == 2012


@pytest.mark.skipif(find_binary() is None, reason="no HAProxy, and a replica's own deadline frees its places")
def test_slow_clients_do_not_use_up_in_flight_slots(command: tuple[Command, Endpoint]) -> None:
    started, endpoint = command
    wait_until(lambda: len(started.replicas()) == 2, what="both replicas")
    begun = f"POST /v1/recommend HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 99\r\n"
    with ExitStack() as open_connections:
        slow = [
            open_connections.enter_context(socket.create_connection(("127.0.0.1", endpoint.config.port), timeout=60))
            for _ in range(4 * _MAX_IN_FLIGHT)
        ]
        for number, one in enumerate(slow):
            one.sendall((begun + ("" if number % 2 else "\r\n") + "X").encode())
        with Load(endpoint.url, [get("/v1/videos?limit=10")], connections=2, token=TOKEN) as load:
            wait_until(lambda: load.num_answered > 300, what="300 answers")
        assert load.failures == []
        assert set(load.statuses) == {200}
        assert {one.recv(12) for one in slow} == {b"HTTP/1.1 408"}


def test_a_video_is_played_behind_the_proxy(command: tuple[Command, Endpoint], client: Client) -> None:
    started, endpoint = command
    data = endpoint.source.videos.read(endpoint.ids[0])
    url = endpoint.url + client.play(endpoint.ids[0])["url"]
    for _ in range(4):  # by both replicas
        response = httpx.get(url, headers={"Range": "bytes=100-"})
        assert (response.status_code, response.content) == (206, data[100:])
        assert response.headers["content-range"] == f"bytes 100-{len(data) - 1}/{len(data)}"
    head = httpx.head(url)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(data)))
    refused = httpx.get(f"{url}0")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "invalid_link")
    assert httpx.post(f"{endpoint.url}/v1/videos/{endpoint.ids[0]}/play").status_code == 401
    signature = url.rpartition("signature=")[2]
    opened = [fd.readlink() for pid in started.replicas() for fd in Path(f"/proc/{pid}/fd").iterdir()]
    requests = [path for path in opened if path.name.startswith("raypipe_requests")]
    wait_until(lambda: any('"play"' in path.read_text() for path in requests), what="the line of a played video")
    logs = requests[0].parents[1]  # of this Ray
    for path in (started.log, *filter(Path.is_file, logs.rglob("*"))):
        text = path.read_bytes()
        assert signature.encode() not in text, path
        assert TOKEN.encode() not in text, path


@pytest.mark.skipif(find_binary() is None, reason="no HAProxy, and Serve's own proxy reads streams ahead")
def test_streams_that_nobody_reads_block_no_search(command: tuple[Command, Endpoint], client: Client) -> None:
    started, endpoint = command
    wait_until(lambda: len(started.replicas()) == 2, what="both replicas")
    videos, video_id = endpoint.source.videos, endpoint.ids[1]
    with ExitStack() as open_connections:
        open_connections.callback(videos.put, video_id, videos.read(video_id))  # other tests embed it
        videos.put(video_id, random.Random(0).randbytes(6_000_000))
        path = client.play(video_id)["url"]
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-\r\n\r\n".encode()
        for _ in range(20):
            slow = open_connections.enter_context(socket.socket())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", endpoint.config.port))
            slow.sendall(request)
        with Load(endpoint.url, [get("/v1/videos?limit=10")], connections=2, token=TOKEN) as load:
            wait_until(lambda: load.num_answered > 300, what="300 answers")
        assert load.failures == []
        assert set(load.statuses) == {200}
        ask = {"url": endpoint.url + path, "headers": {"Range": "bytes=0-9"}}
        assert httpx.get(**ask).status_code == 429
        wait_until(lambda: httpx.get(**ask).status_code == 206, what="the end of a stream that nobody reads")


@pytest.mark.skipif(find_binary() is None, reason="no HAProxy, and Serve ends a replica that hangs, after 100 s")
def test_a_hung_replica_blocks_no_request_for_long(command: tuple[Command, Endpoint], client: Client) -> None:
    started, endpoint = command
    wait_until(lambda: len(started.replicas()) == 2, what="both replicas")
    before = started.replicas()
    with Load(endpoint.url, [get("/v1/videos?limit=10")], connections=_MAX_IN_FLIGHT, token=TOKEN) as load:
        wait_until(lambda: load.num_answered > 500, what="500 answers")
        os.kill(min(before), signal.SIGSTOP)
        after = load.num_answered
        wait_until(lambda: load.num_answered > after + 2000, what="2000 answers of the other")
    # HAProxy answers the requests that the hung replica held, and cuts an answer that it had begun. Status 0 would be a
    # client's own timeout, or an idle connection that HAProxy closes on a reload, which happens when a replica that
    # another test killed is back.
    closed = [problem for problem in load.failures if "RemoteDisconnected" in problem or "IncompleteRead" in problem]
    assert load.statuses[0] == len(closed) <= _MAX_IN_FLIGHT, load.failures[:10]
    assert set(load.statuses) <= {0, 200, 500}
    assert load.statuses[500] <= _MAX_IN_FLIGHT
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: len(started.replicas() - before) == 1, what="a new replica")
    assert client.index()["num_videos"] == 2012


def test_overload_is_refused_without_other_effects(command: tuple[Command, Endpoint]) -> None:
    started, endpoint = command
    wait_until(lambda: len(started.replicas()) == 2, what="both replicas")
    requests = [post("/v1/recommend", {"history": endpoint.ids, "diversity": 0.5, "top_k": 50})]
    resident = sum(resident_bytes(pid) for pid in started.replicas())
    with Load(endpoint.url, requests, connections=2 * 3 * _MAX_IN_FLIGHT, token=TOKEN) as load:
        wait_until(lambda: load.num_answered > 3000 and load.statuses[429], what="3000 answers and a refusal")
    assert load.failures == []
    assert set(load.statuses) == {200, 429}
    assert sum(resident_bytes(pid) for pid in started.replicas()) < resident + _MAX_GROWTH_BYTES


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


@pytest.mark.nightly  # SIGINT stops the other tests' endpoint the same way
def test_sigterm_ends_it_cleanly(source: Source, tmp_path: Path) -> None:
    port = str(free_port())
    given = ("--index", source.index.uri, "--port", port, "--set", "embedder.enabled=false")
    started = Command(tmp_path, *given, "--set", f"cache={tmp_path}")
    started.wait_until_ready()
    assert "embedder.enabled" in started.said()
    assert httpx.get(f"http://127.0.0.1:{port}/v1/index").json()["can_embed"] is False
    started.check_clean_end(signal.SIGTERM, port)
    assert started.said().count("\n") == 3
