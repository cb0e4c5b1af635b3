"""Read a configuration from YAML, command line and overrides, and say in one line what is wrong with it."""

import copy
import difflib
import re
import reprlib
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from raypipe.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=BaseModel)


class Section(BaseModel):
    """Keys that belong together: frozen, unknown ones refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _is_utf8(uri: str) -> str:
    if uri != uri.encode(errors="replace").decode():
        msg = "should be UTF-8, as every URI in a Parquet file is; rename that folder"
        raise ValueError(msg)
    return uri


Uri = Annotated[str, AfterValidator(_is_utf8)]
Count = Literal["auto"] | int
Gpus = Literal["auto"] | float


def uris(section: BaseModel) -> dict[str, str]:
    """The keys of a configuration that hold a location, below no other key, and their values."""
    fields = type(section).model_fields.items()
    found = {name: getattr(section, name) for name, field in fields if _is_utf8 in _validators(field)}
    return {name: uri for name, uri in found.items() if uri is not None}


def _validators(field: FieldInfo) -> list[object]:
    annotated = [*field.metadata, *(part for kind in get_args(field.annotation) for part in get_args(kind)[1:])]
    return [part.func for part in annotated if isinstance(part, AfterValidator)]


def check_counts(*, concurrency: Count, gpus: Gpus, gpus_key: str) -> None:
    """Raise ValueError where there would be no actor, or less than no GPU for each."""
    if concurrency != "auto" and concurrency < 1:
        msg = f"concurrency {concurrency} must be auto or at least 1"
        raise ValueError(msg)
    if gpus != "auto" and gpus < 0:
        msg = f"{gpus_key} {gpus} must be auto, 0 (no GPU) or more"
        raise ValueError(msg)


def load_config(
    model: type[ConfigT],
    path: str | Path | None = None,
    *,
    values: Mapping[str, Any] = {},
    overrides: Iterable[str] = (),
) -> ConfigT:
    """Read a YAML file, lay ``values`` and then ``key.sub=value`` overrides over it, and check the result.

    Raises:
        ConfigError: the file, a key or a value is wrong; the message names it and the choices.
    """
    tree = _read_yaml(path) if path is not None else {}
    tree.update({key: copy.deepcopy(value) for key, value in values.items() if value is not None})
    for override in overrides:
        _override(tree, override)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_one_line(model, error)) from None


class _Loader(yaml.SafeLoader):
    """YAML as its readers take it: 1e-4 is a number, and a key that stands there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - PyYAML's own signature
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for at, key in enumerate(keys) if key in keys[:at]]:
            reason = f"the key {twice[0]!r} stands there twice"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
        return super().construct_mapping(node, deep=deep)


_EXPONENT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


def _parse_yaml(text: str) -> Any:  # noqa: ANN401 - whatever the text holds
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader


def _read_yaml(path: str | Path) -> dict[str, Any]:
    try:
        tree = _parse_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"Cannot read the configuration {str(path)!r}: {error.strerror}. Give the path of a YAML file."
        raise ConfigError(msg) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        msg = f"{str(path)!r} is not YAML: {reason}"
        raise ConfigError(msg) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        msg = f"{str(path)!r} holds a {type(tree).__name__}; a configuration is a mapping of keys to values."
        raise ConfigError(msg)
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        msg = f"--set {override!r} is not key=value. Example: --set backbone.name=resnet18"
        raise ConfigError(msg)
    try:
        value = _parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text
    *sections, leaf = key.strip().split(".")
    for section in sections:
        node = tree[section] = {} if tree.get(section) is None else tree[section]
        if not isinstance(node, dict):
            msg = f"--set {override!r}: {section!r} holds {node!r}, which has no key below it."
            raise ConfigError(msg)
        tree = node
    tree[leaf] = value


def _one_line(model: type[BaseModel], error: ValidationError) -> str:
    """Say the first problem of a validation: the key, its value, the choices."""
    problems = error.errors(include_url=False)
    first = problems[0]
    path = _field_path(model, first["loc"])
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _keys_at(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"Unknown key {key!r}.{hint} Choose one of {', '.join(known)}."
    if first["type"] == "missing":
        return (
            f"{key!r} is missing: give --{key.replace('.', '-').replace('_', '-')} or the key {key!r} in the YAML file."
        )
    if first["type"] == "model_type":
        return f"{key}={_short(first['input'])}: it should hold keys: {', '.join(_keys_at(model, path))}."
    # A union gives one problem for each of its members: together they are the choices.
    reasons = [_reason(problem["msg"]) for problem in problems if _field_path(model, problem["loc"]) == path]
    reason = " or ".join([reasons[0], *(other.removeprefix("input should be ") for other in reasons[1:])])
    if first["type"] == "value_error" and isinstance(first["input"], dict):
        where = f"{key}: " if key else "The configuration: "
        return f"{where}{reason}."  # of several keys, which it names with their values
    return f"{key}={_short(first['input'])}: {reason}."


def _short(value: object) -> str:
    """The value in one line, its middle left out where it is long."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 200
    return shortener.repr(value)


def _reason(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _field_path(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The part of a pydantic location that names keys; the rest names members of a union."""
    path: list[str] = []
    for part in location:
        if path and str(part) not in _keys_at(model, path[:-1]) and not _keys_at(model, path):
            break
        path.append(str(part))
    return path


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
