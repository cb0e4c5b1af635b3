"""What a stranger on this machine, who has no token, gets from the ports of some processes."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import psutil

# Methods of Ray's services. A request without fields is valid for the first ones, and they only read.
_READ = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.InternalKVGcsService/InternalKVKeys",
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ReporterService/GetTraceback",
)
_METHODS = (
    *_READ,
    *("/ray.rpc.ObjectManagerService/Pull", "/ray.rpc.ObjectManagerService/Push"),
    "/ray.serve.ASGIService/HandleRequest",
)
_ON_ALL_INTERFACES = "ray::ServeReplica"  # Ray Serve has no setting for the address of this server
_REFUSED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE})
_PATHS = ("/", "/-/routes", "/api/version", "/api/jobs/", "/api/v0/nodes", "/v1/index", "/metrics", "/healthz")
_HEALTH = ("/healthz", "/-/healthz", "/api/local_raylet_healthz")
_SECONDS = 10.0


@dataclass(frozen=True)
class Listener:
    """A TCP port that a process listens on."""

    host: str
    port: int
    process: str

    @property
    def is_on_loopback(self) -> bool:
        """Return whether other machines cannot reach it."""
        return self.host.removeprefix("::ffff:") in {"127.0.0.1", "::1"}


def listeners_of(pids: Iterable[int]) -> list[Listener]:
    """Return every TCP port that these processes listen on."""
    found, wanted = [], set(pids)
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.pid in wanted:
            command = Path(f"/proc/{connection.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            found.append(Listener(connection.laddr.ip, connection.laddr.port, command.strip()[:80]))
    return found


def answered_methods(listener: Listener, *, token: str | None) -> list[str]:
    """Return the methods of Ray that the port does not refuse. With a token, only methods that read are called."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    answered = []
    with grpc.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
        for method in _READ if token else _METHODS:
            try:
                channel.unary_unary(method)(b"", metadata=metadata, timeout=_SECONDS)
            except grpc.RpcError as error:
                if error.code() in _REFUSED or "http2 header with status" in error.details():  # an HTTP error
                    continue
            answered.append(method)
    return answered


def answered_paths(listener: Listener, *, public: Collection[str]) -> Iterator[str]:
    """Yield the paths with an answer that is neither an error nor health, metrics or a public path."""
    for path in _PATHS:
        try:
            reply = httpx.get(f"http://127.0.0.1:{listener.port}{path}", timeout=_SECONDS)
        except httpx.HTTPError:
            return  # not HTTP
        is_metrics = "version=" in reply.headers.get("content-type", "")  # as Prometheus's text formats
        if reply.is_success and not is_metrics and path not in {*_HEALTH, *public}:
            yield path


def check_strangers_get_nothing(pids: Iterable[int], *, token: str, public: Collection[str] = ()) -> None:
    """Walk all ports: they answer strangers nothing, although with Ray's token they answer. They are on loopback."""
    found = listeners_of(pids)
    reachable = [one for one in found if not one.is_on_loopback and not one.process.startswith(_ON_ALL_INTERFACES)]
    assert not reachable, reachable
    for listener in found:
        methods = answered_methods(listener, token=None)
        assert not methods, (methods, listener)
        answered = list(answered_paths(listener, public=public))
        assert not answered, (answered, listener)
    with_token = {method for listener in found for method in answered_methods(listener, token=token)}
    assert with_token == set(_READ)  # the methods exist, so that refusing them means something
