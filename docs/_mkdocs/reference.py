"""The reference pages, as Markdown: commands, configuration keys, columns and statuses, HTTP routes, Python names.

Everything is read from the code: typer's commands, pydantic's JSON schemas with the comments of ``jobs/*.yaml``, Arrow
schemas with the comments next to the column names, and the endpoint's OpenAPI.
"""

import ast
import inspect
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import typer
from starlette.testclient import TestClient

import raypipe
from raypipe import cli, schema, status
from raypipe.config.templates import MODELS, template
from raypipe.endpoint.index_watcher import IndexWatcher
from raypipe.endpoint.metrics import EndpointMetrics
from raypipe.endpoint.routes.application import build_application
from raypipe.endpoint.service import Scheduler, Service
from raypipe.search.versions import Versions
from raypipe.storage import Folder

Schema = Mapping[str, Any]
_NUMBERS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_TYPES = {"string": "text", "boolean": "true or false", "array": "list", "object": "map"}
_LENGTHS = {"maxItems": "items", "maxLength": "characters", "maxProperties": "keys"}
_HUGE = 2**53
_OUTPUTS: Mapping[str, Callable[[], pa.Schema]] = {
    "classify": schema.predictions_schema,
    "recommend": schema.recommendations_schema,
    "anomalies": schema.anomalies_schema,
}
_BULLET = re.compile(r"^- (``.*?): ((?:.*\n?)(?:  .*\n?)*)", re.MULTILINE)


def table(*header: str, rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())


def _plain(docstring: str | None) -> str:
    return inspect.cleandoc(docstring or "").replace("``", "`")


def commands() -> str:
    """Return the page of the command line."""
    group: Any = typer.main.get_command(cli.app)
    about = _plain(sys.modules["raypipe.cli.app"].__doc__).partition("\n\n")[2]
    listed = ((f"[`raypipe {name}`](#raypipe-{name})", command.help) for name, command in group.commands.items())
    parts = ["# Command line\n", about, "", table("command", "what it does", rows=listed)]
    for name, command in group.commands.items():
        context = command.make_context(name, [], resilient_parsing=True)
        rows = (_parameter(one, context) for one in command.params)
        parts += [f"## raypipe {name}\n", command.help, ""]
        parts.append(table("argument or option", "meaning", rows=rows))
    return "\n".join(parts)


def _parameter(one: Any, context: Any) -> tuple[str, ...]:  # noqa: ANN401 - the types of typer's own copy of click
    name, said = one.get_help_record(context)
    return f"`{name}`", f"{said}{' Repeatable.' if one.multiple else ''}"


def configuration() -> str:
    """Return the page with every key of every YAML file."""
    parts = [
        "# Configuration\n",
        "`raypipe init JOB` prints these keys with their defaults as YAML, and `raypipe init JOB --schema` as JSON",
        "Schema for editors. `--set KEY=VALUE` overrides one key. The Python functions take the same names. Unknown",
        "keys are errors.\n",
    ]
    for command, model in MODELS.items():
        described = model.model_json_schema()
        comments = dict(_comments(template(command)))
        rows = _keys(described, described.get("$defs", {}), comments)
        parts += [f"## {command}\n", _plain(described.get("description")), ""]
        parts.append(table("key", "type", "default", "meaning", rows=rows))
    return "\n".join(parts)


