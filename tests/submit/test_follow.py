"""The log of a job whose line breaks: a client that breaks it where a test wants, and a job that goes on."""

from collections.abc import AsyncIterator
from typing import Any

from ray.job_submission import JobDetails, JobStatus, JobType

from raypipe.submit.follow import Remote

LOG = "".join(f"line {number}\n" for number in range(10))


class BreakingClient:
    """Tails ``LOG`` by fives; breaks off after each of these numbers of characters, once."""

    def __init__(self, *breaks: int) -> None:
        self._breaks = list(breaks)

    def get_address(self) -> str:
        return "http://127.0.0.1:1"

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        for start in range(0, len(LOG), 5):
            if self._breaks and start >= self._breaks[0]:
                del self._breaks[0]
                msg = "closed unexpectedly"
                raise RuntimeError(msg)
            yield LOG[start : start + 5]

    def get_job_info(self, submission_id: str) -> JobDetails:
        status = JobStatus.RUNNING if self._breaks else JobStatus.FAILED
        return JobDetails(
            type=JobType.SUBMISSION, submission_id=submission_id, status=status, entrypoint="", driver_exit_code=3
        )

    def get_job_logs(self, _: str) -> str:
        return LOG


def followed(client: Any) -> tuple[str, int]:  # noqa: ANN401 - stands in for Ray's
    """What is written, and the exit code."""
    written: list[str] = []
    code = Remote(client).follow("a", write=written.append)
    return "".join(written), code


def test_each_line_is_written_once_though_the_line_breaks() -> None:
    assert followed(BreakingClient(20, 10, 45)) == (LOG, 3)


def test_what_follows_the_last_break_is_written() -> None:
    assert followed(BreakingClient(20)) == (LOG, 3)
