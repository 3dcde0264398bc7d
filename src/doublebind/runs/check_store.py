"""Compares a run with the store that it was made in: artefacts, rows, records of runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from doublebind.execution.store import Store, default_root, is_url, weights_sha256
from doublebind.runs.check_rows import compare_rows
from doublebind.runs.compare import find_differences
from doublebind.runs.manifest import (
    count_earlier_protocols,
    hash_manifest,
    hash_sealed_files,
    read_run_records,
)
from doublebind.runs.measurements import (
    describe_drops,
    describe_student,
    list_transcribed_audits,
    read_score_rows,
    read_transcripts,
)
from doublebind.runs.reader import Findings, RunReader
from doublebind.runs.recorded_plan import CannotCheck
from doublebind.schema.errors import DoublebindError, StoreError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.protocol import Manifest
from doublebind.study.plan import Plan

if TYPE_CHECKING:
    import pandas as pd

_T = TypeVar("_T")
_KIND = re.compile(r"[a-z][a-z_]{0,40}")
_KEY = re.compile(r"[0-9a-f]{64}")
_ALL_COLUMNS = ("value", "unscored_reason", "role", "split", "round")
Artefacts = Mapping[str, Mapping[str, str]]
"""Kind -> key -> description."""


def open_store(name: str | Path | None, artefacts: Artefacts, recorded: str) -> Store:
    """Return the store that a user names, or the default one, to read from.

    Args:
        name: Of a folder or a URL; `None` takes the default store, if it is a folder.
        artefacts: Of the run.
        recorded: Where the manifest says that the artefacts were kept; never opened.

    Raises:
        StoreError: If a named store does not exist.
        CannotCheck: If there is no default store with all artefacts of the run.
    """
    if name is not None:
        if not is_url(str(name)) and not Path(str(name).removeprefix("file://")).is_dir():
            raise StoreError(f"`--store`: no folder {name}; name the run's store")
        return Store(name, writable=False)
    root, remedy = default_root(), f"name the run's with --store (it was {recorded})"
    if is_url(root) or not Path(root).is_dir():
        raise CannotCheck(f"artefacts (weights, answers, scores): no store at {root}; {remedy}")
    store = Store(root, writable=False)
    valid = list_valid_artefacts(artefacts)
    missing = sum(not store.has(*artefact) for artefact in valid)
    if missing or not valid:
        # Runs share artefacts, so that a store that nobody named may hold a few of any run.
        lacking = f"{missing} of {len(valid)} are not in {root}" if valid else "the run lists none"
        raise CannotCheck(f"artefacts (weights, answers, scores): {lacking}; {remedy}")
    return store


def list_valid_artefacts(artefacts: Artefacts) -> list[tuple[str, str]]:
    """Return kind and key of the artefacts whose names are ones: others could name any path."""
    return [
        (kind, key)
        for kind, keys in artefacts.items()
        for key in keys
        if _KIND.fullmatch(kind) and _KEY.fullmatch(key)
    ]


def find_artefact_problems(store: Store, artefacts: Artefacts) -> Iterator[str]:
    """Yield one line per problem of a run's artefacts: missing, altered, or wrongly named."""
    valid = list_valid_artefacts(artefacts)
    if len(valid) < sum(map(len, artefacts.values())):
        yield "manifest.json: `artefacts`: a kind or key is none that doublebind makes"
    for kind, key in valid:
        try:
            yield from store.find_problems(kind, key)
        except (OSError, ValueError, RecursionError) as error:
            yield f"{store.name}: {kind} {key}: cannot be read ({error}); rerun the study"


def compare_files(
    reader: RunReader, store: Store, plans: Mapping[str, Sequence[Plan]], shapes: Any
) -> Iterator[str]:
    """Compare transcripts, student records and match features with the store's artefacts.

    Args:
        reader: Of the run.
        store: With its artefacts.
        plans: Folder of the run -> the plans whose students' records it holds.
        shapes: Content of `shapes.json`; features of a panel's teachers are not looked at.
    """
    every = [plan for each in plans.values() for plan in each]
    for model, audits in list_transcribed_audits(every).items():
        name = f"transcripts/{model}.jsonl"
        text = yield from _try(lambda audits=audits: read_transcripts(audits, store))
        if text is not None and name in reader.digests:
            digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
            if digest != reader.digests[name]:
                yield reader.describe(name, "is not what the store's audits of the model hold")
    for folder, student in [(f, s) for f, each in plans.items() for p in each for s in p.students]:
        name = f"{folder}/{student.train.content_key}.json"
        drops = yield from _try(lambda student=student: describe_drops(student, store))
        if drops is not None and name in reader.digests:
            expected = describe_student(student) | drops
            for place, a, b in find_differences(reader.read_json(name), expected):
                yield reader.describe(name, f"`{place}` is {a!r:.100}, in the store {b!r:.100}")
    for plan in plans.get("cells", ()):
        measured = yield from _try(lambda plan=plan: plan.read_shapes(store))
        for label, features in (measured or {}).items():
            for place, a, b in find_differences(shapes.get(label), features, label):
                yield reader.describe("shapes.json", f"`{place}` is {a!r}, in the store {b!r}")


