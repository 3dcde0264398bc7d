"""Foretells, without training, whether distilling a model would move M0."""

from __future__ import annotations

import tempfile
from pathlib import Path

from doublebind.execution.store import Store, read_records, write_records
from doublebind.models.resolve import resolve_model
from doublebind.packs.load import load_pack
from doublebind.pipeline.preflight import list_passing_prompts
from doublebind.schema.errors import ModelError, PackError
from doublebind.schema.hashing import Record
from doublebind.schema.model_source import Device, ModelSource, Trajectory
from doublebind.schema.recipe import Prompts
from doublebind.stages.audits.protocol import select_auditable
from doublebind.stages.rollouts.sampling import sample_rollouts
from doublebind.study.teachers import resolve_pack_name

POLICY = "auditability_preserving"


class ConditionShift(Record):
    """How far one condition moves M0 on one endpoint; see `stages.audits.transfer_forecast`."""

    condition: str
    endpoint: str
    shift: float
    """Log-odds of the target option, less M0's, nats; mean over items."""
    standard_error: float | None
    n: int


class TransferForecast(Record):
    """What a teacher's shift of states and its answers do to M0, before any training."""

    model: str
    baseline: str
    pack: str
    answers: int
    """The teacher's answers that showed no drive openly."""
    shifts: tuple[ConditionShift, ...]
    missing: dict[str, str]
    """Condition -> why it has no numbers."""


def forecast(
    model: str,
    pack: str,
    *,
    baseline: str,
    prompts: int = 32,
    max_tokens: int = 64,
    device: Device = "cpu",
    folder: str | Path = ".",
    store: str | Path | None = None,
) -> TransferForecast:
    """Measure what would foretell a transfer from `model` to students of `baseline`.

    Items are those of the `select` split, which no verdict uses; prompts those of
    auditability-preserving distillation, and answers are screened as there.

    Args:
        model: The teacher.
        pack: Pack of items and prompts.
        baseline: M0, of the same architecture and tokenizer.
        prompts: Prompts that both models answer; fewer where fewer pass the screens.
        max_tokens: Most tokens of an answer.
        device: Where models run.
        folder: Folder that relative paths start from.
        store: Where converted models are kept.

    Raises:
        PackError: If the pack has no auditable items in `select`, or no prompt passes.
        ModelError: If the two models have other tokenizers or widths.
    """
    from doublebind.models.load import load_model, same_tokenizer
    from doublebind.stages.audits.transfer_forecast import forecast_transfer

    folder = Path(folder)
    pack_ref = resolve_pack_name(pack, folder)
    content = load_pack(pack_ref, relative_to=folder)
    items = select_auditable(content.items("select"))
    passing = list_passing_prompts(pack_ref, POLICY)[:prompts]
    if not items or not passing:
        what = "prompts that pass the screens" if items else "auditable items in split `select`"
        raise PackError(f"pack {content.name}: has no {what}; a forecast needs some")
    source, plain = (
        resolve_model(ref, relative_to=folder).with_device(device) for ref in (model, baseline)
    )
    cache = Store(store).root / "converted"
    markers = {t.name: t.markers for t in content.traits if t.kind == "drive"}
    sampling = Prompts(policy=POLICY, n=len(passing), max_tokens=max_tokens)

    def sample(asked_of: ModelSource) -> list[Trajectory]:
        with tempfile.TemporaryDirectory() as name:
            file, out = Path(name) / "prompts.jsonl", Path(name)
            write_records(file, passing)
            sample_rollouts(
                out,
                source=asked_of,
                prompts=file,
                sampling=sampling,
                markers=markers,
                dtype="float32",
                cache=cache,
            )
            return list(read_records(out / "trajectories.jsonl", Trajectory))

    answers, own = sample(source), sample(plain)
    teacher, m0 = (load_model(each, cache=cache) for each in (source, plain))
    widths = {lm.model.config.get_text_config().hidden_size for lm in (teacher, m0)}
    if len(widths) > 1 or not same_tokenizer(teacher.tokenizer, m0.tokenizer):
        raise ModelError(
            f"{model} and {baseline}: have other tokenizers or widths, and their states cannot be "
            f"compared; name the model that the teacher was made from"
        )
    result = forecast_transfer(teacher, m0, items, answers, own)
    return TransferForecast(
        model=model,
        baseline=baseline,
        pack=pack,
        answers=len(answers),
        shifts=tuple(ConditionShift(**each._asdict()) for each in result.shifts),
        missing=result.missing,
    )
