"""Drivers that advance one storage call at a time, and can return to any earlier point."""

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
    """How far a driver is. Each history of a driver has one object, so positions compare by identity."""

    driver: str
    before: "tuple[Position, Reply] | None"  # the previous position, and the reply that led here
    request: Request | None = None  # the next call; None when the driver is done
    after: dict[Reply, "Position"] = field(default_factory=dict)
    live: greenlet.greenlet | None = None  # suspended at this call until the next step
    num_calls: int = 0  # answered so far


class SteppedStorage(MemoryStorage):
    """A storage that passes each call to the greenlet that stepped the caller; that greenlet decides when to reply."""

    def answer(self, request: Request) -> Reply:
        """Return the reply that the next step brings."""
        stepping = greenlet.getcurrent().parent
        assert stepping is not None
        return stepping.switch(request)


class Drivers:
    """Run ``drive(name)`` for any number of names; ``problems`` lists what they raised."""

    def __init__(self, drive: Callable[[str], None]) -> None:
        self.problems: list[str] = []
        self.num_replays = 0
        self._drive = drive
        self._starts: dict[str, Position] = {}
        self._storage: MemoryStorage = SteppedStorage()

    def start(self, driver: str) -> Position:
        """Return a driver at its first call."""
        if driver not in self._starts:
            self._starts[driver] = Position(driver, None)
            self._run(self._starts[driver])
        return self._starts[driver]

    def step(self, position: Position, reply: Reply) -> Position:
        """Return the driver at its next call."""
        if reply not in position.after:
            position.after[reply] = Position(position.driver, (position, reply), num_calls=position.num_calls + 1)
            self._run(position.after[reply])
        return position.after[reply]

    def _run(self, position: Position) -> None:
        """Advance a driver to a new position."""
        try:
            if position.before is None:
                position.live = greenlet.greenlet(self._drive)
                position.request = position.live.switch(position.driver)
            else:
                before, reply = position.before
                live = before.live or self._replay(before)
                position.live, before.live = live, None
                position.request = live.switch(reply)
        except Exception as error:  # noqa: BLE001 - any error of a driver on a healthy storage is a finding
            self.problems.append(f"{position.driver} raised {type(error).__name__}: {error}")

    def _replay(self, position: Position) -> greenlet.greenlet:
        """Replay a driver to a position that an earlier greenlet has passed."""
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
        """Put the stepped storage under every folder, run threads in order, and stop the clock."""
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
        """Put a bucket under every folder, for code that only reads."""
        self._storage, stepped = StoredStorage(bucket), self._storage
        yield
        self._storage = stepped


class Inline:
    """A thread pool without threads: a driver's calls come in a fixed order."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    map = staticmethod(map)


class Stopped(datetime):
    """A clock that stands still: the same run writes the same bytes."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        """Return always the same time."""
        return cls(2026, 1, 1, tzinfo=tz or UTC)
