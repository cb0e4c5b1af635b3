"""Keep `make test` fast: a pytest plugin that reports slow tests, and fails very slow ones in CI.

Only the call of a test counts, not its fixtures; tests marked ``slow`` or ``nightly`` have no limit.
"""

import os
from collections.abc import Generator
from typing import Any

import pytest

WARN_SECONDS = 5.0
FAIL_SECONDS = 30.0  # a shared machine is sometimes two or three times slower
# Tests of `make test` that may take longer, each with its reason.
ALLOWED: dict[str, str] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, fail a call over ``FAIL_SECONDS`` that is not in ``ALLOWED``."""
    report = yield
    if is_slow(report, FAIL_SECONDS) and "CI" in os.environ and item.nodeid not in ALLOWED and report.passed:
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} took {call.duration:.1f} s; the limit of `make test` is {FAIL_SECONDS:g} s. "
            "Make it faster, mark it slow, or add it to ALLOWED in tests/support/time_limits.py with a reason."
        )
    return report


def is_slow(report: pytest.TestReport, limit_seconds: float) -> bool:
    """Return whether a test of `make test` took longer."""
    return (
        report.when == "call" and report.duration > limit_seconds and not {"slow", "nightly"} & report.keywords.keys()
    )


class SlowCalls:
    """Collect slow calls, also from other processes, and list them at the end."""

    def __init__(self) -> None:
        self._reports: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if is_slow(report, WARN_SECONDS):
            self._reports.append(report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._reports:
            terminalreporter.section(f"tests over {WARN_SECONDS:g} s", sep="-", yellow=True)
        for report in sorted(self._reports, key=lambda report: -report.duration):
            reason = f" (allowed: {ALLOWED[report.nodeid]})" if report.nodeid in ALLOWED else ""
            terminalreporter.line(f"{report.duration:6.1f} s  {report.nodeid}{reason}", yellow=True)


def pytest_configure(config: pytest.Config) -> None:
    """Register the collector."""
    config.pluginmanager.register(SlowCalls())
