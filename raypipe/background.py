"""Work in the background: futures of daemon threads, and processes that end with their parent."""

import ctypes
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

_PR_SET_PDEATHSIG = 1
T = TypeVar("T")


def in_background(work: Callable[[], T]) -> Future[T]:
    """Run ``work`` in a daemon thread, and return a future of its result.

    Unlike the threads of a ``ThreadPoolExecutor``, a daemon thread does not keep a failed process alive.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - ``Future.result`` raises it
            future.set_exception(error)
        else:
            future.set_result(result)

    Thread(target=run, daemon=True, name="background").start()
    return future


def end_with_parent() -> Callable[[], None] | None:
    """Return a function that lets Linux kill the calling process when its parent ends, even if the parent is killed.

    Return None on other systems. The function may run between fork and exec, where nothing may allocate or lock.
    """
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def ask_for_sigkill() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return ask_for_sigkill
