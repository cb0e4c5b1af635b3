"""The job API of a Ray cluster: connect to it, send a job, follow the log, stop the job. Every error is one line."""

import asyncio
import logging
import os
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath
from typing import Any

import aiohttp
import yaml
from pydantic import BaseModel
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import raypipe
from raypipe import __version__
from raypipe.config import ClassifyConfig, EmbedConfig, IndexConfig, RecommendConfig, TrainConfig, load_config
from raypipe.config.load import uris
from raypipe.errors import ConfigError, SetupError
from raypipe.runs.ray_private import enable_token_authentication
from raypipe.storage.s3_access import worker_environment
from raypipe.text import one_line

_MODELS: tuple[type[BaseModel], ...] = (EmbedConfig, TrainConfig, ClassifyConfig, IndexConfig, RecommendConfig)
CONFIGS = {model.__name__.removesuffix("Config").lower(): model for model in _MODELS}  # by job name
_FILE = "job.yaml"
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"  # Ray's own
_OVERRIDES = (ADDRESS_VARIABLE, "RAY_ADDRESS")  # Ray prefers these variables to the address that we pass
_DASHBOARD = "ray.dashboard.modules"
_VERBOSE = ("ray._private.runtime_env.packaging", f"{_DASHBOARD}.dashboard_sdk", f"{_DASHBOARD}.job.sdk")
_POLL_SECONDS = 0.5
_LOST_SECONDS = 60.0  # how long to retry a lost connection, such as an interrupted port forward; the job continues


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A job to send to a cluster.

    ``entrypoint`` is the command line to run there. ``runtime_env`` is Ray's description of the code to upload.
    ``notes`` are warnings for the user.
    """

    submission_id: str
    entrypoint: str
    runtime_env: dict[str, Any]
    notes: tuple[str, ...] = ()


@contextmanager
def packed(
    path: Path, *, command: str | None = None, overrides: Sequence[str] = (), working_dir: Path | None = None
) -> Iterator[ClusterJob]:
    """Prepare a job to send, from the configuration file at ``path``. Its files exist until the ``with`` block ends.

    The code that is sent is the raypipe that is installed here, or a checkout of raypipe in ``working_dir``.

    Raises:
        ConfigError: the configuration is wrong, or refers to a file that the cluster will not have.
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
    """Prepare a job that runs ``raypipe doctor`` on the cluster. Its files exist until the ``with`` block ends."""
    options = {"--input": input_uri, "--output": output_uri}
    words = [word for option, uri in options.items() if uri is not None for word in (option, uri)]
    with tempfile.TemporaryDirectory(prefix="raypipe-submit-") as folder:
        yield _job("doctor", words, Path(folder))


def _job(command: str, words: Sequence[str], working_dir: Path, notes: tuple[str, ...] = ()) -> ClusterJob:
    environment: dict[str, Any] = {"working_dir": str(working_dir.resolve())}
    if not (working_dir / "raypipe" / "__init__.py").exists():
        environment["py_modules"] = [str(Path(raypipe.__file__).parent)]
    if variables := worker_environment():
        environment["env_vars"] = variables
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
    local = [(key, value) for key, value in uris(config).items() if "://" not in value]
    relative = [(key, value) for key, value in local if not PurePath(value).is_absolute()]
    if relative and not has_files:
        key, value = relative[0]
        msg = f"The cluster does not have {', '.join(f'{key}: {value}' for key, value in relative)}."
        raise ConfigError(msg, key=key, value=value, remedy="Give a URI, or --working-dir to send files along.")
    shared = [f"{key}: {value} is a path" for key, value in local if PurePath(value).is_absolute()]
    return tuple(f"{one} of the cluster's machines, all of which must see it." for one in shared)


def _within(path: Path, folder: Path) -> str:
    if not folder.is_dir():
        msg = f"--working-dir {str(folder)!r} is not a folder."
        raise ConfigError(msg, key="--working-dir", value=str(folder))
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        msg = f"{str(path)!r} is not in --working-dir {str(folder)!r}, and only that folder is sent."
        raise ConfigError(msg, key=str(path), expected=str(folder)) from None


def connect(address: str | None) -> JobSubmissionClient:
    """Connect to the job API at an address such as ``http://HOST:8265``.

    Raises:
        ConfigError: the address is missing, or is not an HTTP address.
        SetupError: nothing answers at the address, it is not a job API, or it requires another token.
    """
    if not address:
        msg, remedy = "No cluster address.", f"Give --address http://HOST:8265, or set {ADDRESS_VARIABLE}."
        raise ConfigError(msg, key="--address", remedy=remedy)
    if not address.startswith(("http://", "https://")):
        msg = f"--address {address!r} is not the address of a job API."
        remedy = "Give the address of Ray's dashboard: http://HOST:8265."
        raise ConfigError(msg, key="--address", value=address, remedy=remedy)
    for name in _VERBOSE:
        logging.getLogger(name).setLevel(logging.WARNING)
    enable_token_authentication()
    hidden = {name: os.environ.pop(name) for name in _OVERRIDES if name in os.environ}
    try:
        with reached(address):
            return JobSubmissionClient(address)
    finally:
        os.environ.update(hidden)


