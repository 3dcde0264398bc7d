"""Freezes the protocol on disk before the first audit, and keeps the store's records of runs.

The store counts the protocols that met a suspect, and notes with which manifest a run began and
with which files it ended: who has the store at hand can tell a run from one that was rewritten.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path

from doublebind.execution.store import Store, write_atomic
from doublebind.runs.files import check_file, read_text
from doublebind.runs.provenance import describe_hardware, read_versions
from doublebind.runs.records import MANIFEST, check_format
from doublebind.runs.seal import PAGE
from doublebind.schema.errors import RunError, StoreError
from doublebind.schema.hashing import Record, content_hash
from doublebind.schema.protocol import Manifest, Protocol
from doublebind.study.access import collect_served_facts
from doublebind.study.plan import list_artefacts
from doublebind.study.resolve import ResolvedStudy


class ProtocolUse(Record):
    """A protocol under which a suspect was audited, and the time of the first audit."""

    protocol_hash: str
    first: str
    """UTC, ISO 8601."""


class RunRecord(Record):
    """What a store notes of a run: its manifest before the first audit, its files at the end."""

    manifest_sha256: str
    """As `hash_manifest` gives it."""
    files_sha256: str | None = None
    """As `hash_sealed_files` gives it; `None` at the beginning."""
    time: str
    """UTC, ISO 8601."""


def record_protocol(store: Store, protocol: Protocol) -> int:
    """Note that `protocol` audits its suspect; return the number of others that did so before.

    Only those that this store knows. Of protocols that begin at once, some count each other.

    Raises:
        StoreError: If the store's list cannot be read.
    """
    hashes = _list_protocols(store, protocol.suspect)
    if protocol.hash not in hashes:
        use = ProtocolUse(protocol_hash=protocol.hash, first=_format_now())
        store.add_line(f"suspects/{protocol.suspect}", use.model_dump_json())
        # Read again: others may have begun meanwhile, and each must count the other or be counted.
        return len(set(_list_protocols(store, protocol.suspect)) - {protocol.hash})
    return hashes.index(protocol.hash)


def _list_protocols(store: Store, suspect: str) -> list[str]:
    """Return the hashes of the protocols that met a suspect, the earliest first, each once."""
    uses = sorted(_read_uses(store, suspect), key=lambda use: use.first)
    return list(dict.fromkeys(use.protocol_hash for use in uses))


def count_earlier_protocols(store: Store, protocol: Protocol) -> tuple[int, int] | None:
    """Return the least and the most protocols that a store knows to have met a suspect earlier.

    They differ where others were first used within the same second. `None` where the store knows
    no protocol that met the suspect.

    Raises:
        RunError: If the store knows some, and `protocol` is none of them.
        StoreError: If the store's list cannot be read.
    """
    uses = _read_uses(store, protocol.suspect)
    if not uses:
        return None
    ours = next((use for use in uses if use.protocol_hash == protocol.hash), None)
    if ours is None:
        raise RunError(
            f"{store.name}: knows {len(uses)} protocols that met this suspect, and this is none of "
            "them; the protocol was altered, or this is not the run's store"
        )
    others = [use.first for use in uses if use.protocol_hash != ours.protocol_hash]
    return sum(first < ours.first for first in others), sum(first <= ours.first for first in others)


def _read_uses(store: Store, suspect: str) -> list[ProtocolUse]:
    lines = store.lines(f"suspects/{suspect}")
    try:
        return [ProtocolUse.model_validate_json(line) for line in lines]
    except ValueError:
        raise StoreError(
            f"{store.name}: the list of protocols that met {suspect} is damaged; restore it"
        ) from None


def hash_manifest(manifest: Manifest) -> str:
    """Return a hash (hex) of everything in a manifest but the place of its store."""
    return content_hash(manifest.model_dump(mode="json", exclude={"store"}))


def hash_sealed_files(sealed: Mapping[str, str]) -> str:
    """Return one hash (hex) of a run's sealed files.

    The manifest is left out, which names the place of the store and has a hash of its own, and the
    page, which `doublebind report` writes again from the other files.
    """
    names = sorted(name for name in sealed if name not in (MANIFEST, PAGE))
    return content_hash([[name, sealed[name]] for name in names])


def record_run(store: Store, manifest: Manifest, sealed: Mapping[str, str] | None = None) -> None:
    """Note in the store that a run begins, or that it ended with the files `sealed`."""
    record = RunRecord(
        manifest_sha256=hash_manifest(manifest),
        files_sha256=None if sealed is None else hash_sealed_files(sealed),
        time=_format_now(),
    )
    noted = {(r.manifest_sha256, r.files_sha256) for r in read_run_records(store, manifest)}
    if (record.manifest_sha256, record.files_sha256) not in noted:
        store.add_line(f"runs/{manifest.protocol.hash}", record.model_dump_json())


def read_run_records(store: Store, manifest: Manifest) -> list[RunRecord]:
    """Return what the store notes of all runs of a manifest's protocol.

    Raises:
        StoreError: If the store's list cannot be read.
    """
    lines = store.lines(f"runs/{manifest.protocol.hash}")
    try:
        return [RunRecord.model_validate_json(line) for line in lines]
    except ValueError:
        raise StoreError(
            f"{store.name}: the list of runs of protocol {manifest.protocol.hash} is damaged; "
            "restore it"
        ) from None


def freeze_manifest(out: Path, resolved: ResolvedStudy) -> Manifest:
    """Write `manifest.json` of a run, or return the one in `out` if it has the same protocol.

    Notes in the store the protocol with its suspect, and the manifest.

    Raises:
        RunError: If `out` was started with another protocol, or its manifest cannot be read.
    """
    store, protocol, study = resolved.store, resolved.protocol, resolved.study
    earlier_protocols = record_protocol(store, protocol)
    path = out / MANIFEST
    if check_file(out, MANIFEST):
        check_format(out)
        try:
            manifest = Manifest.model_validate_json(read_text(out, MANIFEST))
        except RunError:
            raise
        except ValueError:
            raise RunError(f"{path}: cannot be read; restore it or choose another --out") from None
        if manifest.protocol_hash != protocol.hash:
            raise RunError(
                f"{out}: was started with another protocol ({manifest.protocol_hash[:12]}, this is "
                f"{protocol.hash[:12]}); choose another --out, finished artefacts are shared"
            )
        _check_resumed(out, manifest, resolved)
        record_run(store, manifest)
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
    record_run(store, manifest)
    return manifest


def _check_resumed(out: Path, manifest: Manifest, resolved: ResolvedStudy) -> None:
    """Refuse a manifest whose teachers or artefacts were edited since the run began."""
    parts = {
        "teachers": (manifest.teachers, tuple(resolved.teachers)),
        "selection_teachers": (manifest.selection_teachers, tuple(resolved.selection_teachers)),
        "artefacts": (manifest.artefacts, list_artefacts(resolved.plan)),
    }
    for name, (recorded, planned) in parts.items():
        if recorded != planned:
            raise RunError(
                f"{out / MANIFEST}: `{name}` are not this study's, though the protocol is; restore "
                "it or choose another --out, finished artefacts are shared"
            )


def _format_now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
