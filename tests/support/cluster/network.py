"""Machines with their own addresses on this machine: network namespaces on a bridge that this process can reach."""

import ipaddress
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from raypipe.background import end_with_parent

_BRIDGE = "bridge"
_TRY = ("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "ip", "link", "add", "name", "x", "type")


@dataclass(frozen=True, slots=True)
class Machine:
    """A namespace with one interface besides loopback."""

    name: str
    namespace: str
    address: str

    def command(self, *words: str) -> list[str]:
        """Return the command that runs these words in the namespace."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def pids(self) -> list[int]:
        """Return every process in the namespace."""
        return [int(pid) for pid in _ip("netns", "pids", self.namespace).split()]


class Command:
    """A command on one of the machines; its output is in ``log``."""

    def __init__(self, words: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(variables),
                preexec_fn=end_with_parent(),  # noqa: PLW1509
            )

    @property
    def printed(self) -> str:
        """Return the output so far."""
        return self.log.read_text(errors="replace")

    def wait(self, timeout_seconds: float = 240) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout_seconds)

    def kill(self) -> None:
        """SIGKILL the command."""
        self.process.kill()
        self.process.wait()


class Network:
    """Machines that reach each other and this process, but nothing else."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._suffix = secrets.token_hex(3)
        self._addresses = _free_network().hosts()
        self._hub: str | None = None

    def add(self, name: str) -> Machine:
        """Add a machine; the first one is also the switch that connects the others."""
        machine = Machine(name, f"raypipe-{self._suffix}-{name}", str(next(self._addresses)))
        _ip("netns", "add", machine.namespace)
        self._stack.callback(_ip, "netns", "delete", machine.namespace)
        _in(machine.namespace, "link set lo up")
        if self._hub is None:
            self._hub = machine.namespace
            _in(self._hub, f"link add {_BRIDGE} type bridge")
            _in(self._hub, f"addr add {machine.address}/24 dev {_BRIDGE}")
            _in(self._hub, f"link set {_BRIDGE} up")
            self._add_this_process()
        else:
            _in(self._hub, f"link add to-{name} type veth peer name eth0 netns {machine.namespace}")
            self._plug_in(f"to-{name}")
            _in(machine.namespace, f"addr add {machine.address}/24 dev eth0")
            _in(machine.namespace, "link set eth0 up")
        return machine

    def _add_this_process(self) -> None:
        """Add an interface to the tests' own namespace; it is removed with its peer."""
        mine, theirs = f"rp-{self._suffix}", "to-tests"
        _ip("link", "add", mine, "type", "veth", "peer", "name", theirs, "netns", str(self._hub))
        self._stack.callback(_ip, "link", "delete", mine)
        self._plug_in(theirs)
        _ip("addr", "add", f"{next(self._addresses)}/24", "dev", mine)
        _ip("link", "set", mine, "up")

    def _plug_in(self, interface: str) -> None:
        assert self._hub is not None
        _in(self._hub, f"link set {interface} master {_BRIDGE}")
        _in(self._hub, f"link set {interface} up")


@contextmanager
def network() -> Iterator[Network]:
    """Yield a network, and remove it when the block ends."""
    with ExitStack() as stack:
        yield Network(stack)


def why_impossible() -> str:
    """Return why this process cannot create a network, or "" if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [program for program in ("ip", "unshare") if shutil.which(program) is None]:
        return f"network namespaces need the programs ip and unshare: {', '.join(missing)} is missing"
    tried = subprocess.run([*_TRY, "bridge"], capture_output=True, text=True, check=False)
    return f"network namespaces are not permitted here: {tried.stderr.strip()}" if tried.returncode else ""


def _free_network() -> ipaddress.IPv4Network:
    """Return a network of 254 addresses that only the default route covers."""
    routes = [line.split() for line in _ip("route", "show", "table", "all").splitlines()]
    words = {word for route in routes for word in route[:2]}
    taken = [ipaddress.ip_network(word) for word in words if word[0].isdigit() and ":" not in word]
    while True:
        found = ipaddress.IPv4Network(f"10.{64 + secrets.randbelow(128)}.{secrets.randbelow(256)}.0/24")
        if not any(found.overlaps(one) for one in taken):
            return found


def _in(namespace: str, command: str) -> None:
    _ip("-netns", namespace, *command.split())


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}"
    return done.stdout


def command_line(pid: int) -> str:
    """Return the command line of a process, or "" if it has ended."""
    return _read(pid, "cmdline")


def environment(pid: int) -> str:
    """Return the environment of a process as ``NAME=value …``, or "" if it has ended."""
    return _read(pid, "environ")


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def without_proxies(variables: Mapping[str, str]) -> dict[str, str]:
    """Remove the proxy variables, because no proxy knows the nodes' addresses."""
    return {name: value for name, value in variables.items() if not name.lower().endswith("_proxy")}
