"""Parses JSON strictly: what would be read as something else than it says is refused.

Refused are equal keys of one object, infinities and NaN, integers beyond 64 bits, lone surrogates
(which no UTF-8 file can hold) and deep nesting.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, cast

MAX_DEPTH = 100
"""Most arrays and objects inside one another."""
INTEGER_LIMIT = 2**63
"""Integers are below it in absolute value."""


def parse_json(text: str | bytes | bytearray) -> Any:
    """Return the value that a JSON text holds.

    Raises:
        ValueError: If it is malformed, or refused as above; the message is one line.
    """
    if not isinstance(text, str):
        text = bytes(text).decode("utf-8")
    try:
        content = json.loads(
            text,
            object_pairs_hook=_build_object,
            parse_constant=_refuse_constant,
            parse_float=_parse_float,
            parse_int=_parse_integer,
        )
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(content, MAX_DEPTH)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    if "\\ud" in text or "\\uD" in text:
        for path, part in _list_texts(content):
            try:
                check_surrogates(part)
            except ValueError as error:
                raise ValueError(f"`{path or '(top level)'}`: {error}") from None
    return content


def split_json_lines(text: str) -> list[tuple[int, str]]:
    """Return number and text of each line that is not blank; lines end at a line feed alone.

    A JSON string may hold U+2028, U+0085 and other separators at which `str.splitlines` cuts.
    """
    return [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip(" \t\r")]


def check_surrogates(text: str) -> None:
    """Check that a text can be written as UTF-8.

    Raises:
        ValueError: If it holds a lone surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"half of a character (\\u{ord(text[error.start]):04x}, a lone surrogate) at character "
            f"{error.start + 1} of {text[:40]!r}; write the whole character or leave it out"
        ) from None


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key `{key}` is given twice in one object; keep one")
            seen.add(key)
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON; write a finite number or null")


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number; write a finite one")
    return value


def _parse_integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= INTEGER_LIMIT:
        raise ValueError(f"{text[:40]} is too large an integer; 64 bits have to hold it")
    return int(text)


def _check_depth(content: Any, left: int) -> None:
    if not isinstance(content, dict | list):
        return
    if not left:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    for part in _list_parts(content):
        _check_depth(part, left - 1)


def _list_texts(content: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key, and the text, of every text of a JSON value; a key counts as a text, too."""
    if isinstance(content, str):
        yield path, content
    elif isinstance(content, dict | list):
        prefix = f"{path}." if path else ""
        for key, part in _list_entries(content):
            yield path, key
            yield from _list_texts(part, f"{prefix}{key}")


def _list_entries(content: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(content, dict):
        return cast("dict[str, Any]", content).items()
    return ((str(number), part) for number, part in enumerate(content))


def _list_parts(content: Any) -> Iterable[Any]:
    return cast("dict[str, Any]", content).values() if isinstance(content, dict) else content
