"""Patches that break promises, and the tests that must notice."""
