"""Runs searches in the event loop or in threads: a short one blocks the loop for less than switching threads takes."""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

LONG_SECONDS = 0.005
PER_ROUND = 4  # polling for new requests takes a tenth of a short search
_WEIGHT = 0.3  # of the latest call in the moving average
_TIMED_EVERY = 32  # calls: reading the clock takes a tenth of a short search
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class _Kind:
    num_calls: int = 0
    seconds: float = 0.0


class Scheduler:
    """Runs a few pieces of work per round of the event loop, so that other requests can be refused in between.

    A kind of work that takes long, going by a sample of its calls, runs in a few threads.
    """

    def __init__(
        self, *, long_seconds: float = LONG_SECONDS, per_round: int = PER_ROUND, num_threads: int | None = None
    ) -> None:
        self._long_seconds = long_seconds
        self._kinds: dict[str, _Kind] = {}
        self._per_round = per_round
        self._num_done = 0  # in this round of the event loop
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._threads = ThreadPoolExecutor(num_threads or min(4, os.cpu_count() or 1), thread_name_prefix="search")

    async def run(self, name: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do the work in the event loop or in a thread, and return or raise what it does."""
        kind = self._kinds.setdefault(name, _Kind())
        if kind.seconds > self._long_seconds:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, lambda: _sampled(kind, work, *args, **kwargs))
        await self._turn()
        return _sampled(kind, work, *args, **kwargs)

    async def _turn(self) -> None:
        """Wait for the next round of the event loop if this one has done its share: the loop polls between rounds."""
        loop = asyncio.get_running_loop()
        if self._num_done == 0:
            loop.call_soon(self._next_round)
        if self._num_done < self._per_round and not self._waiting:
            self._num_done += 1
        else:
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append(turn)
            await turn

    def _next_round(self) -> None:
        self._num_done = 0
        while self._waiting and self._num_done < self._per_round:
            turn = self._waiting.popleft()
            if not turn.done():  # else its caller has left
                turn.set_result(None)
                self._num_done += 1
        if self._num_done:
            asyncio.get_running_loop().call_soon(self._next_round)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _sampled(kind: _Kind, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    kind.num_calls += 1
    if kind.num_calls % _TIMED_EVERY != 1:
        return work(*args, **kwargs)
    start = time.thread_time()  # of this thread only: on a busy machine others run in between
    try:
        return work(*args, **kwargs)
    finally:
        seconds = time.thread_time() - start
        kind.seconds = seconds if kind.num_calls == 1 else kind.seconds + _WEIGHT * (seconds - kind.seconds)
