"""The documentation: every page is in the navigation, every link leads somewhere, and every command line is valid."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from links import GENERATED, INCLUDED, LISTINGS, ROOT, file_of, links_of, page_of
from raypipe.cli import app
from raypipe.config.templates import MODELS

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
PAGES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
TEXTS = ["README.md", *PAGES, *INCLUDED]
HISTORY = {"CHANGELOG.md"}  # it may name options that exist no more
CALL = re.compile(r"(?:\S*/|RAY_ADDRESS=\S+ |\$ )?raypipe ([a-z].*)")
PLACEHOLDERS = {"…", "..."}


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def navigation(tree: object) -> Iterator[str]:
    """Yield the pages of a navigation, in order."""
    if isinstance(tree, str):
        yield tree
    else:
        for inner in tree.values() if isinstance(tree, dict) else tree:  # type: ignore[attr-defined]
            yield from navigation(inner)


def anchors_of(markdown: str) -> set[str]:
    """Return the anchors that GitHub and the site give to headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", markdown, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def calls_in(markdown: str) -> Iterator[tuple[str, bool]]:
    """Yield the command lines of raypipe in a text, without the program, and whether each is in a block of code."""
    joined = markdown.replace("\\\n", " ")
    fenced = re.findall(r"^```(?:\w*)\n(.*?)^```", joined, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^(?: {4}|\t)\s*(\S.*)$", joined, re.MULTILINE)
    for line in [*indented, *(line for block in fenced for line in block.splitlines())]:
        if found := CALL.match(line):
            yield found[1], True
    for code in re.findall(r"`([^`\n]+)`", joined):
        if found := CALL.fullmatch(code):
            yield found[1], False


def words_of(call: str) -> list[str]:
    """Return the command and its arguments, up to a redirection or the next command."""
    usage = re.sub(r"\[(CONFIG|--[^]]*)\]", r"\1", call)  # what may be left out is in brackets
    words = shlex.split(usage, comments=True)
    end = next((at for at, word in enumerate(words) if word in {";", "&&", "|", ">"}), len(words))
    return [word.rstrip(";") for word in words[:end] if word not in PLACEHOLDERS]


def problem_of(call: str, *, complete: bool) -> str | None:
    """Return what is wrong with a command line, or None."""
    name, *arguments = words_of(call)
    if name not in COMMANDS:
        return f"no command {name!r}"
    command = COMMANDS[name]
    known = {opt for one in command.params for opt in one.opts} | {"--help", "-h"}
    if unknown := [word for word in arguments if word.startswith("-") and word.partition("=")[0] not in known]:
        return f"no option {unknown[0]}"
    job = {"plan": "embed", "submit": Path(next(iter(arguments), "")).stem}.get(name, name)
    keys = [after.partition("=")[0] for word, after in pairwise(arguments) if word == "--set"]
    if job in MODELS and (wrong := [key for key in keys if not has_key(MODELS[job].model_json_schema(), key)]):
        return f"no key {wrong[0]}"
    if complete:
        try:
            command.make_context(name, arguments)
        except Exception as error:  # noqa: BLE001 - typer has several kinds of usage errors
            return str(error)
    return None


def has_key(schema: dict[str, Any], key: str) -> bool:
    """Return whether a configuration has a dotted key. A map may have any key."""
    sections = schema.get("$defs", {})
    for part in key.split("."):
        options = [schema, *schema.get("anyOf", ())]
        options = [sections[one["$ref"].rpartition("/")[2]] if "$ref" in one else one for one in options]
        if any("additionalProperties" in one and one["additionalProperties"] is not False for one in options):
            return True
        found = [one["properties"][part] for one in options if part in one.get("properties", {})]
        if not found:
            return False
        schema = found[0]
    return True


def test_every_page_is_in_the_navigation_once() -> None:
    config = yaml.safe_load(text_of("mkdocs.yml"))
    pages = {page.removeprefix("docs/") for page in PAGES} | {*INCLUDED.values()} | {*GENERATED.values()}
    assert sorted(navigation(config["nav"])) == sorted(pages)


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_to_a_file_or_a_page(name: str) -> None:
    for target, anchor in links_of(text_of(name)):
        file = file_of(target, source=name)
        assert (ROOT / file).exists(), f"{name} links to {target}"
        if name != "README.md" and not file.startswith("docs/"):
            assert page_of(file) is not None, f"{name} links to {target}, which the site does not show"
        if anchor and file.endswith(".md"):
            assert anchor in anchors_of(text_of(file)), f"{name} links to {target}#{anchor}"


@pytest.mark.parametrize("name", [*INCLUDED, *LISTINGS, *GENERATED])
def test_a_page_shows_a_file_that_exists(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in HISTORY])
def test_every_command_line_is_valid(name: str) -> None:
    found = {call: problem_of(call, complete=complete) for call, complete in calls_in(text_of(name))}
    assert {call: problem for call, problem in found.items() if problem} == {}


def test_wrong_command_lines_are_reported() -> None:
    block = "```\nraypipe serve --port\nraypipe train --set model.x=1\n```\n"
    text = f"`raypipe nope`\n\n    raypipe embed --inptu x   # a comment\n\n{block}"
    problems = [problem_of(call, complete=complete) for call, complete in calls_in(text)]
    assert problems[:1] + problems[2:] == ["no option --inptu", "no key model.x", "no command 'nope'"]
    assert "--port" in str(problems[1])


def test_a_wrong_link_is_found() -> None:
    links = dict(links_of("[a](b.md#c), [d](https://e/f.md), [g](#h) and [i](../SECURITY.md)"))
    assert links == {"b.md": "c", "../SECURITY.md": ""}
    assert file_of("b.md", source="docs/x.md") == "docs/b.md"
    assert page_of(file_of("../SECURITY.md", source="docs/x.md")) == "security.md"
    assert page_of("Makefile") is None
