"""Parses YAML strictly: text, numbers, booleans, nulls, lists and mappings, each key once.

Refused are equal keys, tags of other types, keys that are no single value, anchors that contain
themselves, deep nesting, and aliases that multiply beyond a bound. A date is a text.
"""

# pyright: standard
# PyYAML is untyped.

from __future__ import annotations

from typing import Any

import yaml

from doublebind.schema.strict_json import INTEGER_LIMIT, MAX_DEPTH, check_surrogates

MAX_YAML_BYTES = 1_000_000
"""Most bytes of a YAML file."""
MAX_YAML_NODES = 100_000
"""Most values of a YAML file, those that aliases repeat included."""

_PREFIX = "tag:yaml.org,2002:"
_MERGE = f"{_PREFIX}merge"


class YamlProblem(ValueError):
    """A YAML text that is refused; the message is one line that ends with the remedy."""


def _select_resolvers() -> dict[str, list[tuple[str, Any]]]:
    """Return PyYAML's rules for plain scalars without those of dates and of `=`."""
    left_out = {f"{_PREFIX}timestamp", f"{_PREFIX}value"}
    return {
        first: [(tag, pattern) for tag, pattern in rules if tag not in left_out]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Loader(yaml.SafeLoader):
    """The composer of PyYAML with bounds; dates are text."""

    yaml_implicit_resolvers = _select_resolvers()

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.n_nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.n_nodes += 1
        _check_count(self.n_nodes)
        self.depth += 1
        _check_depth(self.depth)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse_yaml(text: str) -> Any:
    """Return the value that a YAML text holds; `None` where it is empty.

    Raises:
        YamlProblem: If it is malformed or refused; the message names line and key.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Converter(loader).convert(node, ())
    except yaml.YAMLError as error:
        raise _explain_error(error) from None
    except RecursionError:
        raise YamlProblem("nested too deeply; flatten it") from None


def _explain_error(error: yaml.YAMLError) -> YamlProblem:
    mark = getattr(error, "problem_mark", None)
    where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "malformed"
    if isinstance(error, yaml.reader.ReaderError):
        problem = f"{problem}: U+{error.character:04X}, character {error.position + 1}"
    return YamlProblem(f"not valid YAML{where} ({problem}); mend it there")


def _check_count(n_nodes: int) -> None:
    if n_nodes > MAX_YAML_NODES:
        raise YamlProblem(
            f"holds more than {MAX_YAML_NODES:,} values, repeated ones (`*alias`) included; "
            "shorten it"
        )


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise YamlProblem(f"nested too deeply, more than {MAX_DEPTH} levels; flatten it")


class _Converter:
    """Turns nodes into values; an aliased node is converted, and counted, wherever it stands."""

    def __init__(self, loader: _Loader) -> None:
        self.loader = loader
        self.n_nodes = 0
        self.open: set[int] = set()
        """Ids of the nodes that are being converted."""

    def convert(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        """Return the value of a node; `path` are the keys above it."""
        self.n_nodes += 1
        _check_count(self.n_nodes)
        if isinstance(node, yaml.ScalarNode):
            return self._convert_scalar(node, path)
        if id(node) in self.open:
            raise YamlProblem(f"{_locate(node, path)}: an anchor holds itself; write it out")
        self.open.add(id(node))
        _check_depth(len(self.open))
        tag = node.tag.removeprefix(_PREFIX)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            value: Any = [
                self.convert(each, (*path, str(number))) for number, each in enumerate(node.value)
            ]
        elif isinstance(node, yaml.MappingNode) and tag == "map":
            value = self._convert_mapping(node, path)
        else:
            raise _refuse_tag(node, path)
        self.open.discard(id(node))
        return value

    def _convert_scalar(self, node: yaml.ScalarNode, path: tuple[str, ...]) -> Any:
        text = node.value
        try:
            match node.tag.removeprefix(_PREFIX):
                case "str" | "merge":
                    check_surrogates(text)
                    return text
                case "null":
                    return None
                case "bool":
                    return self.loader.construct_yaml_bool(node)
                case "float":
                    return self.loader.construct_yaml_float(node)
                case "int":
                    value = self.loader.construct_yaml_int(node)
                    if abs(value) >= INTEGER_LIMIT:
                        raise ValueError("64 bits have to hold an integer")
                    return value
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            reason = str(error) if isinstance(error, ValueError) else "not of the type it names"
            raise YamlProblem(
                f"{_locate(node, path)}: {reason} (got {_shorten(text)}); mend it there"
            ) from None
        raise _refuse_tag(node, path)

    def _convert_mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[Any, Any]:
        content: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        lines: dict[Any, int] = {}
        for key_node, value_node in node.value:
            key = self._convert_key(key_node, path)
            inner = (*path, str(key))
            if key in lines:
                raise YamlProblem(
                    f"{_locate(key_node, inner)}: is given twice, first at line {lines[key]}; "
                    "keep one"
                )
            lines[key] = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                merged = self._merge(value_node, path)
            else:
                content[key] = self.convert(value_node, inner)
        return merged | content

    def _convert_key(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise YamlProblem(f"{_locate(node, path)}: a key is a list or mapping; write a text")
        return self.convert(node, path)

    def _merge(self, node: yaml.Node, path: tuple[str, ...]) -> dict[Any, Any]:
        """Return the keys of the mapping, or mappings, that `<<` names."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[Any, Any] = {}
        for part in parts:
            value = self.convert(part, (*path, "<<"))
            if not isinstance(value, dict):
                raise YamlProblem(f"{_locate(node, path)}: `<<` takes a mapping; name one")
            for key in value.keys() & merged.keys():
                raise YamlProblem(
                    f"{_locate(part, (*path, str(key)))}: is given by two mappings of one `<<`; "
                    "keep one"
                )
            merged |= value
        return merged


def _refuse_tag(node: yaml.Node, path: tuple[str, ...]) -> YamlProblem:
    return YamlProblem(
        f"not valid YAML here, {_locate(node, path)}: has the tag {_shorten(node.tag)}, which is "
        "not read; write text, numbers, true, false, null, lists and mappings"
    )


def _locate(node: yaml.Node, path: tuple[str, ...]) -> str:
    return f"line {node.start_mark.line + 1}: `{'.'.join(path)[-200:] or '(top level)'}`"


def _shorten(text: str) -> str:
    quoted = repr(text)
    return quoted if len(quoted) <= 80 else f"{quoted[:77]}..."
