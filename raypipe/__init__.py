"""raypipe: buckets of videos become embeddings, labels and recommendations, on Ray.

    import raypipe

    raypipe.embed("~/Videos", "~/embeddings", backbone="resnet18")
    raypipe.index("~/embeddings", "~/index")
    raypipe.VideoIndex.open("~/index").recommend(["cats/1.mp4"], top_k=5)

Importing this package loads nothing else: neither Ray nor torch nor pyarrow. A public name is loaded when it is first
used; ``__init__.pyi`` lists them all, for type checkers and for this module.
"""

import ast
from functools import cache
from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    homes = _homes()
    if name == "__all__":
        return sorted(homes)
    if name not in homes:
        msg = f"module 'raypipe' has no attribute {name!r}"
        raise AttributeError(msg, name=name)
    value: object = getattr(import_module(homes[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_homes()})


@cache
def _homes() -> dict[str, str]:
    """Return the module of each public name."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}
