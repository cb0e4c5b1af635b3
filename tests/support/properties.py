"""How many examples a property test tries: all of them in the nightly tier, a quarter elsewhere."""

import os

from hypothesis import HealthCheck, settings

THOROUGH = "RAYPIPE_THOROUGH"


def examples(number: int) -> int:
    """Return how many of ``count`` examples to try here."""
    return number if THOROUGH in os.environ else max(5, number // 4)


def load_profile() -> None:
    """Set what all property tests share: no deadline, because nothing is timed, and fixtures that all examples use."""
    settings.register_profile(
        "raypipe",
        max_examples=examples(100),
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("raypipe")
