import pytest

from support.properties import load_profile

pytest_plugins = (
    "support.time_limits",
    "support.fixtures.scheduling",
    "support.fixtures.stored",
    "support.fixtures.ray_session",
)
_LONGEST = "e2e/test_every_job.py"

load_profile()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest file: one of two processes runs it while the other runs the rest."""
    items.sort(key=lambda item: _LONGEST not in item.nodeid)
