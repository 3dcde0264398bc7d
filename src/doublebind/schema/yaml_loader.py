"""Reads a YAML file, with `key.sub=value` overrides, into a model; one line per problem."""

# pyright: standard
# YAML and union members are untyped.

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from doublebind.schema.errors import ConfigError
from doublebind.schema.read_file import read_file
from doublebind.schema.strict_yaml import MAX_YAML_BYTES, YamlProblem, parse_yaml

T = TypeVar("T", bound=BaseModel)

MAX_PROBLEMS = 100
"""Problems of one file that are reported."""


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file; a `ConfigError` line where it cannot be read."""
    return parse_yaml_file(path, read_yaml_file(path))


def read_yaml_file(path: Path) -> bytes:
    """Return the bytes of a YAML file; a `ConfigError` line where it cannot be read."""
    try:
        return read_file(path, MAX_YAML_BYTES)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name the YAML file in it") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check it") from None


def parse_yaml_file(path: Path, content: bytes) -> Any:
    """Return the content of the YAML file at `path`, given its bytes.

    Raises:
        ConfigError: If it is no text, empty, malformed or refused by `parse_yaml`.
    """
    try:
        parsed = parse_yaml(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not a text file (byte {error.start} is not UTF-8); expected YAML"
        ) from None
    except YamlProblem as problem:
        raise ConfigError(f"{path}: {problem}") from None
    if parsed is None:
        raise ConfigError(f"{path}: empty; `doublebind init` writes one to start from")
    return parsed


def load_yaml(model: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Return the validated `model` in the YAML file at `path`, with `key.sub=value` overrides.

    Overrides are applied to the validated dump, so that a default can be overridden by its path;
    lists are indexed by number. All problems are reported at once.

    Raises:
        ConfigError: One line per problem: file, key, value, remedy.
    """
    content = read_yaml(path)
    config = validate_content(model, content, str(path))
    if not overrides:
        return config
    dump = config.model_dump(mode="json", by_alias=False)
    problems = _find_repeated_overrides(overrides)
    for override in overrides:
        try:
            _apply_override(dump, override, model)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)
    return validate_content(model, dump, "override")


def validate_content(model: type[T], content: Any, where: str) -> T:
    """Return `content` as `model`, or raise a `ConfigError` with one line per problem."""
    if not isinstance(content, dict):
        raise ConfigError(
            f"{where}: expected a mapping of keys to values, got {type(content).__name__}"
        )
    try:
        return model.model_validate(content)
    except ValidationError as error:
        errors = _list_errors(error)
        paths = [_strip_union_members(model, e["loc"]) for e in errors]
        # A container's own complaint is noise where something inside it is already named.
        innermost = [
            e
            for e, path in zip(errors, paths, strict=True)
            if not any(other[: len(path)] == path and len(other) > len(path) for other in paths)
        ]
        raise ConfigError(*(explain_error(model, e, where) for e in innermost)) from None


def _list_errors(error: ValidationError) -> list[dict[str, Any]]:
    """Return the first errors of pydantic; a hostile file may hold any number."""
    return [{**each} for each in error.errors(include_url=False)[:MAX_PROBLEMS]]


def explain_error(model: type[BaseModel], error: dict[str, Any], where: str) -> str:
    """Return one line for a pydantic `error`: file, key, value, remedy."""
    path = _strip_union_members(model, error["loc"])
    key = ".".join(path) or "(top level)"
    value, message = error.get("input"), error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        if names := _list_new_names(model, path):
            return f"{where}: `{key}`: is called {names} now"
        known = _list_keys_at(model, path[:-1])
        hint = _suggest_key(path[-1], known)
        if path[-1] in known:
            return (
                f"{where}: `{key}`: a key of another kind than is given here (got {_short(value)});"
                " leave it out, or choose that kind"
            )
        return f"{where}: `{key}`: unknown key (got {_short(value)}). {hint}"
    if error["type"] == "missing":
        return f"{where}: `{key}`: missing; add it"
    if error["type"] == "union_tag_not_found":
        kinds = [m.model_fields["kind"].annotation for m in _find_models_at(model, path)]
        names = ", ".join(str(kind) for union in kinds for kind in get_args(union))
        return f"{where}: `{key}`: missing `kind`; one of {names}"
    if isinstance(value, dict | list) and error["type"] == "value_error":
        return f"{where}: `{key}`: {message}"
    return f"{where}: `{key}`: {message} (got {_short(value)})"


