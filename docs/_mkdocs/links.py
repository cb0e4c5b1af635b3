"""Which page of the site shows which file of the repository.

A link in ``docs/`` names a file, so it works on GitHub. The site shows some of these files as pages, and replaces the
sources of the command line, the configuration, the columns and so on by a generated reference.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
INCLUDED = {  # Markdown files outside docs/, shown whole
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/RESULTS.md": "results.md",
    "tests/chaos/RESULTS.md": "chaos.md",
}
LISTINGS = (  # other files, shown as code
    "cluster-aws.yaml",
    "cluster.yaml",
    "jobs/kubernetes/Dockerfile",
    "jobs/kubernetes/rayjob-embed.yaml",
    "jobs/kubernetes/rayjob-train.yaml",
    "jobs/kubernetes/rayservice.yaml",
    "raypipe/monitoring/prometheus.yml",
)
GENERATED = {  # sources, and the reference that is generated from them
    "raypipe/__init__.pyi": "reference/python.md",
    "raypipe/cli": "reference/cli.md",
    "raypipe/config": "reference/configuration.md",
    "raypipe/endpoint/schemas.py": "reference/http.md",
    "raypipe/schema.py": "reference/columns.md",
}
_ELSEWHERE = {
    **INCLUDED,
    **{name: f"files/{name}.md" for name in LISTINGS},
    **GENERATED,
    "README.md": "index.md",
    "jobs": "reference/configuration.md",
    "jobs/kubernetes": "kubernetes.md",
    "raypipe/status.py": "reference/columns.md#statuses",
    **{f"jobs/{path.name}": f"reference/configuration.md#{path.stem}" for path in (ROOT / "jobs").glob("*.yaml")},
}
_SOURCES = {page: source for source, page in INCLUDED.items()}
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")


def links_of(markdown: str) -> Iterator[tuple[str, str]]:
    """Yield the target and the anchor of each relative link in a text. The anchor may be empty."""
    yield from ((found[1], (found[2] or "").removeprefix("#")) for found in _LINK.finditer(markdown))


def file_of(target: str, *, source: str) -> str:
    """Return the file or folder that a relative link names. ``source`` is the file with the link."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def page_of(name: str) -> str | None:
    """Return the page that shows a file of the repository, or None if no page does."""
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return _ELSEWHERE.get(name)


def for_site(markdown: str, page: str) -> str:
    """Return the text of a page with links to pages in place of links to files."""
    source = _SOURCES.get(page, f"docs/{page}")

    def replace(found: re.Match[str]) -> str:
        shown = page_of(file_of(found[1], source=source))
        if shown is None:
            return found[0]
        path, _, anchor = shown.partition("#")
        return posixpath.relpath(path, posixpath.dirname(page) or ".") + (found[2] or (anchor and f"#{anchor}"))

    return _LINK.sub(replace, markdown)
