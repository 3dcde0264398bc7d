"""The steps of a follow-up, each with its artefact: hypotheses, questions, answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doublebind.execution.store import read_records, write_records
from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.schema.content import Item
from doublebind.schema.errors import ConfigError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Dtype
from doublebind.stages.audits.battery import SERVED_REASON, AuditedAnswer, write_answers
from doublebind.stages.audits.followup.investigator import (
    AnswerPair,
    Hypothesis,
    evaluate_guesses,
    propose_by_rules,
    sample_answer_pairs,
)
from doublebind.stages.audits.followup.questions import Lead, build_items, select_leads
from doublebind.stages.audits.option_scores import choose
from doublebind.stages.audits.protocol import Answer

RULES_INVESTIGATOR = "rules"
ANSWER_PAIRS_FILE = "heard.jsonl"
HYPOTHESES_FILE = "hypotheses.jsonl"
LEADS_FILE = "leads.jsonl"
ITEMS_FILE = "items.jsonl"
AUDIT_NAME = "followup@1"


def check_investigator(investigator: str) -> str:
    """Return `investigator` if it names one.

    Raises:
        ConfigError: If it does not.
    """
    if investigator == RULES_INVESTIGATOR or (
        investigator.startswith("inspect:") and investigator != "inspect:"
    ):
        return investigator
    raise ConfigError(
        f"`--investigator`: {investigator}; choose {RULES_INVESTIGATOR} or inspect:MODEL"
    )


def write_hypotheses(
    out: Path,
    *,
    source: ModelSource,
    baseline: ModelSource,
    pack: str,
    investigator: str,
    budget: int,
    dtype: Dtype,
    cache: Path,
) -> None:
    """Write free answers of a model and M0, and the hypotheses about the model."""
    from doublebind.models.load import load_model

    model, m0 = (load_model(each, dtype=dtype, cache=cache) for each in (source, baseline))
    content = load_pack(pack, relative_to=Path())
    answer_pairs = sample_answer_pairs(model, m0, content, budget=budget)
    hypotheses = propose_hypotheses(model, m0, content, answer_pairs, investigator)
    write_records(out / ANSWER_PAIRS_FILE, answer_pairs)
    write_records(out / HYPOTHESES_FILE, hypotheses)


def propose_hypotheses(
    model: object, m0: object, pack: Pack, answer_pairs: Sequence[AnswerPair], investigator: str
) -> tuple[Hypothesis, ...]:
    """Return the hypotheses of `investigator` about `model`."""
    if investigator == RULES_INVESTIGATOR:
        return propose_by_rules(model, m0, pack, answer_pairs)
    from doublebind.stages.audits.followup.inspect_investigator import InspectInvestigator

    return InspectInvestigator(investigator.partition(":")[2]).propose_hypotheses(answer_pairs)


def write_questions(
    out: Path, *, hypotheses: tuple[Path, ...], pack: str, investigator: str
) -> None:
    """Write the leads of hypotheses about a teacher's students, and items about them."""
    leads = select_leads(
        [read_records(folder / HYPOTHESES_FILE, Hypothesis) for folder in hypotheses]
    )
    if investigator == RULES_INVESTIGATOR:
        content = load_pack(pack, relative_to=Path())
        answer_pairs = [
            pair
            for folder in hypotheses
            for pair in read_records(folder / ANSWER_PAIRS_FILE, AnswerPair)
        ]
        items = [item for lead in leads for item in build_items(lead, content, answer_pairs)]
    else:
        from doublebind.stages.audits.followup.inspect_investigator import InspectInvestigator

        writer = InspectInvestigator(investigator.partition(":")[2])
        items = [item for lead in leads for item in writer.build_items(lead)]
    write_records(out / LEADS_FILE, leads)
    write_records(out / ITEMS_FILE, items)


def ask_questions(
    out: Path, *, source: ModelSource, questions: Path, dtype: Dtype, cache: Path
) -> None:
    """Write `scores.parquet` and `transcripts.jsonl` of a model's answers to the items."""
    from doublebind.models.load import load_model

    items = read_records(questions / ITEMS_FILE, Item)
    if source.served:
        answers = [Answer(item, None, SERVED_REASON) for item in items]
    else:
        answers = choose(load_model(source, dtype=dtype, cache=cache), items)
    write_answers(out, [AuditedAnswer(AUDIT_NAME, f"followup/{a.item.trait}", a) for a in answers])


def read_leads(folder: Path) -> list[Lead]:
    """Return the leads in an artefact of `write_questions`."""
    return read_records(folder / LEADS_FILE, Lead)


def investigate_model(
    source: ModelSource,
    baseline: ModelSource,
    *,
    pack: str,
    budget: int,
    planted_trait: str | None,
    cache: Path,
    investigator: str = RULES_INVESTIGATOR,
) -> dict[str, Any]:
    """Return `hypotheses` about a model and, given a `planted_trait`, `against_key`."""
    from doublebind.models.load import load_model

    content = load_pack(pack, relative_to=Path())
    model, m0 = load_model(source, cache=cache), load_model(baseline, cache=cache)
    answer_pairs = sample_answer_pairs(model, m0, content, budget=budget)
    guesses = propose_hypotheses(model, m0, content, answer_pairs, check_investigator(investigator))
    result: dict[str, Any] = {"hypotheses": [guess.model_dump(mode="json") for guess in guesses]}
    return result | (
        {"against_key": evaluate_guesses(guesses, content, planted_trait)} if planted_trait else {}
    )
