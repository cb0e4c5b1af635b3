"""The hooks of mkdocs: they add the pages that are not in ``docs/``, and make links to files lead to pages."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import reference
from links import INCLUDED, LISTINGS, ROOT, for_site


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for source, page in INCLUDED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for name in LISTINGS:
        files.append(File.generated(config, f"files/{name}.md", content=_listing(name)))
    for page, make in reference.PAGES.items():
        files.append(File.generated(config, page, content=make()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs passes them
    """Replace the links of a page."""
    return for_site(markdown, page.file.src_uri)


def _listing(name: str) -> str:
    text = (ROOT / name).read_text("utf-8")
    language = "docker" if name.endswith("Dockerfile") else "yaml"
    return f"# {name}\n\n````{language}\n{text.rstrip()}\n````\n"
