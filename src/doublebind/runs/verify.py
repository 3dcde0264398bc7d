"""Checks whether a run directory agrees with itself, and with the store and panel it came from.

Recomputes keys, evidence, verdict and page. Writes nothing, connects to nothing, and trusts no
file: one that cannot be read is a problem. A run that was rewritten as a whole agrees with itself;
only its store, or a published or signed hash of its seal, can show that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from doublebind.execution.store import Store
from doublebind.runs import check_measurements as measurements
from doublebind.runs import check_plan, check_store
from doublebind.runs.assess import assess
from doublebind.runs.check_manifest import find_excess, find_manifest_problems
from doublebind.runs.check_rows import compare_rows, find_inner_problems, read_score_table
from doublebind.runs.compare import find_differences
from doublebind.runs.files import check_file, list_files
from doublebind.runs.provenance import read_versions
from doublebind.runs.reader import Findings, RunReader
from doublebind.runs.recorded_plan import (
    CannotCheck,
    NamedFolder,
    RecordedPlan,
    RecordedReplacement,
    find_recorded_packs,
    list_own_teachers,
    list_teacher_names,
    plan_recorded_replacement,
    plan_recorded_study,
)
from doublebind.runs.records import MANIFEST, ReplacementRecord, check_format
from doublebind.runs.run import Run
from doublebind.runs.seal import FOLLOWUP, LEDGER, PAGE, SEAL, list_sealed_files
from doublebind.runs.signature import check_signature
from doublebind.runs.write import render_page
from doublebind.schema.errors import ConfigError, RunError
from doublebind.schema.hashing import Record
from doublebind.schema.model_source import LedgerEntry
from doublebind.schema.protocol import Manifest
from doublebind.schema.study import Study
from doublebind.stages.verdict.outcome import METHOD_VERSION, verdict_to_json
from doublebind.study.plan import Plan

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["verified", "consistent", "problems"]
_MEASUREMENT_FOLDERS = ("cells", "replacement")
_UNSEALED = (".lock", SEAL, f"{SEAL}.sig")


class Verification(Record):
    """The result of verifying a run."""

    status: Status
    """`verified`: agrees with itself, and as a whole with something outside it: its store, a
    published hash of its seal, or a signature. `consistent`: agrees with itself, which a run that
    was invented may, too. `problems`: something disagrees."""
    verified: bool
    """Whether the status is `verified`."""
    problems: tuple[str, ...]
    """One line for each disagreement: file, what is wrong, remedy."""
    compared: tuple[str, ...]
    """What was compared with what."""
    unchecked: tuple[str, ...]
    """Checks that could not be made here, and why."""
    protocol_hash: str | None
    """As recomputed; compare it with one that was published before the audit."""
    seal_sha256: str | None
    """Hash of `seal.json`, which holds the hashes of all other files: publish it with a verdict,
    and nobody can rewrite the run unseen."""


class _Published(NamedTuple):
    """What a user knows of a run from elsewhere."""

    protocol_hash: str | None
    seal_sha256: str | None
    allowed_signers: Path | None
    identity: str | None


def verify(
    path: str | Path,
    *,
    store: str | Path | None = None,
    folder: str | Path = ".",
    protocol_hash: str | None = None,
    seal: str | None = None,
    allowed_signers: str | Path | None = None,
    identity: str | None = None,
) -> Verification:
    """Recompute every hash, key, p-value and decision of the run in `path`, on any machine.

    Compares every file with the seal; the protocol with its hash; the manifest with its protocol,
    and its artefacts with keys recomputed from it; evidence, verdict and page with those that
    `scores.parquet` gives, numbers to 1e-9; every score row with its transcript. Where they are at
    hand, compares the questions with the pack, a panel's rows with the panel, and all measurements
    with the store's artefacts, and those with their hashes.

    Args:
        path: A finished run.
        store: The store that it was made in; default `$DOUBLEBIND_STORE` or
            `~/.cache/doublebind`, if that is a folder. The manifest's is never opened.
        folder: Folder that packs and panels of the study are looked for in, by the names that the
            manifest gives; nothing outside it is read.
        protocol_hash: Hash of the protocol, if it was published before the first audit.
        seal: sha256 of `seal.json`, if it was published with the verdict.
        allowed_signers: File of names and public keys (`ssh-keygen(1)`, ALLOWED SIGNERS); one of
            them has to have signed the seal (`doublebind seal`).
        identity: Who of them; default anybody.

    Raises:
        RunError: If `path` holds no run, one that has not ended, or one of another method version.
        ConfigError: If a published hash is none, or signatures cannot be checked here.
        StoreError: If `store` does not exist.
    """
    run = Path(path)
    signers = None if allowed_signers is None else Path(allowed_signers)
    published = _Published(
        _parse_hash("--protocol-hash", protocol_hash),
        _parse_hash("--seal", seal),
        signers,
        identity,
    )
    if identity is not None and signers is None:
        raise ConfigError("`--identity`: needs --allowed-signers, the file with that name's keys")
    reader = RunReader(run)
    manifest = _open_run(reader)
    findings = Findings(compared=["every file of the run with its seal"])
    sealed = _check_seal(reader, findings)
    if manifest is not None:
        _compare_published(manifest, reader, published, findings)
        try:
            study = Study.model_validate(manifest.study)
        except ValueError as error:
            text = f"`study` is none ({_first_line(error)})"
            findings.problems.append(reader.describe(MANIFEST, text))
        else:
            places = NamedFolder(Path(folder), run)
            if (text := find_excess(manifest, study)) is not None:
                findings.problems.append(reader.describe(MANIFEST, text))
            else:
                content = _read_content(reader, findings, manifest, study, places)
                _check_content(content, sealed, store)
    problems = tuple(dict.fromkeys([*reader.problems, *findings.problems]))
    status: Status = "verified" if findings.outside else "consistent"
    return Verification(
        status="problems" if problems else status,
        verified=findings.outside and not problems,
        problems=problems,
        compared=tuple(dict.fromkeys(findings.compared)),
        unchecked=tuple(dict.fromkeys(findings.unchecked)),
        protocol_hash=manifest.protocol.hash if manifest else None,
        seal_sha256=reader.digests.get(SEAL),
    )


def _open_run(reader: RunReader) -> Manifest | None:
    """Return the manifest of a finished run; `None`, and a problem, where it cannot be read."""
    run = reader.run
    try:
        exists = check_file(run, MANIFEST)
    except RunError:
        exists = True
    if not exists:
        raise RunError(
            f"{run / MANIFEST}: missing; not a run directory, name what `doublebind run` was given "
            "as --out"
        )
    check_format(run)
    manifest = reader.read_json(MANIFEST, Manifest)
    if not any((run / name).exists() for name in (SEAL, "verdict.json")):
        if manifest is None:
            raise RunError(f"{reader.problems[0]}; restore it or choose another --out")
        raise RunError(f"{run / SEAL}: missing; the run has not ended, rerun it to resume")
    if manifest is not None and manifest.protocol.method_version != METHOD_VERSION:
        package = manifest.versions.get("doublebind", "the version that made it")
        raise RunError(
            f"{run}: was decided by method version {manifest.protocol.method_version}, this is "
            f"{METHOD_VERSION}, which may give other numbers; verify it with doublebind {package}"
        )
    return manifest


# --- the seal, and what was published -------------------------------------------------------------


def _check_seal(reader: RunReader, findings: Findings) -> dict[str, str] | None:
    """Compare every file with the seal, and the seal with the files that it has to cover."""
    sealed = reader.read_json(SEAL)
    try:
        names, everything = list_sealed_files(reader.run), list_files(reader.run)
    except RunError as error:
        findings.problems += error.problems
        names, everything = [], []
    for name in everything:
        try:
            check_file(reader.run, name)
        except RunError as error:
            findings.problems += error.problems
    if sealed is None:
        return None
    for name in dict.fromkeys([*names, *sealed]):
        if name not in sealed:
            text = "is not in the seal, and may have been added after the run ended"
        elif name not in names:
            text = f"{'is no file of a run' if name in everything else 'missing'}, but in the seal"
        elif reader.read(name) is None or reader.digests[name] == sealed[name]:
            continue
        else:
            text = "altered since the run ended"
        findings.problems.append(reader.describe(name, text))
    others = [n for n in everything if n not in names and n not in (*_UNSEALED, *sealed)]
    if others:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if others[3:] else "")
        findings.unchecked.append(f"files that no seal covers: {shown}")
    return {name: str(sha256) for name, sha256 in sealed.items()}


def _parse_hash(option: str, value: str | None) -> str | None:
    """Return a published hash in lower case.

    Raises:
        ConfigError: If it is none.
    """
    if value is not None and not re.fullmatch(r"[0-9a-f]{64}", value.strip().lower()):
        raise ConfigError(f"`{option}`: {value}; give the 64 hexadecimal digits of the hash")
    return value and value.strip().lower()


def _compare_published(
    manifest: Manifest, reader: RunReader, published: _Published, findings: Findings
) -> None:
    """Compare protocol and seal with what was published, and the seal with its signature."""
    expected = published.protocol_hash
    if expected is not None:
        if manifest.protocol.hash == expected:
            findings.compared.append("the protocol with its published hash")
        else:
            text = f"the protocol's hash is {manifest.protocol.hash}, {expected} was published"
            findings.problems.append(reader.describe(MANIFEST, text))
    expected, digest = published.seal_sha256, reader.digests.get(SEAL)
    if expected is not None:
        if digest == expected:
            findings.compared.append("the seal with its published hash")
            findings.outside = True
        else:
            text = f"its sha256 is {digest or 'not known'}, {expected} was published"
            findings.problems.append(reader.describe(SEAL, text))
    if published.allowed_signers is not None:
        try:
            signer = check_signature(reader.run, published.allowed_signers, published.identity)
        except RunError as error:
            findings.problems += error.problems
            return
        findings.compared.append(f"the seal with the signature of {signer}")
        findings.outside = True


# --- the run's content ---------------------------------------------------------------------------


class _RunContent(NamedTuple):
    """The files of a run that several checks read."""

    reader: RunReader
    findings: Findings
    manifest: Manifest
    study: Study
    folder: NamedFolder
    scores: pd.DataFrame | None
    """`None` also where the manifest's teachers are not the protocol's."""
    shapes: dict[str, Any] | None
    replacement: ReplacementRecord | None
    cells: dict[str, dict[str, Any]]
    """Name of a file in `cells/` or `replacement/` -> record of a student."""

    def report(self, name: str, problems: Iterator[str] | Sequence[str]) -> None:
        """Record problems with a file of the run."""
        self.findings.problems += [self.reader.describe(name, text) for text in problems]

    @property
    def artefacts(self) -> dict[str, dict[str, str]]:
        """Kind -> key -> description, of all artefacts of the run."""
        parts = [self.manifest.artefacts]
        parts += [self.replacement.artefacts] if self.replacement else []
        kinds = dict.fromkeys(kind for part in parts for kind in part)
        return {k: {n: v for part in parts for n, v in part.get(k, {}).items()} for k in kinds}


def _read_content(
    reader: RunReader, findings: Findings, manifest: Manifest, study: Study, folder: NamedFolder
) -> _RunContent:
    replacement = None
    if manifest.protocol.replacement is not None:
        replacement = reader.read_json("replacement.json", ReplacementRecord)
    shapes = reader.read_json("shapes.json")
    scores, content = None, reader.read("scores.parquet")
    if content is not None:
        try:
            scores = read_score_table(content)
        except Exception as error:  # what a parquet reader raises on damaged bytes is not bounded
            text = f"cannot be read ({_first_line(error)}); nothing can be recomputed"
            findings.problems.append(reader.describe("scores.parquet", text))
    cells: dict[str, dict[str, Any]] = {}
    for name in _list_folder_files(reader, findings, _MEASUREMENT_FOLDERS):
        if (cell := reader.read_json(name)) is not None:
            cells[name] = cell
    mismatches = list(find_manifest_problems(manifest, study))
    findings.problems += [reader.describe(MANIFEST, text) for text in mismatches]
    if any(text.startswith("`teachers`") for text in mismatches):
        scores = None
    return _RunContent(
        reader, findings, manifest, study, folder, scores, shapes, replacement, cells
    )


def _list_folder_files(reader: RunReader, findings: Findings, folders: Sequence[str]) -> list[str]:
    names: list[str] = []
    for folder in folders:
        try:
            names += list_files(reader.run, folder)
        except RunError as error:
            findings.problems += error.problems
    return names


def _check_content(
    content: _RunContent, sealed: Mapping[str, str] | None, store: str | Path | None
) -> None:
    """Compare everything that a run holds with what it follows from."""
    findings = content.findings
    bounds = _check_recomputed(content)
    opened, no_store = None, None
    try:
        recorded = str(content.manifest.store)
        opened = check_store.open_store(store, content.artefacts, recorded)
    except CannotCheck as reason:
        no_store = str(reason)
    recorded_plan, replacement = _plan_again(content, opened, bounds)
    own, panel_rows, panel_compared = _check_panel(content)
    with_store = opened is not None and recorded_plan is not None
    _check_models(content, own, recorded_plan, replacement, with_store)
    _check_ledger(content)
    if opened is None:
        findings.unchecked.append(str(no_store))
    else:
        n_problems = len(findings.problems)
        _check_store(content, own, recorded_plan, replacement, opened)
        agrees = with_store and own is not None and len(findings.problems) == n_problems
        agrees &= panel_rows is None or panel_compared
        # Roles enter no key: without the store's list, a reference could stand as the suspect.
        known = check_store.compare_records(content.manifest, sealed, opened, findings)
        findings.outside |= agrees and known
    _check_page(content)


# --- what follows from the scores ----------------------------------------------------------------


def _check_recomputed(content: _RunContent) -> Any:
    """Compare evidence and verdict with those that the scores give; return the bounds."""
    if content.scores is None:
        return None
    try:
        recomputed, bounds = _recompute_files(content, content.scores)
        for name, computed in recomputed.items():
            stored = content.reader.read_json(name)
            if stored is not None:
                differences = find_differences(stored, computed)
                content.report(
                    name,
                    [
                        f"`{place}` is {_shorten(a)}, recomputed {_shorten(b)}"
                        for place, a, b in differences
                    ],
                )
    except Exception as error:  # statistics on invented scores may fail in any way
        text = f"no verdict can be recomputed from it ({_first_line(error)})"
        content.report("scores.parquet", [text])
        return None
    content.findings.compared.append("evidence and verdict with those that scores.parquet gives")
    return bounds


def _recompute_files(content: _RunContent, scores: pd.DataFrame) -> tuple[dict[str, Any], Any]:
    """Return name -> content of the files that follow from the scores, and the bounds."""
    manifest = content.manifest
    stored = content.reader.read_json("verdict.json") or {}
    if content.shapes is None:
        raise ValueError("the match features in shapes.json cannot be read")
    evidence, verdict, bounds = assess(
        scores,
        manifest.teachers,
        manifest.selection_teachers,
        manifest.protocol,
        earlier_protocols=manifest.earlier_protocols,
        shapes=content.shapes,
        # Compared with the weights themselves where the store is at hand.
        weights_sha256=(stored.get("replacement") or {}).get("weights_sha256"),
    )
    computed = {"evidence.json": evidence.model_dump(mode="json")}
    if bounds is not None and content.replacement is not None:
        record = content.replacement.model_copy(update={"evidence": bounds})
        computed["replacement.json"] = record.model_dump(mode="json")
    return computed | {"verdict.json": verdict_to_json(verdict)}, bounds


def _check_page(content: _RunContent) -> None:
    """Compare the page with the one that the other files give."""
    if content.findings.problems or content.reader.problems:
        text = f"{PAGE}: the files that it is made from have problems"
        content.findings.unchecked.append(text)
        return
    made_by = content.manifest.versions.get("doublebind")
    if made_by != read_versions()["doublebind"]:
        content.findings.unchecked.append(
            f"{PAGE}: written by doublebind {made_by}, whose page may look otherwise"
        )
        return
    page = content.reader.read_text(PAGE)
    if page is None:
        return
    try:
        if render_page(Run(content.reader.run)) != page:
            content.report(PAGE, ["is not the page that the run's other files give"])
    except Exception as error:  # a page of damaged records may fail in any way
        content.report(PAGE, [f"cannot be written again ({_first_line(error)})"])
    else:
        content.findings.compared.append("the page with the one that the other files give")


# --- models, transcripts and rows ----------------------------------------------------------------


def _plan_again(
    content: _RunContent, store: Store | None, bounds: Any
) -> tuple[RecordedPlan | None, RecordedReplacement | None]:
    """Return the plans whose keys the run should have, its own compared with them."""
    manifest, study, replacement = content.manifest, content.study, content.replacement
    packs = find_recorded_packs(study, manifest.protocol, content.folder)
    plan_store = store or Store(content.reader.run / ".no-store", writable=False)
    try:
        recorded = plan_recorded_study(manifest, study, packs, plan_store, content.folder)
        searched = None
        if recorded.replacement is not None and replacement is not None:
            if bounds is None:
                raise CannotCheck("keys of artefacts: no winner of the recipes can be recomputed")
            searched = plan_recorded_replacement(
                recorded, bounds.recipe_results, bounds.recipe, replacement.further_training
            )
    except CannotCheck as reason:
        content.findings.unchecked.append(f"{reason}; they are taken from the run's own records")
        return None, None
    names = list_teacher_names(study, recorded.planner.pack)
    if [teacher.label for teacher in recorded.own_teachers] != names:
        content.report(MANIFEST, ["`teachers`: the labels are not those that the study names"])
    problems = check_plan.find_artefact_mismatches(
        manifest, replacement, content.cells, recorded, searched
    )
    for name, text in problems:
        content.report(name, [text])
    content.findings.compared.append("keys of all artefacts with those that the protocol gives")
    return recorded, searched


def _check_models(
    content: _RunContent,
    own: pd.DataFrame | None,
    recorded: RecordedPlan | None,
    searched: RecordedReplacement | None,
    with_store: bool,
) -> None:
    """Compare the run's own score rows with its transcripts, and those with the packs."""
    findings = content.findings
    plans = _list_plans(recorded, searched)
    if recorded is not None:
        models = measurements.list_planned_models([p for each in plans.values() for p in each])
    else:
        models, problems = measurements.list_recorded_models(
            content.reader, content.manifest, content.study, content.replacement, content.cells
        )
        findings.problems += problems
    questions = None
    packs = find_recorded_packs(content.study, content.manifest.protocol, content.folder)
    try:
        if recorded is None:
            raise CannotCheck("items of the audits: the keys of the audits are not known")
        questions = measurements.list_pack_questions(packs, recorded.planner.audits)
        findings.compared.append(f"questions with the pack {packs.audit.name}")
    except CannotCheck as reason:
        if not with_store:
            findings.unchecked.append(str(reason))
    expected, complete, problems = measurements.read_transcript_rows(
        content.reader, models.transcribed, questions
    )
    findings.problems += problems
    known = {f"transcripts/{model.content_key}.jsonl" for model in models.transcribed.values()}
    for name in _list_folder_files(content.reader, findings, ["transcripts"]):
        if name not in known:
            content.report(name, ["holds transcripts of no model of this run"])
    if own is None:
        return
    empty = {str(cell.get("teacher")) for cell in content.cells.values() if "absent" in cell}
    silent = {t.label for t in content.manifest.teachers if t.content_key in empty}
    content.report("scores.parquet", measurements.find_label_problems(own, models, silent))
    rows = measurements.select_models(own, complete)
    content.report(
        "scores.parquet", compare_rows(rows, expected, "its transcript", ("value", "round"))
    )
    if questions is not None:
        content.report(
            "scores.parquet", measurements.find_item_problems(rows, models.transcribed, questions)
        )
    findings.compared.append("score rows of the run's own models with their transcripts")
    if models.baselines and not with_store:
        kinds = ", ".join(sorted({labels[1] for labels in models.baselines}))
        findings.unchecked.append(f"rows of the baselines ({kinds}): they have no transcripts")


