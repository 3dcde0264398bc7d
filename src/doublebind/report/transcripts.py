"""Chooses which transcripts a page holds, and cuts and names them.

Knows the lines of `transcripts.jsonl`, all of them hostile. Does not know HTML. A page shows the
same items of every model, in turn from each endpoint, so that none is shown at its worst.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

from doublebind.records import Evidence
from doublebind.report.tables import ROLES
from doublebind.report.text import LABEL, short

PER_MODEL, PER_PAGE, AT_LEAST = 32, 2400, 4
"""Rows shown of a model and of all models together; a model never shows fewer than the last."""

HEAD, TEXT = 400, 4000
"""Characters shown before a text is folded, and before it is cut."""

TURNS, OPTIONS = 12, 12
"""Turns of a conversation, and options of an item, that are shown."""


class Said(NamedTuple):
    """A text: its beginning, what folds away, and how much more the file has."""

    who: str
    head: str
    rest: str
    cut: int


class Row(NamedTuple):
    """One item as it was asked and answered."""

    audit: str
    endpoint: str
    item: str
    value: float | None
    turns: list[Said]
    options: list[tuple[Said, float, bool]]
    """Text, probability, whether it is the one whose probability is the value."""
    text: Said | None
    """What an audit wrote in other words than options; `None` where there are options."""
    left_out: int
    """Turns and options beyond the caps."""


class Model(NamedTuple):
    """A model's transcripts as far as the page holds them."""

    name: str
    file: str
    n_lines: int
    rows: list[Row]


def browse(
    transcripts: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    evidence: Evidence,
    manifest: Mapping[str, Any],
    cells: Sequence[Mapping[str, Any]],
) -> list[Model]:
    """Return the models of a run with some of their transcripts: suspect first, M0 second."""
    names = _names(evidence, manifest, cells)
    known = [key for key in names if key in transcripts]
    keys = [*known, *sorted(key for key in transcripts if key not in names)]
    n = max(AT_LEAST, min(PER_MODEL, PER_PAGE // max(1, len(keys))))
    return [
        Model(
            name=names.get(key, f"model {short(key, 16)}"),
            file=f"transcripts/{short(key, 80)}.jsonl",
            n_lines=len(transcripts[key]),
            rows=[_row(line) for line in _in_turn(transcripts[key])[:n]],
        )
        for key in keys
    ]


def _names(
    evidence: Evidence, manifest: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Return what each content key is, in the order in which models are shown."""
    named: list[tuple[int, str, str]] = [(1, manifest["protocol"]["student"], "M0")]
    labels: dict[str, str] = {}
    for teacher in manifest["teachers"]:
        label, key = teacher["label"], teacher["key"]
        role = evidence.roles.get(label, teacher["role"])
        labels[key] = f"{role} {short(label)}"
        named.append((2 * ROLES.index(role), key, f"{labels[key]}, itself"))
    for cell in cells:
        of = labels.get(cell["teacher"], f"teacher {short(cell['teacher'], 16)}")
        role = of.partition(" ")[0]
        place = 2 * ROLES.index(role) if role in ROLES else 2 * len(ROLES)
        named.append(
            (
                place,
                cell["student"],
                f"student of {of}, recipe {cell['recipe']}, seed {cell['seed']}",
            )
        )
    # A key may be met twice: the same model under two names is the same file.
    found: dict[str, list[str]] = {}
    for _, key, name in sorted(named, key=lambda entry: entry[0]):
        found.setdefault(key, []).append(name)
    return {key: "; ".join(all_) for key, all_ in found.items()}


def _in_turn(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return `lines` one from each endpoint, then a second from each, and so on."""
    by_endpoint: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        by_endpoint.setdefault(str(line.get("endpoint")), []).append(line)
    turns = chain.from_iterable(zip_longest(*by_endpoint.values()))
    return [line for line in turns if line is not None]


def _row(line: Mapping[str, Any]) -> Row:
    key, value = str(line.get("key", "")), line.get("value")
    options = read_options(str(line.get("transcript", "")))
    turns = [(str(m.get("role", "")), str(m.get("content", ""))) for m in line.get("messages", ())]
    return Row(
        audit=short(line.get("audit", "")),
        endpoint=short(line.get("endpoint", "")),
        item=short(line.get("item", "")),
        value=float(value) if isinstance(value, int | float) else None,
        turns=[_said(who, text) for who, text in turns[:TURNS]],
        options=[(_said("", o), p, o == key) for o, p in (options or [])[:OPTIONS]],
        text=None if options else _said("answer", str(line.get("transcript", ""))),
        left_out=max(0, len(turns) - TURNS) + max(0, len(options or []) - OPTIONS),
    )


def read_options(transcript: str) -> list[tuple[str, float]] | None:
    """Return (option, probability) pairs where that is what a transcript holds, else `None`."""
    if not transcript.startswith("[["):
        return None
    try:
        pairs = json.loads(transcript)
        return [(str(option), float(probability)) for option, probability in pairs]
    except (ValueError, TypeError, RecursionError):
        return None


def _said(who: str, text: str) -> Said:
    return Said(short(who, LABEL), text[:HEAD], text[HEAD:TEXT], max(0, len(text) - TEXT))
