"""Asks one model, outside any study: the battery, judges, a look inside.

Knows the order of the steps and where results are kept. Does not know teachers, students or roles.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doublebind.execution.executor import make_artefact
from doublebind.execution.store import Store, write_atomic
from doublebind.models.resolve import resolve_model
from doublebind.packs.load import load_pack
from doublebind.schema.errors import ConfigError
from doublebind.schema.model_source import Device
from doublebind.schema.study import DEFAULT_AUDITS, check_audit_name
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.stages.audits.followup.steps import investigate_model
from doublebind.stages.audits.gates import check_gates
from doublebind.stages.audits.judging.pairwise import judge_model
from doublebind.stages.audits.whitebox import measure_models
from doublebind.stages.evidence.intervals import rank_measures, summarise_endpoints
from doublebind.study.jobs import create_audit_job, read_scores
from doublebind.study.teachers import resolve_pack_name

if TYPE_CHECKING:
    pass


def audit(
    model: str,
    pack: str,
    *,
    audits: Sequence[str] = DEFAULT_AUDITS,
    baseline: str | None = None,
    out: str | Path | None = None,
    device: Device = "cpu",
    folder: str | Path = ".",
    store: str | Path | None = None,
) -> dict[str, Any]:
    """Ask one model every audit item of a pack.

    Args:
        model: Any model a study can name.
        pack: Whose items are asked.
        audits: Audits, as a study names them.
        baseline: Model that it is held to by the gates; `None` leaves them out.
        out: Folder for scores and transcripts.
        device: Where models run.
        folder: What relative paths are relative to.
        store: Where artefacts are kept.

    Returns:
        `model`, `pack` and `endpoints: [{name, role, value, interval, n, unscored}]`: the mean over
        items, in [0, 1], with a 95% interval over items (absent below two items). With a
        `baseline` also `gates`; see `GateResult`.

    Raises:
        ConfigError: If `audits` names one that does not exist.
    """
    kept = Store(store)
    where, source = (
        resolve_pack_name(pack, Path(folder)),
        resolve_model(model, relative_to=Path(folder)).with_device(device),
    )
    for name in audits:
        check_audit_name(name)
    held_to = (
        resolve_model(baseline, relative_to=Path(folder)).with_device(device)
        if baseline
        else source
    )
    settings: dict[str, Any] = {
        "pack_ref": where,
        "pack_hash": load_pack(where, relative_to=Path(folder)).sha256,
        "audits": resolve_audits(audits, Path(folder)),
        "dtype": "float32",
        "cache": kept.root / "converted",
    }
    made = make_artefact(kept, create_audit_job(source.sha256, source, held_to, **settings))
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        for name in ("scores.parquet", "transcripts.jsonl"):
            shutil.copyfile(made / name, Path(out) / name)
    rows = read_scores(made)
    found = {"model": model, "pack": pack, "endpoints": summarise_endpoints(rows)}
    if baseline:
        plain = make_artefact(kept, create_audit_job(held_to.sha256, held_to, held_to, **settings))
        gates = check_gates(rows, read_scores(plain)).model_dump(exclude_none=True)
        found |= {"baseline": baseline, "gates": gates}
    return found


def judge(
    model: str,
    pack: str,
    *,
    baseline: str,
    judges: Sequence[str],
    out: str | Path,
    rejudge: bool = False,
    device: Device = "cpu",
    folder: str | Path = ".",
    store: str | Path | None = None,
) -> dict[str, Any]:
    """Put a model's free answers, and a baseline's, before judges.

    Args:
        model: Any model a study can name.
        pack: Whose items are asked.
        baseline: The model it is compared with, such as M0.
        judges: `keys`, `local:MODEL` or `inspect:MODEL`; two or more where judgement matters.
        out: Folder for answers, judgements and scores.
        rejudge: Judge the answers frozen in `out` again instead of asking.
        device: Where models run.
        folder: What relative paths are relative to.
        store: Where converted models are kept.

    Returns:
        `model`, `baseline`, `pack`, `endpoints` as `audit` gives them, `judges`, `agreement`.

    Raises:
        ConfigError: If judges are missing or named twice, or frozen answers are missing, in the
            way, or another model's.
    """
    out, where = Path(out), resolve_pack_name(pack, Path(folder))
    if not judges or len(set(judges)) < len(judges):
        raise ConfigError("`--judge`: name one or more judges, each once")
    sources = [
        resolve_model(ref, relative_to=Path(folder)).with_device(device)
        for ref in (model, baseline)
    ]
    identity = {
        "model": sources[0].sha256,
        "baseline": sources[1].sha256,
        "pack": load_pack(where, relative_to=Path(folder)).sha256,
    }
    note = out / "answers.json"
    if rejudge != note.exists():
        remedy = "leave out --rejudge" if rejudge else "add --rejudge, or name another --out"
        raise ConfigError(f"{out}: {'has no' if rejudge else 'has'} frozen answers; {remedy}")
    if rejudge and json.loads(note.read_text(encoding="utf-8")) != identity:
        raise ConfigError(f"{out}: its answers are another model's, baseline's or pack's")
    out.mkdir(parents=True, exist_ok=True)
    result = judge_model(
        out,
        source=None if rejudge else sources[0],
        baseline=None if rejudge else sources[1],
        pack=where,
        judges=judges,
        device=device,
        cache=Store(store).root / "converted",
    )
    write_atomic(note, json.dumps(identity, indent=1))
    write_atomic(out / "judges.json", result.model_dump_json(indent=1))
    models = {"model": model, "baseline": baseline, "pack": pack}
    return models | {"endpoints": summarise_endpoints(read_scores(out)), **result.model_dump()}


def measure_whitebox(
    model: str,
    pack: str,
    *,
    baseline: str,
    references: Sequence[str],
    device: Device = "cpu",
    folder: str | Path = ".",
    store: str | Path | None = None,
) -> dict[str, Any]:
    """Look into a student's weights and activations, beside those of references' students.

    Args:
        model: The student.
        pack: Whose traits and texts are used.
        baseline: What all students were made from.
        references: Students of references, made by the same recipe.
        device: Where models run.
        folder: What relative paths are relative to.
        store: Where converted models are kept.

    Returns:
        `measures: [{name, value, median, n_at_or_above, p_value}]`, in which p is
        (1 + n_at_or_above) / (n + 1) of that measure alone: secondary, one of many.

    Raises:
        ConfigError: If no reference is named, or one twice.
    """
    if not references or len(set(references)) < len(references):
        raise ConfigError("`--reference`: name one or more references' students, each once")
    source, plain, *others = (
        resolve_model(ref, relative_to=Path(folder)).with_device(device)
        for ref in (model, baseline, *references)
    )
    own, *theirs = measure_models(
        [source, *others],
        plain,
        pack=resolve_pack_name(pack, Path(folder)),
        cache=Store(store).root / "converted",
    )
    return {"model": model, "n_references": len(theirs), "measures": rank_measures(own, theirs)}


def investigate(
    model: str,
    pack: str,
    *,
    baseline: str,
    budget: int = 20_000,
    planted_trait: str | None = None,
    investigator: str = "rules",
    device: Device = "cpu",
    folder: str | Path = ".",
    store: str | Path | None = None,
) -> dict[str, Any]:
    """Say in up to ten hypotheses what a model may hide.

    Args:
        model: Any model a study can name.
        pack: Whose items and prompts are used.
        baseline: Model it is compared with, such as M0.
        budget: Tokens that both may write together.
        planted_trait: Trait that was planted, to score the hypotheses; `None` where unknown.
        investigator: `rules`, which need no judge model, or `inspect:MODEL`.
        device: Where models run.
        folder: What relative paths are relative to.
        store: Where converted models are kept.

    Returns:
        `hypotheses: [{text, trait, words, z}]`, and with a planted trait also
        `against_key: {hit, rank, others}`.

    Raises:
        ConfigError: If the pack has no such trait, or there is no such investigator.
    """
    where = resolve_pack_name(pack, Path(folder))
    traits = [trait.name for trait in load_pack(where, relative_to=Path(folder)).traits]
    if planted_trait is not None and planted_trait not in traits:
        raise ConfigError(
            f"`--planted-trait`: {planted_trait}; the pack's traits are {', '.join(traits)}"
        )
    source, plain = (
        resolve_model(ref, relative_to=Path(folder)).with_device(device)
        for ref in (model, baseline)
    )
    cache = Store(store).root / "converted"
    found = investigate_model(
        source,
        plain,
        pack=where,
        budget=budget,
        planted_trait=planted_trait,
        cache=cache,
        investigator=investigator,
    )
    asked = {
        "model": model,
        "baseline": baseline,
        "pack": pack,
        "budget": budget,
        "by": investigator,
    }
    return asked | found
