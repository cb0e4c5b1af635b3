"""The outputs of real jobs; here and not in ``tests/conftest.py``, as their modules load Ray Serve and torch."""

from support.fixtures.jobs import endpoint, source, trained

__all__ = ["endpoint", "source", "trained"]
