"""Says what cannot be asked of models that are not in this process: a server's, or an engine's.

Knows teachers, recipes and baselines. Opens no connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from doublebind.models.resolve import MAX_SERVED_LOGPROBS
from doublebind.schema.errors import ConfigError
from doublebind.schema.model_source import ModelSource, ServerOptions
from doublebind.schema.recipe import DPO, SFT, LogitKD, OnPolicy, Recipe
from doublebind.schema.study import PanelSpec, Study
from doublebind.study.teachers import TeacherSource


def attach_server_options(
    found: TeacherSource, study: PanelSpec, student: ModelSource
) -> TeacherSource:
    """Return a served teacher with its limits, reader and declared shape; others as they are."""
    served = found.base.served
    if served is None or not isinstance(study, Study):
        return found
    shape = study.shape if found.label == study.suspect else {}
    told = served.model_copy(
        update={"options": study.served, "tokenizer_source": student, "shape": shape}
    )
    return found._replace(base=found.base.model_copy(update={"served": told}))


def check_served(found: Sequence[TeacherSource], study: PanelSpec) -> None:
    """Refuse what a study asks of a served teacher and no server can give.

    Raises:
        ConfigError: One line per problem.
    """
    behind = [t.label for t in found if t.base.served]
    problems = []
    if isinstance(study, Study) and study.shape and study.suspect not in behind:
        problems.append("`shape`: the suspect is at hand, its shape is measured; leave it out")
    if not behind:
        if problems:
            raise ConfigError(*problems)
        return
    who = behind[0]
    if any(t.base.served and t.spec for t in found):
        problems.append(f"{who}: a teacher cannot be built on a served model; name a folder")
    limits = study.served if isinstance(study, Study) else ServerOptions()
    refused = (_explain_refusal(recipe, who, limits) for recipe in study.recipes)
    problems += [f"recipe `{name}`: {why}" for name, why in refused if why]
    if "retrained" in study.baselines:
        problems.append(f"`baselines`: retrained tunes the teacher, and {who} is behind a server")
    if problems:
        raise ConfigError(*problems)


def _explain_refusal(recipe: Recipe, who: str, limits: ServerOptions) -> tuple[str, str]:
    """Return the recipe's name, and why it cannot learn from a served teacher, or nothing."""
    channel, why = recipe.channel, ""
    if recipe.prompts.suppress_tokens:
        return (
            recipe.name,
            f"`prompts.suppress_tokens`: {who} is behind a server, which bars nothing",
        )
    match channel:
        case SFT():
            pass
        case LogitKD():
            why = (
                f"logit_kd learns from the {channel.top_k} likeliest tokens at every position, and "
                f"{who} gives {MAX_SERVED_LOGPROBS} at most, as text; use `sft`"
            )
        case DPO():
            if channel.keep < 1:
                why = (
                    f"dpo with `keep` {channel.keep:g} chooses pairs by how likely the teacher "
                    f"finds M0's answers, and {who} does not say; set `keep: 1`"
                )
        case OnPolicy():
            if not limits.echo_logprobs:
                why = (
                    f"on_policy asks how likely the teacher finds the student's tokens; set "
                    f"`served.echo_logprobs: true` if {who} tells (/completions with `echo` and "
                    f"`logprobs`), or use `sft` or `dpo`"
                )
            elif recipe.prompts.temperature != 1:
                why = (
                    f"on_policy from scores of drawn tokens holds for tokens drawn at "
                    f"`temperature: 1`, not {recipe.prompts.temperature:g}"
                )
        case _:
            why = (
                f"{channel.kind} needs the teacher's weights, and {who} is behind a server; use "
                f"`sft`, `dpo` or, if it scores, `on_policy`"
            )
    return recipe.name, why


def check_engine(found: Sequence[TeacherSource], study: PanelSpec, student: ModelSource) -> None:
    """Refuse what an engine that holds M0 and LoRA adapters on it cannot hold or say.

    Raises:
        ConfigError: One line per problem.
    """
    engine = study.engine
    if engine is None:
        return
    problems = []
    if student.kind != "folder":
        problems.append("`engine`: vLLM holds M0 from a folder; save the model as one")
    for teacher in found:
        on_m0 = teacher.base.served or teacher.base.path == student.path
        whole = teacher.base.adapter is None and not teacher.base.served
        if teacher.spec:
            whole = teacher.spec.lora is None
        if not on_m0 or (whole and teacher.content_key != student.sha256):
            problems.append(
                f"{teacher.label}: vLLM holds one base, M0, and this teacher is no LoRA adapter on "
                f"it; name an adapter, or leave `engine` out"
            )
    for recipe in study.recipes:
        kind, top = recipe.channel.kind, getattr(recipe.channel, "top_k", 0)
        if kind == "prefix" or recipe.student or recipe.noise_init or not recipe.training.lora:
            problems.append(
                f"recipe `{recipe.name}`: vLLM holds one base, M0, and audits LoRA students of it "
                f"only; give it `training.lora`, or leave `engine` out"
            )
        if top > engine.max_logprobs:
            problems.append(
                f"recipe `{recipe.name}`: {kind} learns from the {top} likeliest tokens and vLLM "
                f"gives {engine.max_logprobs}; raise `engine.max_logprobs` (and start a server "
                f"with --max-logprobs {top}), or lower `top_k`"
            )
    if problems:
        raise ConfigError(*problems)


def collect_served_facts(found: Sequence[TeacherSource]) -> dict[str, Any]:
    """Return label -> URL, model and what the server says of it, for the served among `found`."""
    facts = ("url", "model", "declared")
    return {
        t.label: t.base.served.model_dump(mode="json", include=set(facts))
        for t in found
        if t.base.served
    }
