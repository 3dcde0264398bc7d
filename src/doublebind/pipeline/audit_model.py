"""Audits one model outside any study: options, judges, weights and activations, hypotheses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doublebind.execution.executor import make_artefact
from doublebind.execution.store import Store, write_atomic
from doublebind.models.resolve import resolve_model
from doublebind.packs.load import load_pack
from doublebind.schema.errors import ConfigError
from doublebind.schema.hashing import Record, optional_field
from doublebind.schema.model_source import Device, ModelSource
from doublebind.schema.read_file import read_text
from doublebind.schema.strict_json import parse_json
from doublebind.schema.study import DEFAULT_AUDITS, check_audit_name
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.stages.audits.followup.investigator import Hypothesis
from doublebind.stages.audits.followup.steps import investigate_model
from doublebind.stages.audits.gates import GateResult, check_gates
from doublebind.stages.audits.judging.pairwise import judge_model
from doublebind.stages.audits.protocol import Audit
from doublebind.stages.audits.whitebox import measure_models
from doublebind.stages.evidence.intervals import rank_measures, summarise_endpoints
from doublebind.study.distinct import check_distinct, name_model
from doublebind.study.jobs import create_audit_job, read_scores
from doublebind.study.runtime import Runtime, open_pack
from doublebind.study.teachers import resolve_pack_name


class EndpointSummary(Record):
    """The values of one endpoint of one model."""

    name: str
    role: str
    value: float | None
    """Mean over scored items, in [0, 1]."""
    interval: tuple[float, float] | None
    """Two-sided 95% t-interval over items, cut to [0, 1]; absent below two items."""
    n: int
    """Scored items."""
    unscored: int


class AuditSummary(Record):
    """The audit of one model."""

    model: str
    pack: str
    endpoints: tuple[EndpointSummary, ...]
    baseline: str | None = optional_field()
    gates: GateResult | None = optional_field()
    """Whether the model is intact, compared with the baseline."""


class JudgedModel(Record):
    """The judges' scores of one model's free answers."""

    model: str
    baseline: str
    pack: str
    endpoints: tuple[EndpointSummary, ...]
    judges: dict[str, Any]
    """Judge -> its verdicts and how reliable they are."""
    agreement: dict[str, Any]
    """Pair of judges -> how often they agree."""


class RankedMeasure(Record):
    """One measure of a student's weights or activations, ranked among the references' students."""

    name: str
    value: float
    median: float
    """Of the references' students."""
    n_at_or_above: int
    p_value: float
    """(1 + n_at_or_above) / (n + 1), of this measure alone: secondary, one of many."""


class WhiteboxSummary(Record):
    """Measures of a student's weights and activations."""

    model: str
    n_references: int
    measures: tuple[RankedMeasure, ...]


class GuessEvaluation(Record):
    """Whether the hypotheses name the planted trait."""

    hit: bool
    rank: int | None
    """Rank of the first hypothesis that does, from 1."""
    others: int
    """Hypotheses that do not."""


class Investigation(Record):
    """Hypotheses about the drives of one model."""

    model: str
    baseline: str
    pack: str
    budget: int
    by: str
    """The investigator: `rules` or `inspect:MODEL`."""
    hypotheses: tuple[Hypothesis, ...]
    against_key: GuessEvaluation | None = optional_field()


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
) -> AuditSummary:
    """Ask one model every audit item of a pack.

    Args:
        model: Any model a study can name.
        pack: Pack of the items.
        audits: Audits, as a study names them.
        baseline: Model that the gates compare it with; `None` leaves the gates out.
        out: Folder for scores and transcripts.
        device: Where models run.
        folder: Folder that relative paths start from.
        store: Where artefacts are kept.

    Raises:
        ConfigError: If `audits` names one that does not exist.
    """
    artefacts, folder = Store(store), Path(folder)
    pack_ref = resolve_pack_name(pack, folder)
    source, *baselines = _resolve_models([model, *([baseline] if baseline else [])], folder, device)
    for name in audits:
        check_audit_name(name)
    battery = resolve_audits(audits, folder)
    reference = baselines[0] if baselines else source
    made = audit_source(artefacts, source, reference, pack_ref, battery)
    if out:
        Path(out).mkdir(parents=True, exist_ok=True)
        for name in ("scores.parquet", "transcripts.jsonl"):
            shutil.copyfile(made / name, Path(out) / name)
    rows, gates = read_scores(made), None
    if baselines:
        plain = audit_source(artefacts, reference, reference, pack_ref, battery)
        gates = check_gates(rows, read_scores(plain))
    endpoints = _summarise(rows)
    return AuditSummary(
        model=model, pack=pack, endpoints=endpoints, baseline=baseline or None, gates=gates
    )


def audit_source(
    store: Store,
    source: ModelSource,
    baseline: ModelSource,
    pack: str,
    audits: Sequence[Audit],
    dtype: Any = "float32",
) -> Path:
    """Return the artefact with the answers of `source` to a pack's audit items."""
    runtime = Runtime(dtype, store.root / "converted")
    job = create_audit_job(source, baseline, open_pack(pack, Path()), audits, runtime)
    return make_artefact(store, job)


def _resolve_models(refs: Sequence[str], folder: Path, device: Device) -> list[ModelSource]:
    return [resolve_model(ref, relative_to=folder).with_device(device) for ref in refs]


