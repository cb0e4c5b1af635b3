"""Drivers that are stepped from storage call to storage call, and brought back to any place where they were."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from types import ModuleType, TracebackType
from typing import Self

import greenlet
import pytest

from chaos.memory_storage import Bucket, MemoryStorage, Reply, Request, StoredStorage
from raypipe.dataset import commit, plan, planner, read, verify
from raypipe.storage import folder

_MODULES: tuple[ModuleType, ...] = (commit, plan, planner, read, verify)


@dataclass(eq=False, slots=True)
class Position:
    """How far a driver is. There is one object for each way of a driver, so that they compare by identity."""

    driver: str
    before: "tuple[Position, Reply] | None"  # where it was, and the reply that brought it here
    request: Request | None = None  # what it asks next; None when it is done
    after: dict[Reply, "Position"] = field(default_factory=dict)
    live: greenlet.greenlet | None = None  # stands at this call, until it is stepped
    num_calls: int = 0  # that were answered


class SteppedStorage(MemoryStorage):
    """Hands each call to the greenlet that stepped the caller, which comes back with the reply when it likes."""

    def answer(self, request: Request) -> Reply:
        """The reply that the next step brings."""
        stepping = greenlet.getcurrent().parent
        assert stepping is not None
        return stepping.switch(request)


class Drivers:
    """Runs ``drive(name)`` for any number of names; ``problems`` is what they raised."""

    def __init__(self, drive: Callable[[str], None]) -> None:
        self.problems: list[str] = []
        self.num_replays = 0
        self._drive = drive
        self._starts: dict[str, Position] = {}
        self._storage: MemoryStorage = SteppedStorage()

    def start(self, driver: str) -> Position:
        """A driver at its first call."""
        if driver not in self._starts:
            self._starts[driver] = Position(driver, None)
            self._run(self._starts[driver])
        return self._starts[driver]

    def step(self, position: Position, reply: Reply) -> Position:
        """The driver at its next call."""
        if reply not in position.after:
            position.after[reply] = Position(position.driver, (position, reply), num_calls=position.num_calls + 1)
            self._run(position.after[reply])
        return position.after[reply]

    def _run(self, position: Position) -> None:
        """Bring a driver to a position where it never was."""
        try:
            if position.before is None:
                position.live = greenlet.greenlet(self._drive)
                position.request = position.live.switch(position.driver)
            else:
                before, reply = position.before
                live = before.live or self._replay(before)
                position.live, before.live = live, None
                position.request = live.switch(reply)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises in a sound storage is a finding
            self.problems.append(f"{position.driver} raised {type(error).__name__}: {error}")

    def _replay(self, position: Position) -> greenlet.greenlet:
        """Bring another life of a driver to a position that an earlier one has left."""
        self.num_replays += 1
        way: list[tuple[Position, Reply]] = []
        at = position
        while at.before is not None:
            way.append(at.before)
            at = at.before[0]
        live = greenlet.greenlet(self._drive)
        request = live.switch(position.driver)
        for passed, reply in reversed(way):
            assert request == passed.request, "not the same run again"
            request = live.switch(reply)
        return live

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the stepped storage behind every folder, threads in line, and stop the clock."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "storage_of", lambda _: self._storage)
            for module in _MODULES:
                if hasattr(module, "ThreadPoolExecutor"):
                    patch.setattr(module, "ThreadPoolExecutor", Inline)
                if hasattr(module, "datetime"):
                    patch.setattr(module, "datetime", Stopped)
            yield

    @contextmanager
    def looking_at(self, bucket: Bucket) -> Iterator[None]:
        """Put a bucket behind every folder, for whoever only reads."""
        self._storage, stepped = StoredStorage(bucket), self._storage
        yield
        self._storage = stepped


class Inline:
    """A pool of threads that has none: a driver's calls come in one order."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    map = staticmethod(map)


class Stopped(datetime):
    """A clock that stands: the same run writes the same bytes."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """Always the same."""
        return cls(2026, 1, 1, tzinfo=tz or UTC)