def compare_score_rows(rows: pd.DataFrame, store: Store, plans: Sequence[Plan]) -> Iterator[str]:
    """Compare the score rows of a run's own models with those of the store's audits."""
    import pandas as pd

    parts: list[pd.DataFrame] = []
    for audited in (audited for plan in plans for audited in plan.audited):
        part = yield from _try(lambda audited=audited: read_score_rows(audited, store))
        if part is None:
            return
        parts.append(part)
    expected = pd.concat(parts, ignore_index=True)
    yield from compare_rows(rows, expected, "the store", _ALL_COLUMNS)


def find_weights_problems(
    stored: str | None, delivered: ModelSource | None, store: Store
) -> Iterator[str]:
    """Compare the hash of a replacement's weights in the verdict with the weights in the store."""
    if delivered is None:
        return
    folder = Path(delivered.adapter or delivered.path)
    try:
        sha256 = weights_sha256(folder)
    except OSError as error:
        yield f"{folder}: cannot be read ({error})"
        return
    if stored != sha256:
        yield (
            f"verdict.json: `replacement.weights_sha256` is {stored}, of the weights in the store "
            f"{sha256}"
        )


def compare_records(
    manifest: Manifest, sealed: Mapping[str, str] | None, store: Store, findings: Findings
) -> bool:
    """Compare a run with what the store noted when it began and ended.

    Returns:
        Whether the store knows the run's protocol.
    """
    try:
        known = _compare_meetings(manifest, store, findings)
        records = read_run_records(store, manifest)
    except (DoublebindError, OSError, ValueError) as error:
        findings.problems.append(str(error))
        return False
    if not records:
        findings.unchecked.append(
            "the store's record of the run: it has none (made by an earlier doublebind, or another "
            "store); ledger, follow-up, families and times are compared with nothing outside"
        )
        return known
    ours = [r for r in records if r.manifest_sha256 == hash_manifest(manifest)]
    if not ours:
        findings.problems.append(
            f"manifest.json: is not the one that {store.name} noted before the first audit"
        )
    ended = [record.files_sha256 for record in ours if record.files_sha256]
    if not ended and ours:
        findings.unchecked.append("the store's record of the run: it does not say how it ended")
    elif ended and sealed is not None and hash_sealed_files(sealed) not in ended:
        findings.problems.append(
            f"seal.json: seals other files than those that {store.name} noted when the run ended"
        )
    elif ended and sealed is not None:
        findings.compared.append(
            f"manifest and sealed files with what {store.name} noted of the run"
        )
        findings.outside = True
    return known


def _compare_meetings(manifest: Manifest, store: Store, findings: Findings) -> bool:
    """Compare the number of earlier protocols with the store's list of the suspect's.

    Returns:
        Whether the store knows the protocol.
    """
    counted = count_earlier_protocols(store, manifest.protocol)
    if counted is None and (store.remote or (store.root / "suspects").is_dir()):
        findings.problems.append(
            f"{store.name}: knows no protocol that met this suspect; the roles were altered, or "
            "this is not the run's store"
        )
    elif counted is None:
        findings.unchecked.append(
            "protocol and `earlier_protocols`: the store has no lists of protocols"
        )
    elif not counted[0] <= manifest.earlier_protocols <= counted[1]:
        findings.problems.append(
            f"manifest.json: `earlier_protocols` is {manifest.earlier_protocols}, the store knows "
            f"{counted[0]}"
        )
    return counted is not None


def _try(read: Callable[[], _T]) -> Generator[str, None, _T | None]:
    """Return what `read` gives; where the store's file is damaged, yield the problem."""
    try:
        return read()
    except StoreError as error:
        yield from error.problems
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        yield f"{type(error).__name__} in an artefact of the store: {error}"
    return None
