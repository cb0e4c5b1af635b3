"""The command line: exit codes, errors of one line, and a start that loads no job."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import raypipe
from raypipe import api, cli
from raypipe.config import ClassifyConfig, EmbedConfig, load_config
from raypipe.errors import CommitError, RaypipeError, SetupError
from raypipe.records import RunRecord, ShardSummary
from raypipe.results import JobResult

COMMANDS = (
    *(
        "init",
        "demo",
        "embed",
        "suggest",
        "train",
        "compress",
        "classify",
        "index",
        "recommend",
        "anomalies",
        "plan",
        "verify",
        "doctor",
        "serve",
        "submit",
    ),
)
HEAVY = (
    *("ray", "torch", "torchvision", "av", "decord", "pyarrow", "numpy", "PIL", "s3fs", "botocore", "yaml"),
    *("faiss", "fastapi"),
)
GIVEN = ("--input", "videos", "--output", "out")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.app(list(arguments), prog_name="raypipe")
    assert isinstance(caught.value.code, int)
    return caught.value.code


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def assert_is_an_error(said: str, *named: str) -> None:
    """Check that the message is one line and names the problem."""
    assert said.startswith("error: ")
    assert said.endswith("\n")
    assert said.count("\n") == 1
    assert [one for one in named if one not in said] == []


@pytest.mark.parametrize("command", ["embed", "plan"])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), ("'input'", "--input")),
        (("--input", "x"), ("'output'", "--output")),
        ((*GIVEN, "--set", "samplng.mode=all"), ("'samplng'", "'sampling'")),
        ((*GIVEN, "--set", "shard.max_videos=x"), ("shard.max_videos='x'", "integer")),
        ((*GIVEN, "--set", "fps"), ("--set 'fps'", "backbone.name=resnet18")),
        ((*GIVEN, "--retry", "some"), ("retry='some'", "none, transient, all")),
        ((*GIVEN, "--max-failed-fraction", "2"), ("max_failed_fraction=2.0",)),
        (("nowhere.yaml", *GIVEN), ("'nowhere.yaml'", "No such file or directory")),
        ((*GIVEN, "--max-failed-fraction", "x"), ("'--max-failed-fraction'", "--help")),
        ((*GIVEN, "--inptu", "x"), ("--inptu", "--input", "--help")),
        (("--input",), ("'--input'", "--help")),
        (("a.yaml", "b.yaml"), ("b.yaml", "--help")),
    ],
)
def test_a_setup_error_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], command: str, arguments: tuple[str, ...], named: tuple[str, ...]
) -> None:
    assert run(command, *arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert_is_an_error(said.err, *named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), ("'embeddings'", "--embeddings")),
        (("--embeddings", "e"), ("'model'", "--model")),
        (("--embeddings", "e", "--model", "m", "--output", "o", "--set", "topk=3"), ("'topk'", "'top_k'", "frame_")),
    ],
)
def test_a_missing_option_of_classify_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], named: tuple[str, ...]
) -> None:
    assert run("classify", *arguments) == 2
    assert_is_an_error(capsys.readouterr().err, *named)


def test_classify_gets_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[ClassifyConfig] = []
    monkeypatch.setattr(api, "classify", lambda *, config: given.append(config))
    asked = ("--embeddings", "e", "--model", "m", "--output", "o", "--set", "frame_scores=true")
    assert run("classify", *asked) == 0
    assert given == [ClassifyConfig(embeddings="e", model="m", output="o", frame_scores=True)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("embde",), r"error: No such command 'embde'\. Did you mean 'embed'\? Run raypipe --help\.\n"),
        (("--nope",), r"error: No such option: --nope\. Run raypipe --help\.\n"),
        (("verify",), r"error: Missing argument 'OUTPUT'\. Run raypipe verify --help\.\n"),
        (("verify", "gs://bucket/x"), r"error: .*'gs://bucket/x'.*s3://BUCKET/PREFIX.*\n"),
    ],
)
def test_a_wrong_command_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    assert run(*arguments) == 2
    assert re.fullmatch(expected, capsys.readouterr().err, re.IGNORECASE)


def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("embed", "--debug") == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert_is_an_error(said.splitlines(keepends=True)[-1], "'input'", "--input")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SetupError("wrong"), 2, "error: wrong\n"),
        (CommitError("broken"), 1, "error: broken\n"),
        (RaypipeError("red\x1b[31m\n\u202e\udcff"), 1, "error: red\\x1b[31m\\n\\u202e\\udcff\n"),
        (KeyboardInterrupt(), 130, "stopped: what is committed stays, and the same command resumes.\n"),
    ],
)
def test_an_error_of_a_job_becomes_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(api, "embed", fail)
    assert run("embed", *GIVEN) == code
    assert capsys.readouterr().err == line


def test_a_job_gets_its_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[EmbedConfig] = []

    def embed(*, config: EmbedConfig) -> JobResult:
        given.append(config)
        record = RunRecord()
        record.add(ShardSummary(0, 0, {"timeout": 1}, 0, 0, {}, 0.0))
        return JobResult("embed", "o", record=record)

    monkeypatch.setattr(api, "embed", embed)
    file = tmp_path / "job.yaml"
    file.write_text("input: from-file\nretry: all\n", encoding="utf-8")
    assert run("embed", str(file), "--output", "o", "--set", "sampling.fps=2", "--set", "retry=transient") == 0
    assert run("embed", str(file), "--output", "o", "--max-failed-fraction", "0.5") == 3
    config = given[0]
    assert (config.input, config.output, config.sampling.fps, config.retry) == ("from-file", "o", 2.0, "transient")


def test_verify_names_the_violations(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("verify", str(tmp_path)) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"violation: {tmp_path} ")
    assert said.err.count("\n") == 1
    assert said.out.endswith("1 violations.\n")


def test_no_command_shows_the_help_and_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    said = capsys.readouterr()
    assert "Usage: raypipe" in said.out + said.err
    assert "embed" in said.out + said.err


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"raypipe {raypipe.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run(command, "--help") == 0
    assert "--debug" in capsys.readouterr().out


def test_the_program_lists_its_commands() -> None:
    program = Path(sys.executable).with_name("raypipe")
    for start in ([str(program)], [sys.executable, "-m", "raypipe"]):
        shown = subprocess.run([*start, "--help"], capture_output=True, text=True, check=True)
        assert shown.stderr == ""
        assert [line for line in COMMANDS if not re.search(rf"^\W*{line}\s", shown.stdout, re.MULTILINE)] == []


def imported(report: str) -> set[str]:
    """Return the packages that ``-X importtime`` reports as imported."""
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in report.splitlines() if "|" in line}


def test_importing_raypipe_loads_nothing_else() -> None:
    found = imported(python("-X", "importtime", "-c", "import raypipe").stderr)
    assert "raypipe" in found
    assert found.isdisjoint({*HEAVY, "pydantic", "typer", "rich"})


@pytest.mark.parametrize("arguments", [("--help",), ("embed", "--help"), ("--version",), ("embde",)], ids=" ".join)
def test_a_command_line_without_a_job_loads_no_job(arguments: tuple[str, ...]) -> None:
    found = imported(python("-X", "importtime", "-m", "raypipe", *arguments).stderr)
    assert {"raypipe", "typer"} <= found
    assert found.isdisjoint(HEAVY)  # typer checks options with pydantic


def test_a_configuration_error_comes_before_ray_is_loaded() -> None:
    shown = python("-X", "importtime", "-m", "raypipe", "embed", "--input", "x")
    assert shown.returncode == 2
    assert imported(shown.stderr).isdisjoint({"ray", "torch", "av", "pyarrow"})


def test_completion_offers_commands_and_options() -> None:
    for typed, offered in (("raypipe e", "embed"), ("raypipe embed --inp", "--input")):
        words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" ")), "_RAYPIPE_COMPLETE": "complete_bash"}
        program = Path(sys.executable).with_name("raypipe")
        done = subprocess.run([program], env=os.environ | words, capture_output=True, text=True, check=False)
        assert offered in done.stdout.split()


def test_init_prints_a_file_that_the_command_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("init", "embed") == 0
    file = tmp_path / "embed.yaml"
    file.write_text(capsys.readouterr().out)
    assert load_config(EmbedConfig, file) == EmbedConfig(input="s3://videos/", output="s3://embeddings/v1/")
