"""Inject a fault at every S3 call of a run: count the calls of an undisturbed run, then hit each of them.

After each fault, repeat the same command until it succeeds, then run it once more with ``--retry transient``. Every
promise must hold, and every video that still exists must have the vectors of the undisturbed run.
"""

import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiobotocore.retries.adaptive import AsyncClientRateLimiter  # type: ignore[import-untyped]
from botocore.retries.standard import ExponentialBackoff  # type: ignore[import-untyped]

from chaos.fault_proxy import Choose, FaultProxy, running_proxy
from chaos.job import Vectors, run_again_until_done, run_job, vectors_of
from raypipe.demo import s3_server
from raypipe.demo.s3_server import S3Server
from raypipe.status import TRANSIENT, Status
from raypipe.storage import Folder, s3_client
from support.embed_outputs import content, upload

BUCKET = "videos"
SPANS = (1, 3, 40)  # how many calls a fault lasts: one, as many as the client tries at once, all
_NUM_VIDEOS = 5


@dataclass
class Tally:
    """What was tried and what was found."""

    num_runs: int = 0
    num_faults: int = 0
    num_commands: Counter[int] = field(default_factory=Counter)  # how many times the command had to run -> runs
    endings: Counter[str] = field(default_factory=Counter)  # kinds of errors that a command ended with
    statuses: Counter[str] = field(default_factory=Counter)  # of rows before their retry
    problems: list[str] = field(default_factory=list)


class Scene:
    """An input on a real S3 server behind a proxy, and the rows of an undisturbed run."""

    def __init__(self, server: S3Server, place: str, *, seed: int = 0) -> None:
        self.source = Folder(f"s3://{BUCKET}/{place}/in")
        self._place = place
        self._client: Any = s3_server._client(server)
        self._draw = random.Random(seed)
        self._videos = {f"{number}.mp4": content(seed=seed + number) for number in range(_NUM_VIDEOS)}
        self._tampered: dict[str, str] = {}
        self._num_outputs = 0
        self.num_calls = 0
        self.expected: dict[str, tuple[str, Vectors | None]] = {}

    def prepare(self, proxy: FaultProxy) -> None:
        """Upload the videos and run without a fault."""
        upload(self.source, self._videos)
        output = self.new_output()
        proxy.tell(lambda _: "")
        run_job(self.source, output)
        self.num_calls = len(proxy.calls)
        self.expected = vectors_of(output)
        assert {status for status, _ in self.expected.values()} == {"ok"}

    def tamper(self, fault: str) -> None:
        """Change or delete one of the videos during the run."""
        name = self._draw.choice(sorted(self._videos))
        self._tampered[name] = fault
        key = f"{self._place}/in/{name}"
        if fault == "deleted":
            self._client.delete_object(Bucket=BUCKET, Key=key)
        else:  # different bytes that decode to the same frames
            padding = b" " * self._draw.randint(1, 99)
            self._client.put_object(Bucket=BUCKET, Key=key, Body=self._videos[name] + padding)

    def strike(self, proxy: FaultProxy, choose: Choose, *, what: str, tally: Tally) -> None:
        """Run while the proxy injects faults, and record every problem."""
        output = self.new_output()
        proxy.tell(choose)
        try:
            endings = run_again_until_done(self.source, output, fix_cause=proxy.calm)
            tally.num_faults += proxy.num_faults
            proxy.calm()
            tally.num_commands[len(endings) + 1] += 1
            tally.endings.update(ending.partition(":")[0] for ending in endings)
            self._compare(vectors_of(output), is_final=False, tally=tally)
            run_again_until_done(self.source, output, retry="transient")
            self._compare(vectors_of(output), is_final=True, tally=tally)
        except Exception as error:  # noqa: BLE001 - any error is a finding
            tally.problems.append(f"{what}: {type(error).__name__}: {error}"[:500])
        tally.num_runs += 1
        for name in self._tampered:
            self._client.put_object(Bucket=BUCKET, Key=f"{self._place}/in/{name}", Body=self._videos[name])
        self._tampered.clear()

    def _compare(self, found: dict[str, tuple[str, Vectors | None]], *, is_final: bool, tally: Tally) -> None:
        for name, (_, vectors) in self.expected.items():
            is_deleted = self._tampered.get(name) == "deleted"
            if name not in found:
                assert is_deleted, f"{name} is lost"
                continue
            status, now = found[name]
            if not is_final:
                tally.statuses[status] += 1
            if status == Status.OK:
                assert now == vectors, f"{name} has other vectors"
            elif status == Status.GONE:
                assert is_deleted, f"{name} is there and marked as gone"
            else:
                assert status in TRANSIENT, f"{name} is {status}"
                assert not is_final or is_deleted, f"{name} is still {status}"

    def new_output(self) -> Folder:
        """Return a new, empty output."""
        self._num_outputs += 1
        return Folder(f"s3://{BUCKET}/{self._place}/out-{self._num_outputs}")


def from_call(fault: str, index: int, span: int) -> Choose:
    """Choose the fault for ``span`` calls, starting with call ``index``."""
    return lambda call: fault if index <= call.index < index + span else ""


def at_random(fault: str, fraction: float, seed: int) -> Choose:
    """Choose the fault for this fraction of the calls."""
    draw = random.Random(seed)
    return lambda _: fault if draw.random() < fraction else ""


@contextmanager
def impatient(*, retry_seconds: float = 2.0) -> Iterator[None]:
    """Retry without pauses and for a few seconds only: the retries are the same, they only take less time."""

    async def at_once(*_: object, **__: object) -> None:
        pass

    before = logging.getLogger("raypipe").level
    logging.getLogger("raypipe").setLevel(logging.CRITICAL)  # it logs every fault
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3_client, "MAX_PAUSE_SECONDS", 0.01)
        patch.setattr(s3_client, "RETRY_SECONDS", retry_seconds)
        patch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0)
        patch.setattr(AsyncClientRateLimiter, "on_sending_request", at_once)
        yield
    logging.getLogger("raypipe").setLevel(before)


@contextmanager
def prepared_scene(server: S3Server, place: str, *, seed: int = 0) -> Iterator[tuple[Scene, FaultProxy]]:
    """Yield a prepared scene and its running proxy, which is the S3 endpoint of this process."""
    scene = Scene(server, place, seed=seed)
    with pytest.MonkeyPatch.context() as patch, running_proxy(server.endpoint_url, tamper=scene.tamper) as proxy:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        scene.prepare(proxy)
        yield scene, proxy


def strike_all(
    scene: Scene, proxy: FaultProxy, faults: Sequence[str], *, span: int, tally: Tally, every: int = 1, first: int = 0
) -> None:
    """Inject each fault at every call of a run, or at every ``every``-th one."""
    for fault in faults:
        for index in range(first, scene.num_calls, every):
            what = f"{fault} at call {index} of {scene.num_calls}, for {span}"
            scene.strike(proxy, from_call(fault, index, span), what=what, tally=tally)