def _keys(section: Schema, sections: Schema, comments: Schema, prefix: str = "") -> Iterator[tuple[str, ...]]:
    for name, field in section["properties"].items():
        key = f"{prefix}{name}"
        inner = [sections[one["$ref"].rpartition("/")[2]] for one in (field, *field.get("anyOf", ())) if "$ref" in one]
        said = comments.get(key, "") or (_plain(inner[0].get("description")) if inner else "")
        is_section = "$ref" in field
        default = _default(field, name in section.get("required", ()))
        yield f"`{key}`", kind(field), "" if inner else default, said
        if is_section or inner:
            yield from _keys(inner[0], sections, comments, f"{key}.")


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted keys of a YAML file, and the comment after each."""
    path: list[tuple[int, str]] = []
    said: list[str] = []
    for line in [*text.splitlines(), "end:"]:
        found = re.match(r"( *)(\w+):(?:[^#]|\S#)*(?:#\s*(.*))?$", line)
        if found is None:
            if said and line.strip().startswith("#"):
                said.append(line.strip().removeprefix("# "))
            continue
        if path:
            yield ".".join(name for _, name in path), " ".join(said)
        indent = len(found[1])
        path = [*((depth, name) for depth, name in path if depth < indent), (indent, found[2])]
        said = [found[3]] if found[3] else []


def kind(field: Schema) -> str:
    """Describe the type of a value in a JSON schema."""
    if "$ref" in field:
        return f"[{(name := field['$ref'].rpartition('/')[2])}](#{name.lower()})" if name_is_shown(field) else "section"
    if "const" in field or "enum" in field:
        return ", ".join(f"`{one}`" for one in field.get("enum", [field.get("const")]))
    if "anyOf" in field:
        return " or ".join(kind(one) for one in field["anyOf"])
    named = "bytes" if field.get("format") == "binary" else _TYPES.get(field.get("type", ""), field.get("type", ""))
    if named == "list" and "items" in field:
        inner = kind(field["items"])
        named = f"list of ({inner})" if " or " in inner else f"list of {inner}"
    if named == "map" and isinstance(field.get("additionalProperties"), dict):
        named = f"map of {kind(field['additionalProperties'])}"
    bounds = [f"{sign} {field[key]:,.12g}" for key, sign in _NUMBERS.items() if abs(field.get(key, _HUGE)) < _HUGE]
    lengths = [f"at most {field[key]:,} {what}" for key, what in _LENGTHS.items() if key in field]
    limits = ", ".join([*bounds, *lengths])
    return f"{named or 'any value'}{f' ({limits})' if limits else ''}"


def name_is_shown(field: Schema) -> bool:
    """Return whether a schema has its own heading: those of OpenAPI do, sections of a configuration do not."""
    return str(field["$ref"]).startswith("#/components/")


def columns() -> str:
    """Return the page with the columns of every output and the statuses."""
    parts = ["# Columns and statuses\n", "[Outputs](../outputs.md) describes the folders around these files.\n"]
    parts += _columns_of("embed", schema.embeddings_schema(1), schema.embeddings_schema)
    for job, make in _OUTPUTS.items():
        parts += _columns_of(job, make(), make)
    parts += ["## Statuses\n", "Every planned video gets exactly one row with one status.\n"]
    said = dict(_constants(inspect.getsource(status.Status)))
    header = ("status", "meaning", "has frames", "counts as failed", "`--retry`")
    parts.append(table(*header, rows=(_status(one, said[one]) for one in status.Status)))
    parts += ["### Statuses of users\n", "How `raypipe recommend` answered one row of the history.\n"]
    said = dict(_constants(inspect.getsource(status.UserStatus)))
    parts.append(table("status", "meaning", rows=((f"`{one}`", said[one]) for one in status.UserStatus)))
    return "\n".join(parts)


def _columns_of(job: str, columns: pa.Schema, described: Callable[..., pa.Schema]) -> Iterator[str]:
    """Yield the section of one output. The meaning of a column is in the docstring of its schema, or after its name."""
    text = (inspect.getdoc(described) or "").partition("\n\n")[2]
    bullets = {name: said for names, said in _BULLET.findall(text) for name in re.findall(r"``(\w+)``", names)}
    said = {**dict(_constants(inspect.getsource(schema))), **bullets}
    about = _BULLET.sub("", text).rstrip()
    if about.endswith(":"):
        about = f"{about} {', '.join(f'`{name}`' for name in bullets)}."
    rows = ((f"`{one.name}`", f"`{str(one.type).replace('[1]', '[D]')}`", said[one.name]) for one in columns)
    yield from (f"## raypipe {job}\n", _plain(about), "", table("column", "type", "meaning", rows=rows))


def _status(one: status.Status, said: str) -> tuple[str, ...]:
    failed = one not in status.NOT_FAILED
    retry = "`transient`, `all`" if one in status.TRANSIENT else "`all`" if failed else ""
    return f"`{one}`", said, "yes" if one in status.HAS_FRAMES else "", "yes" if failed else "", retry


def _constants(source: str) -> Iterator[tuple[str, str]]:
    """Yield the value of each constant that is a text, and the comment after it."""
    yield from re.findall(r'^\s*[A-Z_]+ = "(\w+)"(?:  # (.*))?$', source, re.MULTILINE)


def http() -> str:
    """Return the page of the endpoint's HTTP API."""
    described = _openapi()
    parts = [
        "# HTTP API\n",
        f"{described['info']['description']} A running endpoint serves this description as `/openapi.json`, with the",
        "limits of its configuration.\n",
    ]
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            parts += [f"## {method.upper()} {path}\n", _plain(route.get("description")), ""]
            rows = (
                (
                    f"`{one['name']}`",
                    one["in"],
                    kind(one["schema"]),
                    _default(one["schema"], one.get("required", False)),
                )
                for one in route.get("parameters", ())
            )
            if "parameters" in route:
                parts.append(table("parameter", "in", "type", "default", rows=rows))
            for media, body in route.get("requestBody", {}).get("content", {}).items():
                parts.append(f"Body: {kind(body['schema'])} as `{media}`.\n")
            answers = route["responses"].get("200", {}).get("content", {}).items()
            parts += [
                f"Response: {kind(body['schema'])} as `{media}`.\n" for media, body in answers if body.get("schema")
            ]
    errors = next(iter(next(iter(described["paths"].values())).values()))["responses"]
    refused = [(f"`{code}`", str(one["description"])) for code, one in errors.items() if code != "200"]
    parts += ["## Errors\n", f"The body of an error is an {kind({'$ref': '#/components/schemas/ErrorAnswer'})}.\n"]
    parts += [table("status", "meaning", rows=refused), "## Types\n"]
    for name, model in described["components"]["schemas"].items():
        rows = (
            (f"`{key}`", kind(one), _default(one, key in model.get("required", ())), one.get("description", ""))
            for key, one in model.get("properties", {}).items()
        )
        parts += [f"### {name}\n", _plain(model.get("description")), ""]
        parts.append(table("field", "type", "default", "meaning", rows=rows))
    return "\n".join(parts)


