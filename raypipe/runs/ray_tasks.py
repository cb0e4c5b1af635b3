"""Call plain functions as tasks of Ray, which may run on other machines, and fetch their results."""

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from raypipe.errors import JobError, RaypipeError
from raypipe.runs.actors import connect, reason_of

Reference = Any  # stands for a result that a task will have, or for a shared value


class Tasks(Protocol):
    """Calls functions, perhaps in other processes. The commands use ``RayTasks``."""

    def share(self, value: object) -> Reference:
        """Make a value available to all calls, which can take the reference as an argument."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Reference:  # noqa: ANN401
        """Start a call, and return a reference to its result. An argument that is a reference becomes its value."""

    def call_many(self, function: Callable[..., Any], *arguments: Any, num_results: int) -> list[Reference]:  # noqa: ANN401
        """Start a call of a function that returns a list of at least two, and return a reference to each member."""

    def get(self, reference: Reference) -> Any:  # noqa: ANN401
        """Wait for a result.

        Raises:
            RaypipeError: the function has raised this error.
            JobError: the function failed otherwise, or its process was ended too often.
        """


class RayTasks:
    """Runs each call as a task with one CPU. Ray runs a task again if its process or its node dies."""

    def __init__(self) -> None:
        """Connect to Ray. Raises SetupError if that fails."""
        connect()

    def share(self, value: object) -> Reference:
        """Put a value into Ray's object store."""
        return ray.put(value)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Reference:  # noqa: ANN401
        """Start a task."""
        return _remote(function).remote(*arguments)

    def call_many(self, function: Callable[..., Any], *arguments: Any, num_results: int) -> list[Reference]:  # noqa: ANN401
        """Start a task with several results."""
        references: list[Reference] = _remote(function).options(num_returns=num_results).remote(*arguments)
        return references

    def get(self, reference: Reference) -> Any:  # noqa: ANN401
        """Fetch a result from the object store.

        Raises:
            RaypipeError: the function has raised this error.
            JobError: the function failed otherwise, or its process was ended too often.
        """
        try:
            return ray.get(reference)
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, RaypipeError):
                raise error.cause from None
            msg = f"Ray ended the work: {reason_of(error)}."
            raise JobError(msg, remedy="The same command starts again.") from error


@cache
def _remote(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - Ray's type is generic in each argument
    return ray.remote(num_cpus=1)(function)
