"""Freezes the protocol on disk before the first audit; counts earlier protocols of a suspect."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from doublebind.execution.store import Store, write_atomic
from doublebind.runs.provenance import describe_hardware, read_versions
from doublebind.schema.errors import RunError
from doublebind.schema.evidence import ReplacementEvidence
from doublebind.schema.hashing import Record
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Manifest, Protocol
from doublebind.schema.study import Study


class ProtocolUse(Record):
    """One line of a suspect's list: a protocol that met it."""

    protocol_hash: str
    first: str


class FurtherTrainedModel(NamedTuple):
    """A model that was trained further, by the labels of its score rows."""

    model_kind: str
    recipe: str
    seed: int
    step: int
    content_key: str


class ReplacementRecord(Record):
    """`replacement.json`: the bounds on a replacement, and the artefacts made for it."""

    evidence: ReplacementEvidence
    artefacts: dict[str, dict[str, str]]
    """Kind -> key -> description, for every artefact."""
    student: str | None
    """Content key of the delivered student."""
    further_training: tuple[FurtherTrainedModel, ...] = Field(
        default=(), exclude_if=lambda v: not v
    )
    """Students that were trained further, and M0 trained alike beside each."""


def record_protocol(store: Store, protocol: Protocol) -> int:
    """Note that `protocol` meets its suspect; return how many other protocols met it before."""
    name = f"suspects/{protocol.suspect}"
    met = [ProtocolUse.model_validate_json(line) for line in store.lines(name)]
    hashes = [meeting.protocol_hash for meeting in sorted(met, key=lambda m: m.first)]
    if protocol.hash not in hashes:
        meeting = ProtocolUse(protocol_hash=protocol.hash, first=_now())
        store.add_line(name, meeting.model_dump_json())
        return len(hashes)
    return hashes.index(protocol.hash)


def write_manifest(
    out: Path,
    study: Study,
    protocol: Protocol,
    teachers: Sequence[Teacher],
    *,
    selection_teachers: Sequence[Teacher] = (),
    earlier_protocols: int,
    artefacts: Mapping[str, Mapping[str, str]],
    store: Store,
    served: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write `manifest.json`, or return the one there if it is of this protocol.

    Raises:
        RunError: If `out` was started with another protocol.
    """
    path = out / "manifest.json"
    if path.exists():
        try:
            there = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
        except ValueError:
            raise RunError(f"{path}: cannot be read; restore it or choose another --out") from None
        if there.protocol_hash != protocol.hash:
            raise RunError(
                f"{out}: was started with another protocol ({there.protocol_hash[:12]}, this is "
                f"{protocol.hash[:12]}); choose another --out, finished cells are shared"
            )
        return there
    manifest = Manifest(
        protocol=protocol,
        protocol_hash=protocol.hash,
        study=study.model_dump(mode="json", by_alias=False),
        teachers=tuple(teachers),
        selection_teachers=tuple(selection_teachers),
        earlier_protocols=earlier_protocols,
        artefacts={kind: dict(keys) for kind, keys in artefacts.items()},
        served=dict(served or {}),
        store=store.name if store.remote else str(store.root.resolve()),
        versions=read_versions(),
        hardware=describe_hardware(),
        seeds={"students": list(range(study.seeds))},
        created=_now(),
    )
    write_atomic(path, manifest.model_dump_json(indent=1))
    return manifest


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