def _list_plans(
    recorded: RecordedPlan | None, searched: RecordedReplacement | None
) -> dict[str, list[Plan]]:
    """Return folder of the run -> the plans whose students' records it holds."""
    plans = {"cells": [recorded.plan]} if recorded else {}
    if searched is not None:
        plans["replacement"] = [searched.competition, searched.certification]
    return plans


def _check_panel(
    content: _RunContent,
) -> tuple[pd.DataFrame | None, pd.DataFrame | None, bool]:
    """Compare a panel's rows with the panel; return the run's own rows, the panel's, and whether.

    Rows of labels that no teacher has count as the run's own.
    """
    manifest, scores = content.manifest, content.scores
    if scores is None:
        return None, None, False
    content.report("scores.parquet", find_inner_problems(scores))
    if manifest.protocol.panel is None:
        return scores, None, False
    own_labels = {t.label for t in list_own_teachers(manifest, content.study)}
    labels = {t.label for t in manifest.teachers} - own_labels
    of_panel = scores["teacher"].isin(sorted(labels))
    own, rows = scores.loc[~of_panel, :], scores.loc[of_panel, :]
    try:
        where, panel = measurements.find_recorded_panel(
            content.study, manifest.protocol.panel, content.folder
        )
    except CannotCheck as reason:
        content.findings.unchecked.append(str(reason))
        return own, rows, False
    content.report(
        MANIFEST, measurements.check_panel_teachers(manifest, content.study, panel, where)
    )
    teachers = [t for t in manifest.teachers if t.label in labels]
    content.report("scores.parquet", measurements.compare_panel_rows(rows, teachers, panel, where))
    shapes = {t.content_key: t.shape for t in panel.teachers}
    for teacher in teachers:
        if content.shapes is not None and teacher.content_key in shapes:
            stored, expected = content.shapes.get(teacher.label), shapes[teacher.content_key]
            for place, a, b in find_differences(stored, expected, teacher.label):
                content.report("shapes.json", [f"`{place}` is {a!r}, in the panel {b!r}"])
    content.findings.compared.append(f"rows of {len(teachers)} teachers with the panel {where}")
    return own, rows, True


