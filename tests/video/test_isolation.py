"""What a decode child cannot reach: checked from outside, and tried from inside."""

import json
import os
import platform
import re
import resource
import shutil
import socketserver
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

import raypipe
from raypipe.status import Status
from raypipe.video.decode_request import DecodeRequest
from raypipe.video.sandbox import isolation
from raypipe.video.sandbox.parent import DecodeSandbox

AsFile = Callable[[bytes], BinaryIO]
MakeClip = Callable[..., bytes]
MakeRequest = Callable[..., DecodeRequest]


@pytest.fixture
def clip(make_clip: MakeClip, as_file: AsFile) -> Iterator[BinaryIO]:
    """Return a healthy video."""
    with as_file(make_clip()) as file:
        yield file


def open_files(pid: int) -> list[str]:
    """Return what a process's file descriptors refer to, ordered by number."""
    numbers = sorted(int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir())
    return [str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in numbers]


def test_the_child_inherits_nothing_from_the_parent(
    request_: DecodeRequest, clip: BinaryIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary")
    secret = (tmp_path / "secret").open("w")
    os.set_inheritable(secret.fileno(), True)  # noqa: FBT003
    with secret, DecodeSandbox(request_, decoder="pyav") as opened:
        held = opened.isolation()
        (pid,) = opened.child_pids()
        for _ in range(3):
            assert opened.decode(clip).status is Status.OK
        variables = Path(f"/proc/{pid}/environ").read_text().strip("\0").split("\0")
        names = {variable.partition("=")[0] for variable in variables}
        assert names - {"LD_LIBRARY_PATH"} == {"PATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"}
        assert "canary" not in Path(f"/proc/{pid}/cmdline").read_text()
        null, null_too, log, *ours = open_files(pid)
        assert (null, null_too) == (os.devnull, os.devnull)
        assert log.endswith(" (deleted)")
        assert [file.split("[")[0] for file in ours] == ["/memfd:raypipe-frames (deleted)", "socket:"]
        assert not list(Path(f"/proc/{pid}/cwd/").iterdir())
        if held["files"]:
            assert not list(Path(f"/proc/{pid}/root/").iterdir())
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert status["NoNewPrivs"] == "1"
        assert not held["privileges"] or int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert not held["calls"] or status["Seccomp"] == "2"


def test_the_child_is_in_a_network_of_its_own(pyav: DecodeSandbox) -> None:
    if not pyav.isolation()["network"]:
        pytest.skip("This kernel does not let a process give up its network.")
    (pid,) = pyav.child_pids()
    own, other = (Path(f"/proc/{process}/ns/net").readlink() for process in ("self", pid))
    assert own != other


def test_this_kernel_lets_the_child_give_everything_up(pyav: DecodeSandbox) -> None:
    held = pyav.isolation()
    if not all(held.values()):
        pytest.skip(f"This kernel refuses some of it: {held}")
    assert set(held) == {"network", "files", "privileges", "calls"}


def test_the_child_gives_up_whatever_this_kernel_lets_a_process_give_up(pyav: DecodeSandbox, tmp_path: Path) -> None:
    program = """
        attempt("network", isolation.leave_network)
        attempt("files", isolation.leave_files)
        attempt("privileges", isolation.drop_privileges)
        attempt("calls", isolation.deny_calls)
    """
    told = run_inside(program, tmp_path)
    assert pyav.isolation() == {name: result == "did True" for name, result in told.items()}


def test_limits_of_the_child(request_: DecodeRequest) -> None:
    with DecodeSandbox(request_, decoder="pyav", memory_bytes=2**29) as opened:
        opened.isolation()
        (pid,) = opened.child_pids()
        lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()[1:]
        limits = {line[:26].strip(): line[26:].split()[:2] for line in lines}
        assert limits["Max core file size"] == ["0", "0"]
        assert limits["Max file size"] == ["0", "0"]
        soft, hard = map(int, limits["Max address space"])
        size, resident = (
            int(pages) * resource.getpagesize() for pages in Path(f"/proc/{pid}/statm").read_text().split()[:2]
        )
        assert soft == hard
        assert soft - (size - resident) < 2**29 + 2**26
        assert int(limits["Max open files"][1]) < 100


def test_the_child_cannot_cut_our_memory_short(pyav: DecodeSandbox, clip: BinaryIO) -> None:
    (pid,) = pyav.child_pids()
    fds = {str(fd.readlink()): fd for fd in Path(f"/proc/{pid}/fd").iterdir()}
    with fds["/memfd:raypipe-frames (deleted)"].open("r+b") as memory:
        for size in (0, 2**40):
            with pytest.raises(PermissionError):
                os.ftruncate(memory.fileno(), size)
    assert pyav.decode(clip).status is Status.OK


def run_inside(program: str, folder: Path, *arguments: object) -> dict[str, str]:
    """Run a program in an empty folder; return the outcome of each ``attempt(name, action)`` in it."""
    prelude = """
        import ctypes, json, os, resource, socket, sys, threading
        from raypipe.video.sandbox import isolation

        told = {}

        def attempt(name, action):
            try:
                told[name] = f"did {action()!r}"
            except BaseException as error:
                told[name] = type(error).__name__
    """
    whole = (
        f"{textwrap.dedent(prelude)}\n{textwrap.dedent(program)}\nos.write(1, json.dumps(told).encode())\nos._exit(0)"
    )
    empty = folder / "empty"
    empty.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", whole, *map(str, arguments)], cwd=empty, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    told: dict[str, str] = json.loads(done.stdout)
    return told


def skip_unless(told: dict[str, str], *given_up: str) -> None:
    for name in given_up:
        if told.pop(name) != "did True":
            pytest.skip(f"This kernel does not let a process give up its {name}.")


def test_without_network_nothing_is_reachable(tmp_path: Path) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        connect = f"lambda: socket.create_connection({server.server_address!r}, 5).fileno() > 0"
        program = f"""
            attempt("before", {connect})
            attempt("network", isolation.leave_network)
            attempt("after", {connect})
            attempt("names", lambda: [name for _, name in socket.if_nameindex()])
        """
        told = run_inside(program, tmp_path)
    skip_unless(told, "network")
    assert told == {"before": "did True", "after": "OSError", "names": "did ['lo']"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_uses_an_installation_of_another_user(request_: DecodeRequest, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(Path(raypipe.__file__).parent, home / "raypipe")
    for path in (home, *home.rglob("*")):
        os.chown(path, 12_345, 12_345)
    home.chmod(0o700)
    program = (
        "from raypipe.video.decode_request import DecodeRequest, DecodeLimits; "
        "from raypipe.video.sandbox.parent import DecodeSandbox; "
        f"print(DecodeSandbox({request_!r}, decoder='pyav').isolation())"
    )
    environment = {**os.environ, "PYTHONPATH": str(home)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_without_files_there_is_only_the_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "canary").write_text("canary")
    program = """
        isolation.leave_network()
        attempt("before", lambda: open(sys.argv[1]).read())
        attempt("files", isolation.leave_files)
        attempt("absolute", lambda: open(sys.argv[1]).read())
        attempt("relative", lambda: open("../canary").read())
        attempt("process", lambda: open("/proc/self/environ").read())
        attempt("list", lambda: os.listdir("/"))
    """
    told = run_inside(program, tmp_path, tmp_path / "canary")
    skip_unless(told, "files")
    gone = dict.fromkeys(("absolute", "relative", "process"), "FileNotFoundError")
    assert told == {"before": "did 'canary'", **gone, "list": "did []"}


def test_without_privileges_there_is_no_way_back(tmp_path: Path) -> None:
    program = """
        isolation.leave_network()
        attempt("before", lambda: os.chroot("."))
        attempt("privileges", isolation.drop_privileges)
        attempt("chroot", lambda: os.chroot("."))
        attempt("hostname", lambda: socket.sethostname("canary"))
    """
    told = run_inside(program, tmp_path)
    skip_unless(told, "privileges")
    assert told.pop("before") in {"did None", "PermissionError"}
    assert told == dict.fromkeys(("chroot", "hostname"), "PermissionError")


def test_denied_calls_are_denied(tmp_path: Path) -> None:
    (tmp_path / "canary").write_text("canary")
    program = """
        import ctypes.util, signal, subprocess
        parent = os.getppid()
        inherited = socket.socket()
        attempt("calls", isolation.deny_calls)
        attempt("open", lambda: open(sys.argv[1]))
        attempt("create", lambda: os.open("new", os.O_CREAT | os.O_WRONLY))
        attempt("list", lambda: os.listdir("."))
        attempt("socket", socket.socket)
        attempt("socketpair", socket.socketpair)
        attempt("connect", lambda: inherited.connect(("127.0.0.1", 9)))
        attempt("fork", os.fork)
        attempt("exec", lambda: os.execv(sys.executable, ["python"]))
        attempt("spawn", lambda: subprocess.run(["true"]))
        attempt("kill", lambda: os.kill(parent, 0))
        attempt("limit the parent", lambda: resource.prlimit(parent, resource.RLIMIT_CPU))
        attempt("unlink", lambda: os.unlink(sys.argv[1]))
        attempt("truncate", lambda: os.truncate(sys.argv[1], 0))
        attempt("chmod", lambda: os.chmod(sys.argv[1], 0))
        attempt("mkdir", lambda: os.mkdir("new"))

        attempt("own limits", lambda: resource.getrlimit(resource.RLIMIT_CPU) is not None)
        attempt("memory", lambda: len(bytearray(10_000_000)))

        def run_thread():
            ran = []
            thread = threading.Thread(target=ran.append, args=(1,))
            thread.start()
            thread.join()
            return ran

        attempt("thread", run_thread)
    """
    told = run_inside(program, tmp_path, tmp_path / "canary")
    skip_unless(told, "calls")
    assert (told.pop("own limits"), told.pop("memory"), told.pop("thread")) == ("did True", "did 10000000", "did [1]")
    assert set(told.values()) == {"PermissionError"}, told
    assert len(told) == 15
    assert (tmp_path / "canary").read_text() == "canary"


def test_every_denied_call_by_its_number(tmp_path: Path) -> None:
    if platform.machine() not in isolation._ARCHITECTURES:
        pytest.skip(f"There is no list of calls for {platform.machine()}.")
    program = """
        import platform
        attempt("calls", isolation.deny_calls)
        if told["calls"] == "did True":
            libc = ctypes.CDLL(None, use_errno=True)
            column, _ = isolation._ARCHITECTURES[platform.machine()]
            for name, numbers in isolation._DENIED_CALLS.items():
                if numbers[column] is not None:
                    ctypes.set_errno(0)
                    result = libc.syscall(numbers[column], -1, -1, -1, -1, -1, -1)
                    told[name] = f"{result} {ctypes.get_errno()}"
            told["clone3"] = f"{libc.syscall(435, -1, -1)} {ctypes.get_errno()}"
    """
    told = run_inside(program, tmp_path)
    skip_unless(told, "calls")
    assert told.pop("clone3") == "-1 38"
    assert len(told) > 50
    assert {name: result for name, result in told.items() if result != "-1 1"} == {}


def test_the_numbers_of_the_calls() -> None:
    headers = (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h"))
    if not all(header.is_file() for header in headers):
        pytest.skip("The kernel's headers are not installed.")
    known = [dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())) for header in headers]
    named = {"clone": isolation._CLONE, "clone3": isolation._CLONE3, "prlimit64": isolation._PRLIMIT}
    for name, numbers in {**isolation._DENIED_CALLS, **named}.items():
        for number, numbers_of_header in zip(numbers, known, strict=True):
            assert str(number) == numbers_of_header.get(name, str(number)), name


def test_memory_has_a_limit(tmp_path: Path) -> None:
    program = """
        before = open("/proc/self/statm").read().split()
        isolation.limit_memory(256 * 2**20)
        attempt("little", lambda: len(bytearray(2**20)))
        attempt("much", lambda: bytearray(256 * 2**20))
        attempt("more", lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1)))
        attempt("write", lambda: os.write(os.memfd_create("new"), b"1"))
    """
    told = run_inside(program, tmp_path)
    assert told["little"] == "did 1048576"
    assert told["much"] == "MemoryError"
    assert told["write"] == "OSError"
    assert os.geteuid() == 0 or told["more"] == "ValueError"
