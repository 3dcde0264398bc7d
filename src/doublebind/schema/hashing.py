"""Frozen records, their canonical JSON and its hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of all records: frozen, strict about unknown keys, documented field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
