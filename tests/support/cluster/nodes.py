"""A Ray cluster of several nodes on this machine, each with its own address and processes, and a bucket."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from raypipe.demo import s3_server
from raypipe.demo.s3_server import S3Server
from raypipe.free_ports import free_ports
from support.cluster.network import Command, Machine, Network, command_line, environment, network, without_proxies
from support.processes import wait_until

BIN = Path(sys.executable).parent
_GCS_PORT, _API_PORT, SERVE_PORT = 6379, 8265, 8000
_STORE_BYTES = 200_000_000
# A machine's processes see no others, and all of them die with the first one, which dies with these tests.
_OWN_PROCESSES = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
_SETTINGS = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "COLUMNS": "200",
    "GLOO_SOCKET_IFNAME": "eth0",  # this machine's host name does not resolve to a node's address
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "500",  # detects a dead node in two seconds instead of fifteen
    "RAY_health_check_failure_threshold": "4",
}
_DRIVER_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR="  # Ray sets it for the driver of a job, but for no worker


class RayNode:
    """The processes of one node."""

    def __init__(self, machine: Machine, options: Sequence[str], variables: Mapping[str, str], folder: Path) -> None:
        self.machine = machine
        started = (str(BIN / "ray"), "start", "--block", "--disable-usage-stats", f"--temp-dir={folder / machine.name}")
        own = (f"--node-ip-address={machine.address}", f"--object-store-memory={_STORE_BYTES}", "--num-gpus=0")
        words = machine.command(*_OWN_PROCESSES, *started, *own, *options)
        home = {"HOME": str(folder / f"{machine.name}-home")}  # each machine has its own caches
        self.command = Command(words, {**variables, **home}, folder / f"{machine.name}.log")

    def kill(self) -> None:
        """SIGKILL all processes of the node."""
        self.command.kill()
        wait_until(lambda: not self.machine.pids(), what=f"the end of {self.machine.name}")

    def kill_raylet(self) -> None:
        """SIGKILL the raylet; the rest of the node ends by itself."""
        (raylet,) = self._pids("/raylet/raylet ")
        os.kill(raylet, signal.SIGKILL)

    def kill_driver(self) -> bool:
        """SIGKILL the job's driver on this node; return False if there is none."""
        found = [pid for pid in self.machine.pids() if _DRIVER_VARIABLE in environment(pid)]
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return bool(found)

    def runs(self, words: str) -> bool:
        """Return whether a process of the node has these words in its command line."""
        return bool(self._pids(words))

    def _pids(self, words: str) -> list[int]:
        return [pid for pid in self.machine.pids() if words in command_line(pid)]


