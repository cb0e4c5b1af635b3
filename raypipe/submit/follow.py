"""Send a job, follow it to its end, ask after it, stop it."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import aiohttp
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from raypipe import __version__
from raypipe.errors import ConfigError, SetupError
from raypipe.submit.connection import reached
from raypipe.submit.job import Job

_POLL_SECONDS = 0.5
_LOST_SECONDS = 60.0  # without an answer: a forwarded port may be gone for a while, and the job goes on


class Remote:
    """The job API of a cluster, whose errors are one line each."""

    def __init__(self, client: JobSubmissionClient) -> None:
        self._client = client
        self._address = client.get_address()

    def send(self, job: Job) -> None:
        """Upload what the job needs and start it."""
        with reached(self._address):
            self._client.submit_job(
                entrypoint=job.entrypoint,
                submission_id=job.submission_id,
                runtime_env=job.runtime_env,
                metadata={"raypipe": __version__},
            )

    def details(self, submission_id: str) -> JobDetails:
        """What the cluster knows of a job.

        Raises:
            ConfigError: there is no such job; ``choices`` are the latest ones.
        """
        with reached(self._address):
            try:
                return self._client.get_job_info(submission_id)
            except RuntimeError as error:
                if "status code 404" not in str(error):
                    raise
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        latest = sorted(jobs, key=lambda job: job.start_time or 0)[-3:]
        msg = f"No job {submission_id!r} at {self._address}."
        choices = [str(job.submission_id) for job in latest]
        raise ConfigError(msg, key="submission_id", value=submission_id, choices=choices)

    def follow(self, submission_id: str, *, write: Callable[[str], None]) -> int:
        """Write the job's log as it grows, and give its exit code once it has ended."""
        log = _Log(write)
        while True:
            with suppress(RuntimeError, OSError, aiohttp.ClientError):  # the line broke
                asyncio.run(self._tail(submission_id, log))
            job = self._patiently(submission_id)
            if job.status.is_terminal():
                break
            time.sleep(_POLL_SECONDS)
        # What came between the end of the last line and that of the job.
        with reached(self._address):
            log.take(self._client.get_job_logs(submission_id), start=0)
        return exit_code(job)

    async def _tail(self, submission_id: str, log: "_Log") -> None:
        start = 0
        async for text in self._client.tail_job_logs(submission_id):
            log.take(text, start=start)
            start += len(text)

    def _patiently(self, submission_id: str) -> JobDetails:
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

    def stop(self, submission_id: str) -> JobDetails:
        """Stop a job, and wait until it has ended; one that has ended before stays as it is."""
        self.details(submission_id)
        with reached(self._address):
            self._client.stop_job(submission_id)
        while not (job := self._patiently(submission_id)).status.is_terminal():
            time.sleep(_POLL_SECONDS)
        return job


class _Log:
    """A log whose parts are written once, though it is read from its beginning again where the line broke."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = 0

    def take(self, text: str, *, start: int) -> None:
        """Write what is new of a part that begins at character ``start``."""
        if new := text[max(0, self._written - start) :]:
            self._write(new)
            self._written = start + len(text)


def exit_code(job: JobDetails) -> int:
    """That of the command itself; 1 where it ended without one."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    code = job.driver_exit_code or 1
    return code if code > 0 else 128 - code


def one_line(job: JobDetails) -> str:
    """How a job is, for a terminal."""
    seconds = ((job.end_time or time.time() * 1000) - (job.start_time or 0)) / 1000
    after = f" after {timedelta(seconds=round(seconds))}" if job.start_time else ""
    state = f"{job.submission_id}: {job.status.lower()}{after}: {job.entrypoint}"
    failed = job.status == JobStatus.FAILED and job.message
    return f"{state}. {' '.join(job.message.split())[:300]}" if failed and job.message else state
