"""Broken promises, and the tests that must notice."""
