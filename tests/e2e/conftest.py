"""The outputs of real jobs. They are not in ``tests/conftest.py`` because their modules load Ray Serve and torch."""

from support.fixtures.jobs import endpoint, source, trained

__all__ = ["endpoint", "source", "trained"]
