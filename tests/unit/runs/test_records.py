"""A run directory of another format is refused in one line that names its reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import doublebind
from doublebind.schema.errors import RunError

FORMER: dict[str, Any] = {
    "schema_version": 1,
    "cells": {},
    "competitors": [],
    "versions": {"doublebind": "0.3.0"},
}
"""The start of a manifest from before `format`."""


@pytest.mark.parametrize(
    ("manifest", "line"),
    [
        (FORMER, "format 1, this doublebind reads format 2; read it with doublebind 0.3.0"),
        (FORMER | {"format": 3, "versions": {}}, "format 3, .* the doublebind that wrote it"),
    ],
)
@pytest.mark.parametrize("read", [doublebind.Run, doublebind.verify])
def test_another_format_is_refused_in_one_line(
    tmp_path: Path, manifest: dict[str, Any], line: str, read: Any
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=line) as raised:
        read(tmp_path)
    assert len(raised.value.problems) == 1
