"""Freezes the protocol on disk before the first audit; counts earlier protocols of a suspect."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from doublebind.execution.store import Store, write_atomic
from doublebind.runs.provenance import describe_hardware, read_versions
from doublebind.runs.records import MANIFEST, check_format
from doublebind.schema.errors import RunError
from doublebind.schema.hashing import Record
from doublebind.schema.protocol import Manifest, Protocol
from doublebind.schema.read_file import read_text
from doublebind.study.access import collect_served_facts
from doublebind.study.plan import list_artefacts
from doublebind.study.resolve import ResolvedStudy


class ProtocolUse(Record):
    """A protocol under which a suspect was audited, and the time of the first audit."""

    protocol_hash: str
    first: str
    """UTC, ISO 8601."""


def record_protocol(store: Store, protocol: Protocol) -> int:
    """Note that `protocol` audits its suspect; return the number of others that did so before."""
    name = f"suspects/{protocol.suspect}"
    uses = [ProtocolUse.model_validate_json(line) for line in store.lines(name)]
    hashes = [use.protocol_hash for use in sorted(uses, key=lambda use: use.first)]
    if protocol.hash not in hashes:
        use = ProtocolUse(protocol_hash=protocol.hash, first=_format_now())
        store.add_line(name, use.model_dump_json())
        return len(hashes)
    return hashes.index(protocol.hash)


def freeze_manifest(out: Path, resolved: ResolvedStudy) -> Manifest:
    """Write `manifest.json` of a run, or return the one in `out` if it has the same protocol.

    Notes the protocol with its suspect in the store.

    Raises:
        RunError: If `out` was started with another protocol, or its manifest cannot be read.
    """
    store, protocol, study = resolved.store, resolved.protocol, resolved.study
    earlier_protocols = record_protocol(store, protocol)
    path = out / MANIFEST
    if path.exists():
        check_format(out)
        try:
            manifest = Manifest.model_validate_json(read_text(path))
        except (OSError, ValueError):
            raise RunError(f"{path}: cannot be read; restore it or choose another --out") from None
        if manifest.protocol_hash != protocol.hash:
            raise RunError(
                f"{out}: was started with another protocol ({manifest.protocol_hash[:12]}, this is "
                f"{protocol.hash[:12]}); choose another --out, finished artefacts are shared"
            )
        return manifest
    manifest = Manifest(
        protocol=protocol,
        protocol_hash=protocol.hash,
        study=study.model_dump(mode="json", by_alias=False),
        teachers=tuple(resolved.teachers),
        selection_teachers=tuple(resolved.selection_teachers),
        earlier_protocols=earlier_protocols,
        artefacts=list_artefacts(resolved.plan),
        served=collect_served_facts(resolved.teacher_sources),
        store=store.name if store.remote else str(store.root.resolve()),
        versions=read_versions(),
        hardware=describe_hardware(),
        seeds={"students": list(range(study.seeds))},
        created=_format_now(),
    )
    write_atomic(path, manifest.model_dump_json(indent=1))
    return manifest


def _format_now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
