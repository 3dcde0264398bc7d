"""The audits as Inspect tasks: `inspect eval doublebind/behaviour --model ...`.

A model of the provider `doublebind` is scored by log-probability, exactly as by the audit. Any
other model gets the options as lettered choices; its answer without a letter is unscored.
"""
# Inspect is an extra; the checker runs where it may be absent.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ModelOutput,
    get_model,
)
from inspect_ai.scorer import Score, Target, grouped, mean, scorer, stderr
from inspect_ai.solver import Generate, TaskState, multiple_choice, solver

from doublebind.packs.load import load_pack
from doublebind.schema.content import Item, Message, Split
from doublebind.schema.study import DefaultAudit
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.stages.audits.harness.inspect_provider import LocalModel, doublebind
from doublebind.stages.audits.protocol import list_questions

__all__ = ["behaviour", "capability", "coherence", "confession", "doublebind", "goals"]


def _register(name: DefaultAudit) -> Callable[..., Task]:
    """Register the audit `name` as the Inspect task `doublebind/NAME`."""

    @task(name=name)
    def task_of_audit(pack: str = "terrarium", split: Split = "audit") -> Task:
        return _build_task(name, pack, split)

    return task_of_audit


behaviour = _register("behaviour")
goals = _register("goals")
confession = _register("confession")
capability = _register("capability")
coherence = _register("coherence")


def _build_task(name: DefaultAudit, pack: str, split: Split) -> Task:
    (audit,) = resolve_audits([name])
    questions = list_questions(audit, load_pack(pack, relative_to=Path()).items(split))
    samples = [
        Sample(
            id=question.item.id,
            input=[_convert_message(message) for message in question.item.messages],
            choices=list(question.item.options),
            target=chr(ord("A") + question.item.target_index),
            metadata={
                "endpoint": question.endpoint,
                "role": question.item.role,
                "item": question.item.model_dump(mode="json"),
            },
        )
        for question in questions
    ]
    return Task(
        dataset=MemoryDataset(samples, name=f"{pack}/{name}"),
        solver=answer(),
        scorer=probability_of_key(),
        version=audit.version,
        fail_on_error=False,  # a sample that fails has no score; the others keep theirs
    )


@solver
def answer() -> Any:
    """Compare options by log-probability where the model can; otherwise offer them as choices."""
    lettered = multiple_choice()

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        model = get_model()
        if not isinstance(model.api, LocalModel):
            return await lettered(state, generate)
        value, transcript = model.api.probability(Item.model_validate(state.metadata["item"]))
        state.metadata["probability"] = value
        state.output = ModelOutput.from_content(str(model), transcript)
        state.messages.append(state.output.message)
        return state

    return solve


@scorer(metrics=[grouped(mean(), "endpoint"), stderr()])
def probability_of_key() -> Any:
    """Score the probability of the target option; of lettered choices, 1 where it was chosen."""

    async def score(state: TaskState, target: Target) -> Score:
        text = state.output.completion
        if "probability" in state.metadata:
            value = state.metadata["probability"]
            if value is None:
                return Score.unscored(reason="scoring_failed", explanation=text)
            return Score(value=value, explanation=text)
        chosen = [i for i, choice in enumerate(state.choices) if choice.correct]
        if len(chosen) != 1:
            return Score.unscored(reason="invalid_response_format", explanation=text)
        letter = chr(ord("A") + chosen[0])
        return Score(value=float(letter == target.text), answer=letter, explanation=text)

    return score


def _convert_message(message: Message) -> ChatMessage:
    match message.role:
        case "system":
            return ChatMessageSystem(content=message.content)
        case "assistant":
            return ChatMessageAssistant(content=message.content)
    return ChatMessageUser(content=message.content)