@contextmanager
def reached(address: str) -> Iterator[None]:
    """Convert errors of requests to the job API into a SetupError. Its ``key`` is the address.

    If the API rejects the token, the error's ``value`` is the HTTP status: 401 if no token was sent, 403 if the token
    is wrong.
    """
    import requests  # noqa: PLC0415 - Ray's job client requires it, and reports if it is missing

    try:
        yield
    except AuthenticationError as error:
        status, wrong = (403, "refuses this token") if "failed" in str(error) else (401, "wants a token")
        remedy = "Set RAY_AUTH_TOKEN_PATH to a file with the cluster's token, and RAY_AUTH_MODE=token."
        msg = f"{address} {wrong} ({status})."
        raise SetupError(msg, key=address, value=status, remedy=remedy) from None
    except (ConnectionError, requests.exceptions.ConnectionError, requests.exceptions.Timeout):
        msg, forward = f"Nothing answers at {address}.", "kubectl port-forward service/HEAD 8265"
        remedy = f"Start the cluster, or forward its dashboard: ray attach -p 8265 cluster.yaml, or {forward}."
        raise SetupError(msg, key=address, remedy=remedy) from None
    except (requests.exceptions.RequestException, RuntimeError, KeyError, TypeError) as error:
        reason = one_line(error)[:300]
        msg = f"{address} is not a job API that can be used: {reason}"
        raise SetupError(msg, key=address, value=reason) from None


class Remote:
    """The jobs on a cluster, accessed through its job API."""

    def __init__(self, client: JobSubmissionClient) -> None:
        self._client = client
        self._address = client.get_address()

    def send(self, job: ClusterJob) -> None:
        """Upload the code and files of a job, and start the job."""
        with reached(self._address):
            command, name, metadata = job.entrypoint, job.submission_id, {"raypipe": __version__}
            self._client.submit_job(
                entrypoint=command, submission_id=name, runtime_env=job.runtime_env, metadata=metadata
            )

    def details(self, submission_id: str) -> JobDetails:
        """Return the cluster's information about a job.

        Raises:
            ConfigError: there is no such job. The error's ``choices`` are the latest jobs.
        """
        with reached(self._address):
            try:
                return self._client.get_job_info(submission_id)
            except RuntimeError as error:
                if "status code 404" not in str(error):
                    raise
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        msg = f"No job {submission_id!r} at {self._address}."
        choices = [str(job.submission_id) for job in sorted(jobs, key=lambda job: job.start_time or 0)[-3:]]
        raise ConfigError(msg, key="submission_id", value=submission_id, choices=choices)

    def follow(self, submission_id: str, *, write: Callable[[str], None]) -> int:
        """Write a job's log as it grows. When the job has ended, return its exit code."""
        log = _Log(write)
        while True:
            with suppress(RuntimeError, OSError, aiohttp.ClientError):  # the connection broke
                asyncio.run(self._tail(submission_id, log))
            job = self._details_with_retries(submission_id)
            if job.status.is_terminal():
                break
            time.sleep(_POLL_SECONDS)
        # Write the part of the log that came after the last connection ended.
        with reached(self._address):
            log.take(self._client.get_job_logs(submission_id), start=0)
        return _exit_code(job)

    def stop(self, submission_id: str) -> JobDetails:
        """Stop a job, wait until it has ended, and return its details. A job that has already ended is not changed."""
        self.details(submission_id)
        with reached(self._address):
            self._client.stop_job(submission_id)
        while not (job := self._details_with_retries(submission_id)).status.is_terminal():
            time.sleep(_POLL_SECONDS)
        return job

    async def _tail(self, submission_id: str, log: "_Log") -> None:
        start = 0
        async for text in self._client.tail_job_logs(submission_id):
            log.take(text, start=start)
            start += len(text)

    def _details_with_retries(self, submission_id: str) -> JobDetails:
        deadline = time.monotonic() + _LOST_SECONDS
        while True:
            try:
                return self.details(submission_id)
            except ConfigError:
                raise
            except SetupError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)


class _Log:
    """A log that is written without repetitions, although each new connection reads it from the beginning."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = 0

    def take(self, text: str, *, start: int) -> None:
        """Write the part of ``text`` that is new. ``text`` begins at character ``start`` of the log."""
        if new := text[max(0, self._written - start) :]:
            self._write(new)
            self._written = start + len(text)


def _exit_code(job: JobDetails) -> int:
    """Return the exit code of the job's command, or 1 if the job failed without one."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    code = job.driver_exit_code or 1
    return code if code > 0 else 128 - code


def job_line(job: JobDetails) -> str:
    """Return one line that describes the state of a job."""
    seconds = ((job.end_time or time.time() * 1000) - (job.start_time or 0)) / 1000
    after = f" after {timedelta(seconds=round(seconds))}" if job.start_time else ""
    state = f"{job.submission_id}: {job.status.lower()}{after}: {job.entrypoint}"
    failed = job.status == JobStatus.FAILED and job.message
    return f"{state}. {one_line(job.message)[:300]}" if failed and job.message else state
