"""Read a configuration from YAML, the command line and overrides. Any mistake in it raises one ConfigError."""

import copy
import json
import os
import re
import reprlib
import shlex
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from raypipe.errors import ConfigError
from raypipe.text import one_line

ConfigT = TypeVar("ConfigT", bound=BaseModel)


class Section(BaseModel):
    """The base class of configurations and their sections. They are frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class BatchConfig(Section):
    """The base class of the configurations of batch jobs.

    ``executor``: ``local`` runs the job in processes of this machine, and ``ray`` on Ray. ``auto`` is local if Ray does
    not run yet, this machine has no GPU, and there is little to do.
    """

    executor: Literal["auto", "local", "ray"] = "auto"


def _is_utf8(uri: str) -> str:
    if uri != uri.encode(errors="replace").decode():
        msg = "should be UTF-8, as every URI in a Parquet file is; rename that folder"
        raise ValueError(msg)
    return uri


Uri = Annotated[str, AfterValidator(_is_utf8)]
Count = Literal["auto"] | Annotated[int, Field(ge=1)]
Gpus = Literal["auto"] | Annotated[float, Field(ge=0)]


def uris(section: BaseModel) -> dict[str, str]:
    """Return a dict with the top-level keys of a configuration whose values are URIs. Keys set to None are omitted."""
    fields = type(section).model_fields.items()
    found = {name: getattr(section, name) for name, field in fields if _is_utf8 in _validators(field)}
    return {name: uri for name, uri in found.items() if uri is not None}


def _validators(field: FieldInfo) -> list[object]:
    annotated = [*field.metadata, *(part for kind in get_args(field.annotation) for part in get_args(kind)[1:])]
    return [part.func for part in annotated if isinstance(part, AfterValidator)]


def load_config(
    model: type[ConfigT],
    source: str | os.PathLike[str] | Mapping[str, Any] | ConfigT | None = None,
    *,
    values: Mapping[str, Any] = {},
    overrides: Iterable[str] = (),
) -> ConfigT:
    """Read a configuration, apply ``values`` to it, then apply ``overrides``, and validate the result.

    Args:
        model: The class of the configuration.
        source: The path of a YAML file, or the configuration itself. None means an empty configuration.
        values: Top-level keys and their new values. A value of None is ignored. For a section, the value may be a
            mapping of some of its keys, or only the value of its key ``name``, as in ``backbone="resnet18"``.
        overrides: Texts of the form ``key.sub=value``.

    Raises:
        ConfigError: the file, a key or a value is wrong. The error's ``key`` says which, and its ``value`` and
            ``choices`` are set where they exist.
    """
    tree = _tree_of(source)
    for key, value in values.items():
        if value is not None:
            _merge(tree, key, _plain(value, model.model_fields.get(key)))
    for override in overrides:
        _override(tree, override)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise _first_problem(model, error) from None


def _tree_of(source: str | os.PathLike[str] | Mapping[str, Any] | BaseModel | None) -> dict[str, Any]:
    if isinstance(source, BaseModel):
        return source.model_dump(exclude_unset=True)
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source))
    return {} if source is None else _read_yaml(source)


def _plain(value: object, field: FieldInfo | None) -> Any:  # noqa: ANN401 - any YAML value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, str) and field is not None and "name" in _keys_of(field.annotation):
        return {"name": value}
    return copy.deepcopy(value)


def _merge(tree: dict[str, Any], key: str, value: object) -> None:
    """Set a key of ``tree``. If the value is a mapping, it is merged into the section that is already there."""
    section = tree.get(key)
    if not isinstance(value, Mapping) or not isinstance(section, dict):
        tree[key] = value
        return
    for name, inner in value.items():
        _merge(section, name, inner)


def command_line(job: str, config: BaseModel) -> str:
    """Return the command line that runs a job with this configuration. Keys with their default value are left out."""
    words = ["raypipe", job]
    for key, value, is_required in _changed_keys(config):
        text = value if _is_plain(value) else json.dumps(value, ensure_ascii=False)
        words += [f"--{key.replace('_', '-')}", str(value)] if is_required else ["--set", f"{key}={text}"]
    return shlex.join(words)


def _changed_keys(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Yield the dotted key and the value of each required key and of each key that differs from its default.

    The third part is True for a required key. A mapping that is not a section is one value: its keys may contain dots.
    """
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}{name}"
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if type(value) is type(default) and isinstance(value, BaseModel):
            yield from _changed_keys(value, f"{key}.")
        elif field.is_required() or value != default:
            plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            yield key, plain, field.is_required()


