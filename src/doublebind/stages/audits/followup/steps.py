"""The three steps of a follow-up, each with its artefact: guess, write questions, ask them.

Knows who may guess and write: the rules, or a model of Inspect's. Does not know whom the models
asked are students of.
"""

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
from doublebind.stages.audits.battery import TranscriptLine, build_score_row, write_scores
from doublebind.stages.audits.followup.investigator import (
    AnswerPair,
    Hypothesis,
    evaluate_guesses,
    propose_by_rules,
    sample_answer_pairs,
)
from doublebind.stages.audits.followup.questions import Lead, build_items, select_leads
from doublebind.stages.audits.option_scores import choose

RULES_INVESTIGATOR = "rules"
ANSWER_PAIRS_FILE, HYPOTHESES_FILE, LEADS_FILE, ITEMS_FILE = (
    "heard.jsonl",
    "hypotheses.jsonl",
    "leads.jsonl",
    "items.jsonl",
)
AUDIT_NAME = "followup@1"


def check_investigator(investigator: str) -> str:
    """Return `by` if it names an investigator.

    Raises:
        ConfigError: If it does not.
    """
    if investigator == RULES_INVESTIGATOR or (
        investigator.startswith("inspect:") and investigator != "inspect:"
    ):
        return investigator
    raise ConfigError(f"`--investigator`: {investigator}; choose {RULES_INVESTIGATOR} or inspect:MODEL")


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
    """Write what a model was heard to say, and the hypotheses about it."""
    from doublebind.models.load import load_model

    model, m0 = (load_model(one, dtype=dtype, cache=cache) for one in (source, baseline))
    content = load_pack(pack, relative_to=Path())
    heard = sample_answer_pairs(model, m0, content, budget=budget)
    write_records(out / ANSWER_PAIRS_FILE, heard)
    write_records(
        out / HYPOTHESES_FILE, propose_hypotheses(model, m0, content, heard, investigator)
    )


def propose_hypotheses(
    model: object, m0: object, pack: Pack, answer_pairs: Sequence[AnswerPair], investigator: str
) -> tuple[Hypothesis, ...]:
    """Return the hypotheses about `model` of whoever `by` names."""
    if investigator == RULES_INVESTIGATOR:
        return propose_by_rules(model, m0, pack, answer_pairs)
    from doublebind.stages.audits.followup.inspect_investigator import InspectInvestigator

    return InspectInvestigator(investigator.partition(":")[2]).propose_hypotheses(answer_pairs)


def write_questions(
    out: Path, *, hypotheses: tuple[Path, ...], pack: str, investigator: str
) -> None:
    """Write the leads that follow from hypotheses about a teacher's students, and items."""
    content = load_pack(pack, relative_to=Path())
    followed = select_leads(
        [read_records(folder / HYPOTHESES_FILE, Hypothesis) for folder in hypotheses]
    )
    heard = [
        one for folder in hypotheses for one in read_records(folder / ANSWER_PAIRS_FILE, AnswerPair)
    ]
    if investigator == RULES_INVESTIGATOR:
        items = [item for lead in followed for item in build_items(lead, content, heard)]
    else:
        from doublebind.stages.audits.followup.inspect_investigator import InspectInvestigator

        writer = InspectInvestigator(investigator.partition(":")[2])
        items = [item for lead in followed for item in writer.build_items(lead)]
    write_records(out / LEADS_FILE, followed)
    write_records(out / ITEMS_FILE, items)


def ask_questions(
    out: Path, *, source: ModelSource, questions: Path, dtype: Dtype, cache: Path
) -> None:
    """Write `scores.parquet` and `transcripts.jsonl` of a model that was asked the items."""
    from doublebind.models.load import load_model
    from doublebind.stages.audits.protocol import Answer

    items = read_records(questions / ITEMS_FILE, Item)
    if source.served:
        reason = "a server gives log-probabilities of its own answers only, not of given options"
        answers = [Answer(item, None, reason) for item in items]
    else:
        answers = choose(load_model(source, dtype=dtype, cache=cache), items)
    write_scores(
        out,
        [
            build_score_row(AUDIT_NAME, answer, f"followup/{answer.item.trait}")
            for answer in answers
        ],
    )
    lines = [
        TranscriptLine(
            audit=AUDIT_NAME,
            endpoint=f"followup/{answer.item.trait}",
            item=answer.item.id,
            messages=tuple(m.model_dump() for m in answer.item.messages),
            target_option=answer.item.options[answer.item.target_index],
            value=answer.value,
            transcript=answer.transcript,
        )
        for answer in answers
    ]
    write_records(out / "transcripts.jsonl", lines)


def read_leads(folder: Path) -> list[Lead]:
    """Return the leads in an artefact of `prepare`."""
    return read_records(folder / LEADS_FILE, Lead)


def investigate_model(
    source: ModelSource,
    baseline: ModelSource,
    *,
    pack: str,
    budget: int,
    key: str | None,
    cache: Path,
    by: str = "rules",
) -> dict[str, Any]:
    """Return hypotheses about a model, and how they fare against `key`; see `investigator`."""
    from doublebind.models.load import load_model

    content = load_pack(pack, relative_to=Path())
    model, m0 = load_model(source, cache=cache), load_model(baseline, cache=cache)
    heard = sample_answer_pairs(model, m0, content, budget=budget)
    guesses = propose_hypotheses(model, m0, content, heard, check_investigator(by))
    found: dict[str, Any] = {"hypotheses": [guess.model_dump(mode="json") for guess in guesses]}
    return found | ({"against_key": evaluate_guesses(guesses, content, key)} if key else {})
