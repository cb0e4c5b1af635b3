"""How workers tell the driver what happens: an actor that both know."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Event = tuple[str, Mapping[str, Any]]
_POLL_SECONDS = 0.2


class _Feed:
    """Holds events until the driver takes them."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def tell(self, kind: str, about: Mapping[str, Any]) -> None:
        """Add an event."""
        self._events.append((kind, about))

    def take(self) -> list[Event]:
        """Give all events that nobody has taken."""
        events, self._events = self._events, []
        return events


def start_feed() -> Any:  # noqa: ANN401 - an actor
    """Start the actor on this node; it ends with the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(_Feed)
    return actor.options(num_cpus=0, scheduling_strategy=here).remote()


def listen(feed: Any, work: Callable[[], object]) -> Iterator[Event]:  # noqa: ANN401 - an actor
    """Do the work in a thread, and yield what is told until it ends; then raise what it raised, if anything."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - it is raised where the work was asked for
            raised.append(error)

    # A daemon: Ctrl-C ends the driver, and with it the workers, not only after them.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        yield from ray.get(feed.take.remote())
        time.sleep(_POLL_SECONDS)
    yield from ray.get(feed.take.remote())
    if raised:
        raise raised[0]