def _is_plain(text: object) -> bool:
    """Return whether ``--set`` would parse this value as the same text, so that it needs no quotes."""
    try:
        return isinstance(text, str) and bool(_parse_yaml(text) == text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return False


class _Loader(yaml.SafeLoader):
    """A safe YAML loader with two changes: 1e-4 is a number, and a key that appears twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - PyYAML's own signature
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for at, key in enumerate(keys) if key in keys[:at]]:
            reason = f"the key {twice[0]!r} appears twice"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return super().construct_mapping(node, deep=deep)


_EXPONENT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def _parse_yaml(text: str) -> Any:  # noqa: ANN401 - whatever the text holds
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader


def _read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        tree = _parse_yaml(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"Cannot read the configuration {str(path)!r}: {error.strerror}."
        raise ConfigError(msg, key=str(path), remedy="Give the path of a YAML file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = one_line(error)
        msg = f"{str(path)!r} is not YAML: {reason}"
        raise ConfigError(msg, key=str(path)) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        msg = f"{str(path)!r} holds a {type(tree).__name__}; a configuration is a mapping of keys to values."
        raise ConfigError(msg, key=str(path), value=tree)
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        msg = f"--set {override!r} is not key=value."
        raise ConfigError(msg, key="--set", value=override, remedy="Example: --set backbone.name=resnet18.")
    try:
        value = _parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text
    *sections, leaf = key.strip().split(".")
    for depth, section in enumerate(sections, start=1):
        node = tree[section] = {} if tree.get(section) is None else tree[section]
        if not isinstance(node, dict):
            above = ".".join(sections[:depth])
            msg = f"--set {override!r}: {above!r} holds {_short(node)}, which has no keys."
            raise ConfigError(msg, key=above, value=node)
        tree = node
    tree[leaf] = value


def _first_problem(model: type[BaseModel], error: ValidationError) -> ConfigError:
    """Return the first problem of a validation as a ConfigError with the key, its value and the valid choices."""
    problems = error.errors(include_url=False)
    first = problems[0]
    kind, value = first["type"], first["input"]
    path, annotation = _locate(model, first["loc"])
    siblings = _keys_of(_locate(model, path[:-1])[1])
    key = ".".join(path)
    if kind == "extra_forbidden":
        return ConfigError(f"Unknown key {key!r}.", key=key, value=key, choices=siblings)
    if kind == "invalid_key":  # YAML parses the keys on, 1 and 2024-05-31 as other types
        key = ".".join([*path[:-1], str(value)])
        return ConfigError(f"The key {key!r} is not text.", key=key, value=value, choices=siblings)
    if kind == "missing":
        option = key.replace(".", "-").replace("_", "-")
        remedy = f"Give --{option}, or the key {key!r} in the YAML file."
        return ConfigError(f"{key!r} is missing.", key=key, remedy=remedy)
    if kind == "model_type":
        msg = f"{key}={_short(value)} should be a section with keys."
        return ConfigError(msg, key=key, value=value, choices=_keys_of(annotation))
    same = [problem for problem in problems if _locate(model, problem["loc"])[0] == path]
    return _wrong_value(same, key=key, choices=_literals(annotation))


def _wrong_value(problems: list[ErrorDetails], *, key: str, choices: list[str]) -> ConfigError:
    """Return an error that says what the value of a key should be.

    ``problems`` all concern this key. There are several if its type is a union, one for each member of the union.
    """
    value = problems[0]["input"]
    if all(problem["type"] == "literal_error" for problem in problems):
        return ConfigError(f"{key}={_short(value)} is not valid.", key=key, value=value, choices=choices)
    reasons = [_reason(problem["msg"]) for problem in problems]
    reason = " or ".join([reasons[0], *(other.removeprefix("input should be ") for other in reasons[1:])])
    is_section = problems[0]["type"] == "value_error" and isinstance(value, dict)
    # For a section, the reason already names the keys that contradict each other, with their values.
    where = (key or "The configuration") if is_section else f"{key}={_short(value)}"
    return ConfigError(f"{where}: {reason}.", key=key, value=value)


def _short(value: object) -> str:
    """Return the value as one line of text. If it is long, the middle is cut out."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 200
    return shortener.repr(value)


def _reason(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _locate(model: type[BaseModel], location: Iterable[int | str]) -> tuple[list[str], Any]:
    """Return the configuration keys in the location of a pydantic error, and the type annotation of the last key.

    The remaining parts of a location are not keys, but name members of a union.
    """
    path: list[str] = []
    annotation: Any = model
    for part in location:
        if not _is_section(annotation):
            break
        path.append(str(part))
        field = annotation.model_fields.get(path[-1])
        annotation = field.annotation if field is not None else None
    return path, annotation


def _keys_of(annotation: Any) -> list[str]:  # noqa: ANN401 - a type or a form of typing
    return list(annotation.model_fields) if _is_section(annotation) else []


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _literals(annotation: object) -> list[str]:
    """Return the values that an annotation allows, if it is a ``Literal`` or a union with ``Literal`` members."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if get_origin(annotation) in {Union, UnionType}:
        return [value for member in get_args(annotation) for value in _literals(member)]
    return []
