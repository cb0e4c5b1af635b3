"""How the code is organized: no import cycles, and unique names. Reads the sources and imports none of them."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PUBLIC_FUNCTIONS = {"embed", "train", "classify", "index", "recommend", "serve", "suggest", "verify"}
JOB_PARTS = {"job", "inputs", "shard", "verify"}  # the files that every job has
Imports = dict[str, dict[str, int]]  # importer -> imported module -> line of the import


@pytest.fixture(scope="module")
def sources() -> dict[Path, ast.Module]:
    """Parse every file of raypipe."""
    return {path: ast.parse(path.read_bytes()) for path in sorted((ROOT / "raypipe").rglob("*.py"))}


def test_no_import_cycle_in_raypipe(sources: dict[Path, ast.Module]) -> None:
    expect_none(cycles(sources, below=ROOT))


def test_no_import_cycle_in_benchmarks() -> None:
    sources = {path: ast.parse(path.read_bytes()) for path in sorted((ROOT / "benchmarks").rglob("*.py"))}
    expect_none(cycles(sources, below=ROOT / "benchmarks"))


def test_module_names_are_unique(sources: dict[Path, ast.Module]) -> None:
    """Exceptions: cli/ and config/, which have one file per command, and the files that every job has."""
    places = defaultdict(list)
    for path in sources:
        folder = path.relative_to(ROOT / "raypipe").parts[0]
        is_job_part = folder == "jobs" and path.stem in JOB_PARTS
        if not is_job_part and folder not in {"cli", "config"} and path.stem != "__init__":
            places[path.stem].append(str(path.relative_to(ROOT)))
    expect_none(repeated(places))


def test_class_names_are_unique(sources: dict[Path, ast.Module]) -> None:
    places = defaultdict(list)
    for path, tree in sources.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    expect_none(repeated(places))


@pytest.mark.parametrize("name", sorted(PUBLIC_FUNCTIONS))
def test_no_module_replaces_a_public_function(name: str) -> None:
    """Importing ``raypipe.embed.anything`` would replace the function ``raypipe.embed`` by the package."""
    expect_none([f"raypipe.{name} is also {path}" for path in (ROOT / "raypipe").glob(f"{name}*") if path.stem == name])


def test_a_cycle_is_found_and_both_places_are_named(tmp_path: Path) -> None:
    texts = {
        "pack/__init__.py": "from pack.a import A",
        "pack/a.py": "\nif TYPE_CHECKING:\n    from pack.b import B\n",
        "pack/b.py": "def late():\n    from . import c",
        "pack/c.py": "import pack.a",
        "pack/d.py": "from pack import c",
    }
    sources = {tmp_path / name: ast.parse(text) for name, text in texts.items()}
    assert cycles(sources, below=tmp_path) == ["pack/a.py:3 → pack/b.py:2 → pack/c.py:1 → pack/a.py"]
    assert cycles({path: tree for path, tree in sources.items() if path.stem != "b"}, below=tmp_path) == []


def expect_none(problems: list[str]) -> None:
    """Fail with one line per problem; an assertion on the list would truncate it."""
    assert not problems, "\n".join(["", *problems])


def repeated(places: Mapping[str, list[str]]) -> list[str]:
    """Return a line for each name that is in several places."""
    return [f"{name}: {', '.join(found)}" for name, found in sorted(places.items()) if len(found) > 1]


def cycles(sources: Mapping[Path, ast.Module], *, below: Path) -> list[str]:
    """Return a line per import cycle: the file and line of every import in it. Cycles that share an import count once.

    Imports in functions and under TYPE_CHECKING count too. The implicit import of a package's
    ``__init__`` does not.
    """
    files = {module_name(path, below): path for path in sources}
    imports = {name: dict(imported_modules(sources[path], name, path, files)) for name, path in files.items()}
    found = []
    while cycle := _first_cycle(imports):
        places = [f"{files[name].relative_to(below)}:{imports[name][after]}" for name, after in cycle]
        found.append(" → ".join([*places, str(files[cycle[0][0]].relative_to(below))]))
        for name, after in cycle:
            del imports[name][after]
    return found


def _first_cycle(imports: Imports) -> list[tuple[str, str]]:
    """Return the imports of one cycle as (importer, imported)."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        names = error.args[1][:0:-1]  # each imports the next, and the last one the first
        start = names.index(min(names))
        names = names[start:] + names[:start]
        return list(zip(names, [*names[1:], names[0]], strict=True))
    return []


def module_name(path: Path, below: Path) -> str:
    """Return the name by which a file is imported."""
    parts = path.relative_to(below).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(tree: ast.Module, name: str, path: Path, files: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    """Yield each module among ``files`` that a module imports, and the line."""
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            outer = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (outer, node.module)))
            members = [f"{base}.{alias.name}" for alias in node.names]
            targets = [member if member in files else base for member in members]
        else:
            continue
        yield from ((target, node.lineno) for target in targets if target in files and target != name)