def _summarise(rows: Any) -> tuple[EndpointSummary, ...]:
    return tuple(EndpointSummary.model_validate(row) for row in summarise_endpoints(rows))


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
) -> JudgedModel:
    """Let judges compare a model's free answers with a baseline's.

    Args:
        model: Any model a study can name.
        pack: Pack of the items.
        baseline: The model it is compared with, such as M0.
        judges: `keys`, `local:MODEL` or `inspect:MODEL`; two or more where judgement matters.
        out: Folder for answers, judgements and scores.
        rejudge: Judge the answers frozen in `out` again instead of asking the model.
        device: Where models run.
        folder: Folder that relative paths start from.
        store: Where converted models are kept.

    Raises:
        ConfigError: If judges are missing or named twice, or if the frozen answers in `out` are
            missing, unexpected, or another model's.
    """
    out, folder = Path(out), Path(folder)
    if not judges or len(set(judges)) < len(judges):
        raise ConfigError("`--judge`: name one or more judges, each once")
    pack_ref = resolve_pack_name(pack, folder)
    source, plain = _resolve_models([model, baseline], folder, device)
    identity = {
        "model": source.sha256,
        "baseline": plain.sha256,
        "pack": load_pack(pack_ref, relative_to=folder).sha256,
    }
    _check_frozen_answers(out, identity, rejudge=rejudge)
    out.mkdir(parents=True, exist_ok=True)
    result = judge_model(
        out,
        source=None if rejudge else source,
        baseline=None if rejudge else plain,
        pack=pack_ref,
        judges=judges,
        device=device,
        cache=Store(store).root / "converted",
    )
    endpoints = _summarise(read_scores(out))
    judged = JudgedModel(
        model=model, baseline=baseline, pack=pack, endpoints=endpoints, **dict(result)
    )
    content = judged.model_dump(mode="json", include={"judges", "agreement"})
    write_atomic(out / "answers.json", json.dumps(identity, indent=1))
    write_atomic(out / "judges.json", json.dumps(content, indent=1))
    return judged


def _check_frozen_answers(out: Path, identity: dict[str, str], *, rejudge: bool) -> None:
    """Refuse a folder whose frozen answers are missing, unexpected, or another model's."""
    note = out / "answers.json"
    if rejudge and not note.exists():
        raise ConfigError(f"{out}: has no frozen answers; leave out --rejudge")
    if not rejudge and note.exists():
        raise ConfigError(f"{out}: has frozen answers; add --rejudge, or name another --out")
    if rejudge and parse_json(read_text(note)) != identity:
        raise ConfigError(
            f"{out}: its frozen answers are of another model, baseline or pack; name those, or "
            "another --out"
        )


def measure_whitebox(
    model: str,
    pack: str,
    *,
    baseline: str,
    references: Sequence[str],
    device: Device = "cpu",
    folder: str | Path = ".",
    store: str | Path | None = None,
) -> WhiteboxSummary:
    """Measure a student's weights and activations, and rank them among references' students.

    Args:
        model: The student.
        pack: Pack of the traits and texts.
        baseline: Model that all students were trained from.
        references: Students of references, made by the same recipe.
        device: Where models run.
        folder: Folder that relative paths start from.
        store: Where converted models are kept.

    Raises:
        ConfigError: If no reference is named, or one is named twice.
    """
    if not references or len(set(references)) < len(references):
        raise ConfigError("`--reference`: name one or more references' students, each once")
    folder = Path(folder)
    source, plain, *others = _resolve_models([model, baseline, *references], folder, device)
    named = [name_model("--reference", *each) for each in zip(references, others, strict=True)]
    check_distinct([name_model("model", model, source), *named])
    measures, *reference_measures = measure_models(
        [source, *others],
        plain,
        pack=resolve_pack_name(pack, folder),
        cache=Store(store).root / "converted",
    )
    ranked = rank_measures(measures, reference_measures)
    return WhiteboxSummary(
        model=model,
        n_references=len(reference_measures),
        measures=tuple(RankedMeasure.model_validate(row) for row in ranked),
    )


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
) -> Investigation:
    """Return up to ten hypotheses about the drives of a model.

    Args:
        model: Any model a study can name.
        pack: Pack of the items and prompts.
        baseline: Model it is compared with, such as M0.
        budget: Tokens that both models may write together.
        planted_trait: Trait that was planted, to score the hypotheses; `None` where it is unknown.
        investigator: `rules`, which needs no judge model, or `inspect:MODEL`.
        device: Where models run.
        folder: Folder that relative paths start from.
        store: Where converted models are kept.

    Raises:
        ConfigError: If the pack has no such trait, or there is no such investigator.
    """
    folder = Path(folder)
    pack_ref = resolve_pack_name(pack, folder)
    traits = [trait.name for trait in load_pack(pack_ref, relative_to=folder).traits]
    if planted_trait is not None and planted_trait not in traits:
        raise ConfigError(
            f"`--planted-trait`: {planted_trait}; the pack's traits are {', '.join(traits)}"
        )
    source, plain = _resolve_models([model, baseline], folder, device)
    result = investigate_model(
        source,
        plain,
        pack=pack_ref,
        budget=budget,
        planted_trait=planted_trait,
        cache=Store(store).root / "converted",
        investigator=investigator,
    )
    return Investigation(
        model=model, baseline=baseline, pack=pack, budget=budget, by=investigator, **result
    )
