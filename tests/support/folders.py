"""Put objects into a folder, and look at its content."""

from raypipe.storage import Folder


def fill(folder: Folder, *names: str) -> Folder:
    """Put objects of these names into a folder, each with different content."""
    for name in names:
        assert folder.put_new(name, f"content of {name}".encode())
    return folder


def keys(folder: Folder, prefix: str = "") -> list[str]:
    """Return the sorted keys of a listing."""
    return sorted(stored.key for stored in folder.list(prefix))


def num_committed(output: Folder) -> int:
    """Return how many shards are committed."""
    return sum(1 for _ in output.list("data/"))
