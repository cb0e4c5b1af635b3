"""Test helpers: data they make, processes they start, and fixtures."""

from pathlib import Path

TESTS = Path(__file__).parents[1]  # the working directory of ``python -m support.…``
