"""What tests put into a folder and find in it."""

from raypipe.storage import Folder


def fill(folder: Folder, *names: str) -> Folder:
    """Put objects of these names into a folder, each with content of its own."""
    for name in names:
        assert folder.put_new(name, f"content of {name}".encode())
    return folder


def keys(folder: Folder, prefix: str = "") -> list[str]:
    """The keys of a listing, sorted."""
    return sorted(stored.key for stored in folder.list(prefix))


def num_committed(output: Folder) -> int:
    """How many shards are committed."""
    return sum(1 for _ in output.list("data/"))
