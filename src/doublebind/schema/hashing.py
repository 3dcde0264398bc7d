"""Frozen records, their canonical JSON and its hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


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
