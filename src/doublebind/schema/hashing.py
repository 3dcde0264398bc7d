"""Frozen records, their canonical JSON and its hash."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from doublebind.schema.strict_json import parse_json


class Record(BaseModel):
    """Base of all records: frozen, strict about unknown keys, documented field by field.

    A field that was renamed keeps its former name as `serialization_alias`: hashes and stored
    files hold that name, so that renaming moves no key. Dump with `by_alias=False` what people
    read and write under the present names.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        serialize_by_alias=True,
        validate_by_alias=True,
        validate_by_name=True,
        # Stored as null, an infinity could not be read again.
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_two_spellings(cls, content: Any) -> Any:
        """Refuse a field that is given under its name and under its alias: which one holds?"""
        if isinstance(content, dict):
            for name, alias in _list_aliases(cls):
                if name in content and alias in content:
                    raise ValueError(f"`{name}` and `{alias}` are one key, given twice; keep one")
        return cast("Any", content)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **settings: Any) -> Self:
        """Return the record in a JSON text, which `parse_json` reads strictly.

        Raises:
            ValueError: If the text is refused, or does not hold such a record.
        """
        return cls.model_validate(parse_json(json_data), **settings)


@functools.cache
def _list_aliases(kind: type[Record]) -> tuple[tuple[str, str], ...]:
    """Return name and alias of the fields that are read under both."""
    return tuple(
        (name, field.validation_alias)
        for name, field in kind.model_fields.items()
        if isinstance(field.validation_alias, str) and field.validation_alias != name
    )


def optional_field() -> Any:
    """Return a record field that is left out of the JSON where it is `None`."""
    return Field(default=None, exclude_if=lambda value: value is None)


def to_canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces: equal content, equal text."""
    marks = (",", ":")
    return json.dumps(value, sort_keys=True, separators=marks, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


def content_hash(value: Any) -> str:
    """Return the sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(to_canonical_json(value).encode()).hexdigest()
