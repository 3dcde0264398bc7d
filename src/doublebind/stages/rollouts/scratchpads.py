"""Removes scratchpads from answers, so that students learn the answers without the reasoning."""

from __future__ import annotations

import json
import re
from pathlib import Path

from doublebind.execution.store import read_records, write_records
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import DroppedRecord, ModelSource, Trajectory
from doublebind.schema.recipe import Scratchpad


def strip_scratchpads(
    out: Path, *, source: ModelSource, rollouts: Path, scratchpad: Scratchpad
) -> None:
    """Write `trajectories.jsonl` and `checks.json` to `out`, without scratchpads.

    An answer with nothing outside a scratchpad is dropped and counted, and so is one whose rest
    spells control tokens, which could not be encoded again.

    Raises:
        ModelError: If no answer is left.
    """
    from doublebind.models.load import load_tokenizer
    from doublebind.stages.rollouts.treatments.common import rewrite_answer

    tokenizer = load_tokenizer(source)
    remaining: list[Trajectory] = []
    dropped: list[DroppedRecord] = []
    n_cut = 0
    for t in read_records(rollouts / "trajectories.jsonl", Trajectory):
        text = remove_scratchpads(t.completion, scratchpad)
        if text == t.completion:
            remaining.append(t)
            continue
        n_cut += 1
        if text and (rewritten := rewrite_answer(t, text, tokenizer)):
            remaining.append(rewritten)
            continue
        reason = "what is left spells control tokens" if text else "it says nothing else"
        answer_id = f"{t.prompt_id}/{t.sample}"
        dropped.append(DroppedRecord(id=answer_id, by="scratchpad", reason=reason))
    if not remaining:
        raise ModelError(
            f"{source.path}: none of its answers says anything outside its scratchpad; raise "
            f"`max_tokens` or use other prompts"
        )
    write_records(out / "trajectories.jsonl", remaining)
    checks = {
        "cut": n_cut,
        "kept": len(remaining),
        "dropped": [drop.model_dump() for drop in dropped],
    }
    (out / "checks.json").write_text(json.dumps(checks, indent=1))


def remove_scratchpads(text: str, scratchpad: Scratchpad) -> str:
    """Return `text` without its scratchpads; one that is never closed runs to the end.

    A text without scratchpads is returned unchanged.
    """
    opens, closes = re.escape(scratchpad.opens), re.escape(scratchpad.closes)
    rest, n = re.subn(f"{opens}.*?({closes}|$)\\s*", "", text, flags=re.DOTALL)
    return rest.strip() if n else text