class RayCluster:
    """A head that runs only the drivers of jobs, workers with one processor each, and an S3 server.

    The job API requires ``token``, and so does all communication between nodes.
    """

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self.token, self.serve_token = secrets.token_hex(32), secrets.token_hex(16)
        self._token_file = folder / "token"
        self._token_file.touch(mode=0o600)
        self._token_file.write_text(self.token)
        self._network: Network = stack.enter_context(network())
        self._machines: dict[str, Machine] = {}
        self._nodes: list[RayNode] = []
        self._num_commands = 0
        self.s3: S3Server = stack.enter_context(_s3_on(self._machine("s3"), folder / "s3"))
        self.head: RayNode
        self.workers: list[RayNode] = []  # the ones that are still alive

    @property
    def address(self) -> str:
        """Return the address of the job API."""
        return f"http://{self._machines['head'].address}:{_API_PORT}"

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment of every node and every command."""
        unwanted = ("AWS_", "RAY_", "RAYPIPE_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
        own = {
            "PATH": f"{BIN}:{os.environ['PATH']}",  # a job's entrypoint starts with "python"
            "RAY_AUTH_TOKEN_PATH": str(self._token_file),
            "RAYPIPE_API_TOKEN": self.serve_token,
        }
        return without_proxies(inherited) | _SETTINGS | own | self.s3.environment()

    def start(self, *, num_workers: int) -> None:
        """Start the head, then the workers in parallel, and wait until all of them are alive."""
        machine = self._machine("head")
        options = (f"--port={_GCS_PORT}", f"--dashboard-host={machine.address}", f"--dashboard-port={_API_PORT}")
        self.head = self._add(machine, "--head", "--num-cpus=0", "--include-dashboard=true", *options)
        self._wait_until(lambda: self.ask("/api/version")[0] == 200, what="the job API")
        for _ in range(num_workers):
            self.add_node()
        self.wait_for_nodes(1 + num_workers)

    def add_node(self, *, num_cpus: int = 1) -> RayNode:
        """Start one more worker."""
        machine = self._machine(f"worker-{len(self._nodes)}")
        head = self._machines["head"].address
        node = self._add(machine, f"--address={head}:{_GCS_PORT}", f"--num-cpus={num_cpus}")
        self.workers.append(node)
        return node

    def lose(self, worker: RayNode, *, kill: Callable[[RayNode], object] = RayNode.kill) -> None:
        """Kill a worker, and wait until Ray notices."""
        kill(worker)
        self.workers.remove(worker)
        self.wait_for_nodes(1 + len(self.workers))

    def wait_for_nodes(self, count: int) -> None:
        """Wait until exactly ``count`` nodes are alive."""
        self._wait_until(lambda: len(self.alive()) == count, what=f"{count} nodes")

    def alive(self) -> set[str]:
        """Return the addresses of the nodes that Ray considers alive."""
        status, body = self.ask("/api/v0/nodes?detail=true&limit=100")
        assert status == 200, body
        nodes = json.loads(body)["data"]["result"]["result"]
        return {node["node_ip"] for node in nodes if node["state"] == "ALIVE"}

    def ask(self, path: str, *, token: str | None = "", body: object = None) -> tuple[int, bytes]:
        """Send a request to the job API: "" sends its token, None sends none; a body makes it a POST."""
        headers = {"Content-Type": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token or self.token}"
        return ask(f"{self.address}{path}", headers, body=None if body is None else json.dumps(body).encode())

    def run_in(self, name: str, *words: str, timeout_seconds: float = 240) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine of this name, and return the finished process."""
        command = self._machines[name].command(*words)
        return subprocess.run(
            command, capture_output=True, text=True, env=self.variables, timeout=timeout_seconds, check=False
        )

    def start_in(self, name: str, *words: str) -> Command:
        """Start a command on the machine of this name; it is killed with the cluster."""
        self._num_commands += 1
        log = self._folder / f"command-{self._num_commands}.log"
        command = Command(self._machines[name].command(*words), self.variables, log)
        self._stack.callback(command.kill)
        return command

    def _machine(self, name: str) -> Machine:
        self._machines[name] = self._network.add(name)
        return self._machines[name]

    def _add(self, machine: Machine, *options: str) -> RayNode:
        node = RayNode(machine, options, self.variables, self._folder)
        self._nodes.append(node)
        self._stack.callback(node.kill)
        return node

    def _wait_until(self, condition: Callable[[], object], *, what: str) -> None:
        try:
            wait_until(condition, timeout_seconds=90, what=what)
        except AssertionError as error:
            said = "\n".join(f"{node.machine.name}: {node.command.printed}" for node in self._nodes)
            msg = f"{error}\n{said}"
            raise AssertionError(msg) from None


@contextmanager
def ray_cluster(*, num_workers: int = 2) -> Iterator[RayCluster]:
    """Yield a cluster, and remove all of it when the block ends."""
    # Not pytest's folder: the path of a socket has at most 107 bytes, and Ray needs sixty of them.
    with tempfile.TemporaryDirectory(prefix="rp-", ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        cluster = RayCluster(stack, Path(folder))
        cluster.start(num_workers=num_workers)
        yield cluster


@contextmanager
def _s3_on(machine: Machine, folder: Path) -> Iterator[S3Server]:
    """Run the demo's server with the bucket ``videos`` on one of the machines."""
    folder.mkdir()
    ports = dict(zip(s3_server.PORTS, free_ports(len(s3_server.PORTS)), strict=True))
    server = S3Server(f"http://{machine.address}:{ports['s3.port']}", secrets.token_hex(10), secrets.token_hex(20))
    ours = (f"-ip={machine.address}", f"-ip.bind={machine.address}")  # the last of two equal options wins
    options = [*s3_server.SERVER_OPTIONS, *ours, *(f"-{name}={port}" for name, port in ports.items())]
    words = machine.command(s3_server._program(), "mini", f"-dir={folder}", "-bucket=videos", *options)
    command = Command(words, without_proxies(os.environ) | server.environment(), folder / "server.log")
    try:
        s3_server._wait_until_ready(command.process, server, ("videos",), folder=folder, last_attempt=True)
        yield server
    finally:
        command.kill()


def ask(url: str, headers: Mapping[str, str], *, body: bytes | None = None) -> tuple[int, bytes]:
    """Send a GET, or a POST if there is a body; return status and body, or status 0 if nothing answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data=body, headers=dict(headers)), timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError:
        return 0, b""