def _strip_union_members(model: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    """Drop the union-member names that pydantic adds to a location."""
    members = _list_union_members(model)
    parts = [str(part) for part in loc]
    return [part for part in parts if part not in members and not part.startswith("tuple[")]


def _list_union_members(model: type[BaseModel]) -> set[str]:
    """Return class names and `kind`s of the models inside `model`, at any depth."""
    names: set[str] = set()
    stack = [model]
    while stack:
        here = stack.pop()
        inside = [sub for field in here.model_fields.values() for sub in _find_models_in(field)]
        stack.extend(sub for sub in inside if sub.__name__ not in names)
        names.update(sub.__name__ for sub in inside)
        kinds = [
            sub.model_fields["kind"].annotation for sub in inside if "kind" in sub.model_fields
        ]
        names.update(str(kind) for union in kinds for kind in get_args(union))
    return names


def _is_index(part: str) -> bool:
    return part.isascii() and part.isdigit() and len(part) < 10


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _suggest_key(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"Did you mean `{close[0]}`?" if close else f"Known keys: {', '.join(known)}"


def _list_keys_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the field names of the (sub-)models found at `path`, all union members together."""
    return sorted({name for m in _find_models_at(model, path) for name in m.model_fields})


def _list_new_names(model: type[BaseModel], path: Sequence[str]) -> str:
    """Return the present names of a key that was renamed, quoted; empty for any other key.

    A renamed field keeps its former name in stored files, as its `serialization_alias`.
    """
    names = {
        name
        for m in _find_models_at(model, path[:-1])
        for name, field in m.model_fields.items()
        if field.serialization_alias == path[-1] != name
    }
    return " or ".join(f"`{name}`" for name in sorted(names))


def _list_omitted_keys_at(model: type[BaseModel], path: Sequence[str]) -> set[str]:
    """Return the fields of the (sub-)models at `path` that a dump may leave out."""
    models = _find_models_at(model, path)
    return {name for m in models for name, field in m.model_fields.items() if field.exclude_if}


def _find_models_at(model: type[BaseModel], path: Sequence[str]) -> list[type[BaseModel]]:
    """Return the (sub-)models found at `path`, every member of a union."""
    models = [model]
    for part in path:
        if _is_index(part):
            continue
        models = [
            sub
            for m in models
            if part in m.model_fields
            for sub in _find_models_in(m.model_fields[part])
        ]
    return models


def _find_models_in(field: Any) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = []
    stack = [getattr(field, "annotation", field)]
    while stack:
        part = stack.pop()
        if isinstance(part, type) and issubclass(part, BaseModel):
            models.append(part)
        stack.extend(get_args(part))
    return models


def _find_repeated_overrides(overrides: Sequence[str]) -> list[str]:
    counts = Counter(override.partition("=")[0] for override in overrides)
    return [
        f"override `{_short(path)}`: is given {n} times; give it once"
        for path, n in counts.items()
        if n > 1
    ]


def _apply_override(dump: dict[str, Any], override: str, model: type[BaseModel]) -> None:
    """Set one `key.sub=value` in `dump`; the value is read as YAML."""
    path, equals, text = override.partition("=")
    parts = path.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override `{override}`: write it as key.sub=value")
    try:
        value = parse_yaml(text)
    except YamlProblem as problem:
        raise ConfigError(f"override `{_short(override)}`: the value is {problem}") from None
    node: Any = dump
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, list):
            if not _is_index(part) or int(part) >= len(node):
                raise ConfigError(
                    f"override `{path}`: `{part}` is not an index into a list of {len(node)}"
                )
            key: Any = int(part)
        elif isinstance(node, dict):
            free = not _list_keys_at(model, parts[:depth])
            later = _list_omitted_keys_at(model, parts[:depth])
            if part not in node and not (last and (free or part in later)):
                if names := _list_new_names(model, parts[: depth + 1]):
                    raise ConfigError(f"override `{path}`: `{part}` is called {names} now")
                known = sorted({*node, *later})
                raise ConfigError(
                    f"override `{path}`: unknown key `{part}`. {_suggest_key(part, known)}"
                )
            key = part
        else:
            raise ConfigError(
                f"override `{path}`: `{'.'.join(parts[:depth])}` is {_short(node)}, which has no "
                f"keys; replace the whole block"
            )
        if last:
            node[key] = value
        else:
            node = node[key]
