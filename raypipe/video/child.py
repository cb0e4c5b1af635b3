"""One decode child and the socket to it: the parent's side. No video library is loaded here."""

import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, BinaryIO

import raypipe
from raypipe.errors import SetupError
from raypipe.video.protocol import MAX_MESSAGE_BYTES, DecodeRequest, Ranges

_START_SECONDS = 120
_END_SECONDS = 2
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv.pop(1).splitlines(); "
    "from raypipe.video import isolation; left = isolation.leave_network(); "
    "from raypipe.video.worker import main; main(sys.argv[1:], network_left=left)"
)


class ChildDiedError(Exception):
    """The child is gone."""


class Child:
    """One child process and the socket to it.

    Raises:
        ChildDiedError: somebody killed it before it could decode.
        SetupError: it does not start.
    """

    def __init__(self, decoder: str, *, memory_fd: int, memory_bytes: int, crop_size: int, max_frames: int) -> None:
        self.videos = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        numbers = (theirs.fileno(), memory_fd, memory_bytes, crop_size, max_frames)
        with theirs, tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(prefix="raypipe-empty-") as empty:
            self.process = subprocess.Popen(  # noqa: S603  # our own interpreter and program
                [sys.executable, "-I", "-S", "-c", _PROGRAM, _import_path(), decoder, *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=empty,
                env=_environment(),
                pass_fds=(theirs.fileno(), memory_fd),
                start_new_session=True,  # Ctrl-C is for the parent to handle
            )
            theirs.close()
            self._socket = ours
            try:
                self.isolation: dict[str, bool] = self._receive(time.monotonic() + _START_SECONDS)
            except TimeoutError:
                self.end()
                raise _not_started(decoder, log, f"no answer within {_START_SECONDS} s") from None
            except ChildDiedError:
                exit_code = self.wait()
                if exit_code == -signal.SIGKILL:
                    raise
                raise _not_started(decoder, log, f"it ended with {exit_code}") from None
            self._own_bytes = resident_bytes(self.process.pid)  # its libraries

    def ask(
        self, file: BinaryIO, request: DecodeRequest, deadline: float, *, there: Ranges | None = None
    ) -> dict[str, Any]:
        """Send one video, of which all or only some ranges are ``there``, and wait for the answer.

        Raises:
            TimeoutError: the deadline passed.
            ChildDiedError: the child is gone.
        """
        self.videos += 1
        return self._send({"request": asdict(request), "there": there}, deadline, [file.fileno()])

    def go_on(self, deadline: float) -> dict[str, Any]:
        """Say that the ranges it wants are there now, and wait for the answer; raises like ``ask``."""
        return self._send({}, deadline, [])

    def _send(self, message: dict[str, Any], deadline: float, fds: list[int]) -> dict[str, Any]:
        message["timeout_seconds"] = max(0.0, deadline - time.monotonic())
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode()], fds)
        except OSError:
            raise ChildDiedError from None
        return self._receive(deadline)

    def is_worn(self, max_videos: int, memory_bytes: int) -> bool:
        """Whether the child has served enough, or kept so much memory that the next video would suffer."""
        kept = resident_bytes(self.process.pid) - self._own_bytes
        return self.videos >= max_videos or kept > memory_bytes // 2

    def end(self) -> int:
        """Kill the child, and give its exit code, negative for a signal."""
        self._socket.close()
        self.process.kill()
        return self.process.wait()

    def wait(self) -> int:
        """The exit code of a child that hung up: its own, so it is killed only if it stays."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_SECONDS)
        return self.end()

    def _receive(self, deadline: float) -> dict[str, Any]:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data = self._socket.recv(MAX_MESSAGE_BYTES)
        except TimeoutError:
            raise
        except OSError:
            raise ChildDiedError from None
        if not data:
            raise ChildDiedError
        with contextlib.suppress(ValueError, RecursionError):
            message = json.loads(data)
            if isinstance(message, dict):
                return message
        return {}


def _not_started(decoder: str, log: IO[bytes], reason: str) -> SetupError:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    msg = f"The {decoder} decoder does not start: {lines[-1] if lines else reason}."
    return SetupError(msg, key="decode.decoder", value=decoder, remedy="Run raypipe doctor.")


def resident_bytes(pid: int) -> int:
    """Memory that a process holds now; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0


def _import_path() -> str:
    """The parent's module search path, absolute, raypipe's own folder first."""
    own = str(Path(raypipe.__file__).resolve().parents[1])
    paths = [own, *(str(Path(path).resolve()) for path in sys.path if path)]
    return "\n".join(dict.fromkeys(paths))


def _environment() -> dict[str, str]:
    """Nothing of ours but where shared libraries lie: no credentials; one thread, one malloc arena."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {**kept, "PATH": os.defpath, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
