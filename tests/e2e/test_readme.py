"""The commands and the Python of the README run as they are written, on local folders and on an S3 server."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raypipe.demo.s3_server import local_s3
from raypipe.storage import Folder
from support import TESTS
from support.fixtures.ray_session import CHEAP
from support.guides import NAMES, fill_home, python_of, without_download
from support.processes import free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # each command starts a Ray of its own
README = (TESTS.parent / "README.md").read_text(encoding="utf-8")
QUICKSTART = re.findall(r"^\$ (raypipe .*)$", README, re.MULTILINE)
COMMANDS = re.findall(r"^ {4}(raypipe .*)$", README, re.MULTILINE)
REMOTE = "--address"  # these need a cluster; tests/test_docs.py parses them
# Without the network there are no pretrained weights, and a small network is enough.
CHANGES = {"embed": CHEAP, "plan": CHEAP, "train": ("optimizer.epochs=1", "resources.use_gpu=false")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a home directory with videos, labels and histories, next to an S3 server with the same videos."""
    folder = tmp_path_factory.mktemp("home")
    buckets = ("videos", "embeddings", "models", "labels", "index")
    with pytest.MonkeyPatch.context() as patch, local_s3(tmp_path_factory.mktemp("s3"), buckets=buckets) as server:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        patch.setenv("HOME", str(folder))
        patch.chdir(folder)
        fill_home(folder)
        clips = folder / "demo-output/clips"
        shutil.copytree(folder / "Videos", clips)
        (clips / "grow").mkdir()
        shutil.copy(clips / NAMES[0], clips / "grow/grow-000.mp4")
        for name in NAMES:
            Folder("s3://videos/").put_new(name, (folder / "Videos" / name).read_bytes())
        yield folder


def arguments_of(command: str) -> list[str]:
    """Return the arguments of a command of the README, with what a test needs."""
    _, job, *options = shlex.split(command, comments=True)
    changes = (*CHANGES.get(job, ()), *([f"port={free_port()}"] if job == "serve" else ()))
    expanded = [option.replace("~", os.environ["HOME"]) for option in options]  # as a shell does
    return [sys.executable, "-m", "raypipe", job, *expanded, *(f"--set={change}" for change in changes)]


def start(command: list[str], log: Path) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


def test_the_readme_has_every_step() -> None:
    jobs = [shlex.split(command)[1] for command in [*QUICKSTART, *COMMANDS]]
    assert {"plan", "embed", "train", "classify", "index", "serve", "doctor", "submit"} <= {*jobs}


def test_the_quickstart_runs(home: Path) -> None:
    run_in_order(home, QUICKSTART)


@pytest.mark.nightly  # six jobs and an endpoint; the quickstart is the short form
def test_every_command_runs(home: Path) -> None:
    run_in_order(home, [command for command in COMMANDS if REMOTE not in command])


def run_in_order(home: Path, commands: list[str]) -> None:
    for command in commands:
        log = home / "command.log"
        process = start(arguments_of(command), log)
        if " serve " in command:

            def is_ready(process: "subprocess.Popen[bytes]" = process, log: Path = log) -> bool:
                assert process.poll() is None, log.read_text()
                return "Stop with Ctrl-C" in log.read_text()

            wait_until(is_ready, timeout_seconds=240, what=command)
            process.send_signal(signal.SIGINT)
        assert process.wait(240) == 0, f"{command}: {log.read_text()[-3000:]}"


def test_the_python_runs(home: Path) -> None:
    code = without_download(python_of(README))
    script = home / "script.py"
    script.write_text(code)
    process = start([sys.executable, str(script)], home / "script.log")
    assert process.wait(240) == 0, (home / "script.log").read_text()[-3000:]
    assert (home / "script.log").read_text().count(".mp4 ") == 3
