import pytest

from raypipe.models.weights import prepare_torchvision

prepare_torchvision()  # before a test module imports transformers, which imports torchvision


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread: None) -> None:
    """All networks here are tiny."""
