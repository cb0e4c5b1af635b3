"""A setup error of ``raypipe serve`` is one line, before anything starts."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from raypipe import cli
from raypipe.storage import Folder
from support.processes import free_port


@pytest.fixture
def taken() -> Iterator[int]:
    """Return a port of 127.0.0.1 that is in use."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield one.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "variables", "data"),
    [
        ((), {}, ["'index'", "--index"]),
        (("--index", "{empty}"), {}, ["{empty}", "raypipe index"]),
        (("--index", "{index}", "--host", "::"), {}, ["host='::'", "RAYPIPE_API_TOKEN"]),
        (("--index", "{index}"), {"RAYPIPE_API_TOKEN": ""}, ["RAYPIPE_API_TOKEN"]),
        (("--index", "{index}", "--port", "{taken}"), {}, ["127.0.0.1", "{taken}", "--port"]),
        (("--index", "{index}", "--model", "{empty}"), {}, ["{empty}"]),
    ],
)
def test_a_setup_error_is_one_line_and_exit_code_2(  # noqa: PLR0917 - the parameters
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    index_folder: Folder,
    taken: int,
    arguments: tuple[str, ...],
    variables: dict[str, str],
    data: list[str],
) -> None:
    names = {"empty": tmp_path / "empty", "index": index_folder.uri, "taken": taken}
    given = ["serve", *(argument.format(**names) for argument in arguments), "--set", f"cache={tmp_path / 'cache'}"]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as left:
        cli.app([*given, *(() if "--port" in given else ("--port", str(free_port())))])
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert [part for part in (one.format(**names) for one in data) if part not in said] == []
