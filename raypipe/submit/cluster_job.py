"""A job to send to a cluster: a command, its configuration, and the code that runs it."""

import secrets
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

import yaml
from pydantic import BaseModel

import raypipe
from raypipe.config import ClassifyConfig, EmbedConfig, IndexConfig, RecommendConfig, TrainConfig, load_config
from raypipe.config.load import uris
from raypipe.errors import ConfigError

CONFIGS: dict[str, type[BaseModel]] = {
    "embed": EmbedConfig,
    "train": TrainConfig,
    "classify": ClassifyConfig,
    "index": IndexConfig,
    "recommend": RecommendConfig,
}
_FILE = "job.yaml"


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A command for a cluster: ``entrypoint`` is a line for its shell, ``runtime_env`` the code to send along."""

    submission_id: str
    entrypoint: str
    runtime_env: dict[str, Any]
    notes: tuple[str, ...] = ()


@contextmanager
def packed(
    path: Path, *, command: str | None = None, overrides: Sequence[str] = (), working_dir: Path | None = None
) -> Iterator[ClusterJob]:
    """Prepare a job to be sent; its files exist until the context ends.

    The code is the raypipe that is installed here, or a checkout of it in ``working_dir``.

    Raises:
        ConfigError: the configuration is wrong, or names a file that the cluster will not have.
    """
    command = command or _command_of(path)
    config = load_config(CONFIGS[command], path, overrides=overrides)
    notes = _notes(config, has_files=working_dir is not None)
    if working_dir is not None:
        words = [_within(path, working_dir), *(word for one in overrides for word in ("--set", one))]
        yield _job(command, words, working_dir, notes)
        return
    with tempfile.TemporaryDirectory(prefix="raypipe-submit-") as folder:
        text = yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False)
        Path(folder, _FILE).write_text(text, encoding="utf-8")
        yield _job(command, [_FILE], Path(folder), notes)


@contextmanager
def packed_doctor(*, input_uri: str | None, output_uri: str | None) -> Iterator[ClusterJob]:
    """Prepare ``raypipe doctor`` to run on the cluster."""
    options = {"--input": input_uri, "--output": output_uri}
    words = [word for option, uri in options.items() if uri is not None for word in (option, uri)]
    with tempfile.TemporaryDirectory(prefix="raypipe-submit-") as folder:
        yield _job("doctor", words, Path(folder))


def _job(command: str, words: Sequence[str], working_dir: Path, notes: tuple[str, ...] = ()) -> ClusterJob:
    environment: dict[str, Any] = {"working_dir": str(working_dir.resolve())}
    if not (working_dir / "raypipe" / "__init__.py").exists():
        environment["py_modules"] = [str(Path(raypipe.__file__).parent)]
    return ClusterJob(
        submission_id=f"raypipe-{command}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}",
        entrypoint=shlex.join(["python", "-m", "raypipe", command, *words]),
        runtime_env=environment,
        notes=notes,
    )


def _command_of(path: Path) -> str:
    first = "".join(char if char.isalpha() else " " for char in path.stem).split()
    if not first or first[0] not in CONFIGS:
        msg = f"The name of {str(path)!r} does not tell its job."
        remedy = "Give --job, or name the file after its job, as in embed.yaml."
        raise ConfigError(msg, key="--job", value=path.stem, choices=CONFIGS, remedy=remedy)
    return first[0]


def _notes(config: BaseModel, *, has_files: bool) -> tuple[str, ...]:
    local = {key: value for key, value in uris(config).items() if "://" not in value}
    relative = [(key, value) for key, value in local.items() if not PurePath(value).is_absolute()]
    if relative and not has_files:
        key, value = relative[0]
        msg = f"The cluster does not have {', '.join(f'{key}: {value}' for key, value in relative)}."
        remedy = "Give a URI, or --working-dir to send files along."
        raise ConfigError(msg, key=key, value=value, remedy=remedy)
    shared = [f"{key}: {value}" for key, value in local.items() if PurePath(value).is_absolute()]
    return tuple(f"{one} is a path of the cluster's machines, all of which must see it." for one in shared)


def _within(path: Path, folder: Path) -> str:
    if not folder.is_dir():
        msg = f"--working-dir {str(folder)!r} is not a folder."
        raise ConfigError(msg, key="--working-dir", value=str(folder))
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        msg = f"{str(path)!r} is not in --working-dir {str(folder)!r}, and only that folder is sent."
        raise ConfigError(msg, key=str(path), expected=str(folder)) from None
