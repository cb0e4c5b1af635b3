import asyncio
import threading
import time

import pytest

from raypipe.endpoint.service import Scheduler


def busy(seconds: float) -> str:
    """Use CPU time of the current thread, and return the thread's name."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return threading.current_thread().name


def test_short_work_runs_inline_and_long_work_on_a_thread() -> None:
    async def run() -> None:
        scheduler = Scheduler(long_seconds=0.02)
        here = threading.current_thread().name
        assert {await scheduler.run("short", busy, 0.0) for _ in range(100)} == {here}
        assert await scheduler.run("long", busy, 0.03) == here  # the first call cannot know yet
        assert {await scheduler.run("long", busy, 0.03) for _ in range(3)} != {here}
        assert await scheduler.run("short", busy, 0.0) == here
        scheduler.close()

    asyncio.run(run())


def test_work_that_became_short_runs_inline_again() -> None:
    async def run() -> None:
        scheduler = Scheduler(long_seconds=0.02)
        here = threading.current_thread().name
        await scheduler.run("kind", busy, 0.03)
        for _ in range(200):
            last = await scheduler.run("kind", busy, 0.0)
        assert last == here
        scheduler.close()

    asyncio.run(run())


def test_an_exception_of_work_is_raised() -> None:
    def fail() -> None:
        msg = "no"
        raise ValueError(msg)

    async def run() -> None:
        scheduler = Scheduler(long_seconds=0.0)
        for _ in range(3):
            with pytest.raises(ValueError, match="no"):
                await scheduler.run("kind", fail)
        assert await scheduler.run("kind", busy, seconds=0.0)
        scheduler.close()

    asyncio.run(run())


def test_other_tasks_run_between_two_pieces_of_work() -> None:
    async def run() -> None:
        scheduler = Scheduler(per_round=2)
        order: list[str] = []

        async def work(number: int) -> None:
            await scheduler.run("kind", order.append, f"work {number}")

        async def listen() -> None:
            for number in range(4):
                order.append(f"heard {number}")
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(work(number))
            group.create_task(listen())
        kinds = [what.split()[0] for what in order]
        assert [what for what in order if what.startswith("work")] == [f"work {number}" for number in range(6)]
        assert "work work work" not in " ".join(kinds)
        scheduler.close()

    asyncio.run(run())


def test_a_cancelled_caller_blocks_no_other() -> None:
    async def run() -> None:
        scheduler = Scheduler(per_round=1)
        done: list[int] = []
        tasks = [asyncio.create_task(scheduler.run("kind", done.append, number)) for number in range(6)]
        await asyncio.sleep(0)
        for number in (1, 2, 5):
            tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert done == [0, 3, 4]
        await scheduler.run("kind", done.append, 6)
        assert done[-1] == 6
        scheduler.close()

    asyncio.run(run())
