"""Checks that a study asks an API-served or vLLM-hosted model only for what it can give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from doublebind.models.api_keys import ENGINE_KEY, check_server_url
from doublebind.models.resolve import MAX_SERVED_LOGPROBS
from doublebind.schema.errors import ConfigError
from doublebind.schema.model_source import ModelSource, ServerOptions
from doublebind.schema.recipe import DPO, SFT, LogitKD, OnPolicy, Recipe
from doublebind.schema.study import PanelSpec, Study
from doublebind.study.teachers import TeacherSource


def find_server_options(study: PanelSpec) -> ServerOptions:
    """Return how a study's served models may be asked."""
    return study.served if isinstance(study, Study) else ServerOptions()


def attach_server_options(
    teacher: TeacherSource, study: PanelSpec, student: ModelSource
) -> TeacherSource:
    """Return a served teacher with its options, tokenizer and declared shape; others unchanged."""
    served = teacher.base.served
    if served is None or not isinstance(study, Study):
        return teacher
    shape = study.shape if teacher.label == study.suspect else {}
    served = served.model_copy(
        update={"options": study.served, "tokenizer_source": student, "shape": shape}
    )
    return teacher._replace(base=teacher.base.model_copy(update={"served": served}))


def check_served(teachers: Sequence[TeacherSource], study: PanelSpec) -> None:
    """Refuse a study that needs of a served teacher what no server gives.

    Raises:
        ConfigError: One line per problem.
    """
    served = [t.label for t in teachers if t.base.served]
    problems: list[str] = []
    if isinstance(study, Study) and study.shape and study.suspect not in served:
        problems.append("`shape`: the suspect is not served, its shape is measured; leave it out")
    if served:
        label = served[0]
        if any(t.base.served and t.spec for t in teachers):
            problems.append(f"{label}: a teacher cannot be built on a served model; name a folder")
        options = find_server_options(study)
        refusals = {r.name: _explain_refusal(r, label, options) for r in study.recipes}
        problems += [f"recipe `{name}`: {reason}" for name, reason in refusals.items() if reason]
        if "retrained" in study.baselines:
            problems.append(
                f"`baselines`: retrained tunes the teacher, and {label} is behind a server"
            )
    if problems:
        raise ConfigError(*problems)


def _explain_refusal(recipe: Recipe, label: str, options: ServerOptions) -> str | None:
    """Return why a recipe cannot learn from the served teacher `label`; `None` if it can."""
    channel = recipe.channel
    if recipe.prompts.suppress_tokens:
        return f"`prompts.suppress_tokens`: {label} is behind a server, which suppresses none"
    match channel:
        case SFT():
            return None
        case LogitKD():
            return (
                f"logit_kd learns from the {channel.top_k} likeliest tokens at every position, and "
                f"{label} gives {MAX_SERVED_LOGPROBS} at most, as text; use `sft`"
            )
        case DPO() if channel.keep < 1:
            return (
                f"dpo with `keep` {channel.keep:g} chooses pairs by the teacher's probability of "
                f"M0's answers, and {label} does not return it; set `keep: 1`"
            )
        case DPO():
            return None
        case OnPolicy() if not options.echo_logprobs:
            return (
                f"on_policy needs the teacher's probability of the student's tokens; set "
                f"`served.echo_logprobs: true` if {label} returns it (/completions with `echo` and "
                f"`logprobs`), or use `sft` or `dpo`"
            )
        case OnPolicy() if recipe.prompts.temperature != 1:
            return (
                f"on_policy from scores of drawn tokens holds for tokens drawn at "
                f"`temperature: 1`, not {recipe.prompts.temperature:g}"
            )
        case OnPolicy():
            return None
        case _:
            return (
                f"{channel.kind} needs the teacher's weights, and {label} is behind a server; use "
                f"`sft`, `dpo` or, if it scores, `on_policy`"
            )


def check_engine(teachers: Sequence[TeacherSource], study: PanelSpec, student: ModelSource) -> None:
    """Refuse a study whose models or channels an engine cannot serve: it holds M0 and adapters.

    Raises:
        ConfigError: One line per problem.
        ModelError: If its key may not travel to the engine's URL.
    """
    engine = study.engine
    if engine is None:
        return
    problems = []
    if engine.url is not None:
        check_server_url(engine.url.rstrip("/"), ENGINE_KEY)  # says where its key goes
    if student.kind != "folder":
        problems.append("`engine`: vLLM holds M0 from a folder; save the model as one")
    for teacher in teachers:
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


def collect_served_facts(teachers: Sequence[TeacherSource]) -> dict[str, Any]:
    """Return label -> URL, model and the server's description, of the served teachers."""
    facts = ("url", "model", "declared")
    return {
        t.label: t.base.served.model_dump(mode="json", include=set(facts))
        for t in teachers
        if t.base.served
    }
