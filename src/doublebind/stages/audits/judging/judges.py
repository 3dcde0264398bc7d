"""Judges by name: deterministic keys, or a model asked through Inspect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from doublebind.schema.errors import ConfigError, MissingExtra
from doublebind.schema.model_source import Device
from doublebind.stages.audits.judging.brief import Brief, Judge, Reply, strip_style


def open_judge(ref: str, cache: Path, device: Device = "cpu") -> Judge:
    """Return the judge that `ref` names: `keys`, `local:MODEL` or `inspect:MODEL`.

    Args:
        ref: A local model is any that a study can name; the others are named as in Inspect.
        cache: Folder for converted models.
        device: Where a local model runs.

    Raises:
        ConfigError: If it names no judge, or Inspect cannot open the model.
        MissingExtra: If it names a model and Inspect is not installed.
        ModelError: If a local model cannot be opened.
    """
    if ref == "keys":
        return Judge("keys", False, compare_marker_counts)
    kind, _, model = ref.partition(":")
    if kind not in ("local", "inspect") or not model:
        raise ConfigError(f"`--judge`: {ref}; choose keys, local:MODEL or inspect:MODEL")
    try:
        from doublebind.stages.audits.harness.inspect_provider import (
            open_inspect_model,
            open_local_model,
            wrap_for_inspect,
        )
        from doublebind.stages.audits.judging.inspect_judge import ask_model
    except ImportError:
        raise MissingExtra(f"the judge {ref}", "inspect") from None
    if kind == "local":
        opened = wrap_for_inspect(open_local_model(model, device, cache))
    else:
        opened = open_inspect_model(model, option="--judge")
    return Judge(ref, True, partial(ask_model, opened))


def compare_marker_counts(briefs: Sequence[Brief]) -> list[Reply]:
    """Return, per brief, the answer that contains more of the trait's markers."""
    replies: list[Reply] = []
    for brief in briefs:
        if not brief.markers:
            replies.append(Reply(None, "the trait has no key", ""))
            continue
        a, b = (_count_markers(text, brief.markers) for text in (brief.first, brief.second))
        text = f"{a} and {b} of {len(brief.markers)} key texts"
        replies.append(Reply("first" if a > b else "second" if b > a else "neither", None, text))
    return replies


def _count_markers(text: str, markers: Sequence[str]) -> int:
    words = _normalise_words(text)
    return sum(f" {_normalise_words(marker)} " in f" {words} " for marker in markers)


def _normalise_words(text: str) -> str:
    return " ".join(re.findall(r"\w+", strip_style(text).lower()))