def _check_store(
    content: _RunContent,
    own: pd.DataFrame | None,
    recorded: RecordedPlan | None,
    searched: RecordedReplacement | None,
    store: Store,
) -> None:
    """Compare artefacts with their hashes, and all measurements with the artefacts."""
    findings = content.findings
    findings.problems += check_store.find_artefact_problems(store, content.artefacts)
    n_artefacts = sum(map(len, content.artefacts.values()))
    findings.compared.append(f"{n_artefacts} artefacts in {store.name} with their hashes")
    if recorded is None or own is None:
        return
    plans = _list_plans(recorded, searched)
    every = [plan for each in plans.values() for plan in each]
    content.report("scores.parquet", check_store.compare_score_rows(own, store, every))
    findings.problems += check_store.compare_files(
        content.reader, store, plans, content.shapes or {}
    )
    if searched is not None:
        stored = (content.reader.read_json("verdict.json") or {}).get("replacement") or {}
        findings.problems += check_store.find_weights_problems(
            stored.get("weights_sha256"), searched.delivered, store
        )
    findings.compared.append(
        f"{len(own)} score rows, transcripts, cells and shapes with {store.name}"
    )


def _check_ledger(content: _RunContent) -> None:
    """Compare the events of the ledger with the artefacts of the run."""
    text = content.reader.read_text(LEDGER)
    if text is None:
        return
    done: set[str] = set()
    listed = {key for keys in content.artefacts.values() for key in keys}
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            entry = LedgerEntry.model_validate_json(line)
        except ValueError:
            content.report(LEDGER, [f"line {number} is damaged"])
            return
        if entry.status == "done":
            done.add(entry.artefact_key)
    missing = sorted(listed - done)
    content.report(LEDGER, [f"artefact {key} was never made" for key in missing[:5]])
    extra = done - listed
    if extra and FOLLOWUP not in content.reader.digests:
        content.report(LEDGER, [f"artefact {key} is none of the run" for key in sorted(extra)[:5]])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