def _default(field: Schema, required: bool) -> str:  # noqa: FBT001 - as OpenAPI has it
    made = {"object": "{}", "array": "[]"}.get(field.get("type", ""), "null")  # what a factory makes is not in a schema
    shown = json.dumps(field["default"], ensure_ascii=False) if "default" in field else made
    return "required" if required else f"`{shown}`"


def _openapi() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        index = IndexWatcher(Versions(Folder(folder)), Path(folder), reload_seconds=1)
        service = Service(index=index, scheduler=Scheduler(), metrics=EndpointMetrics(index))
        described: dict[str, Any] = TestClient(build_application(service)).get("/openapi.json").json()
        return described


def python() -> str:
    """Return the page of the public Python names, for mkdocstrings to fill in."""
    stub = ast.parse(Path(raypipe.__file__).with_suffix(".pyi").read_text("utf-8"))
    homes = {
        name.name: f"{node.module}.{name.name}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    parts = ["# Python names\n", "Every name of `import raypipe`. [The guide](../python.md) shows how they are used.\n"]
    for title, chosen in (
        ("Functions", lambda name: name.islower()),
        ("Classes", lambda name: not name.islower() and not name.endswith(("Config", "Error"))),
        ("Errors", lambda name: name.endswith("Error")),
    ):
        parts.append(f"## {title}\n")
        parts += [f"::: {home}\n" for name, home in homes.items() if chosen(name)]
    configs = ", ".join(f"`{name}`" for name in homes if name.endswith("Config"))
    parts.append(f"## Configurations\n\n{configs}: [their keys](configuration.md).\n")
    return "\n".join(parts)


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/cli.md": commands,
    "reference/configuration.md": configuration,
    "reference/columns.md": columns,
    "reference/http.md": http,
    "reference/python.md": python,
}
