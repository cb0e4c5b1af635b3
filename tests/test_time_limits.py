"""The time limit of tests, applied to a suite that this test creates."""

import pytest

from support import TESTS

pytest_plugins = ["pytester"]
CONFTEST = """
from support import time_limits

time_limits.WARN_SECONDS, time_limits.FAIL_SECONDS = 0.01, 0.1
time_limits.ALLOWED["test_suite.py::test_allowed"] = "it trains a model"
"""
SUITE = """
import time
import pytest

def test_fast():
    pass

def test_warned():
    time.sleep(0.02)

def test_too_slow():
    time.sleep(0.15)

def test_allowed():
    time.sleep(0.15)

@pytest.mark.slow
def test_of_another_tier():
    time.sleep(0.15)
"""


@pytest.mark.parametrize("is_ci", [True, False])
def test_slow_calls_are_listed_and_fail_in_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *, is_ci: bool
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("CI", raising=False)
    if is_ci:
        monkeypatch.setenv("CI", "true")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_suite=SUITE)
    pytester.makeini("[pytest]\nmarkers =\n    slow\n    nightly")
    ran = pytester.runpytest_subprocess("-p", "support.time_limits")
    ran.assert_outcomes(passed=4 if is_ci else 5, failed=int(is_ci))
    listed = [line.partition("::")[2] for line in ran.outlines if " s  test_suite.py::" in line]
    assert sorted(listed) == ["test_allowed (allowed: it trains a model)", "test_too_slow", "test_warned"]
