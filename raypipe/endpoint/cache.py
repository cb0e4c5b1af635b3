"""Where versions of an index that lies in a bucket are kept on this machine."""

import hashlib
import shutil
from pathlib import Path

from raypipe.search.versions import cache_folder

_KEPT = 3  # versions: the live one, one to go back to, one that another replica may still be loading


def cache_of(index_uri: str, folder: str | None) -> Path:
    """The folder of one index, below the given one or below the user's cache."""
    return cache_folder(folder) / hashlib.sha256(index_uri.encode()).hexdigest()[:16]


def prune(cache: Path, *, live: str) -> None:
    """Delete all versions but the newest few and the live one; whoever still serves another has its files open."""
    if not cache.is_dir():
        return
    versions = sorted(path for path in cache.iterdir() if path.is_dir() and not path.name.startswith("."))
    for path in versions[:-_KEPT]:
        if path.name != live:
            shutil.rmtree(path, ignore_errors=True)
            path.with_name(f".{path.name}.lock").unlink(missing_ok=True)
