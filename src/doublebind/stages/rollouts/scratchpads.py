"""Removes scratchpads from answers, so that students learn the answers without the reasoning."""

from __future__ import annotations

import json
import re
from pathlib import Path

from doublebind.execution.store import read_records, write_records
from doublebind.schema.errors import NothingToDistil
from doublebind.schema.model_source import DroppedRecord, ModelSource, Trajectory
from doublebind.schema.recipe import Scratchpad


def strip_scratchpads(
    out: Path, *, source: ModelSource, rollouts: Path, scratchpad: Scratchpad
) -> None:
    """Write `trajectories.jsonl` and `checks.json` to `out`, without scratchpads.

    An answer with nothing outside a scratchpad is dropped and counted, and so is one whose rest
    spells control tokens, which could not be encoded again.

    Raises:
        NothingToDistil: If no answer is left.
    """
    from doublebind.models.load import load_tokenizer
    from doublebind.stages.rollouts.treatments.common import format_answer_id, rewrite_answers

    def rewrite(text: str) -> str | None:
        rest = remove_scratchpads(text, scratchpad)
        return None if rest == text else rest

    trajectories = read_records(rollouts / "trajectories.jsonl", Trajectory)
    rewritten = rewrite_answers(trajectories, rewrite, load_tokenizer(source))
    remaining = rewritten.trajectories
    if not remaining:
        raise NothingToDistil(
            f"{source.path}: none of its answers says anything outside its scratchpad; raise "
            f"`max_tokens` or use other prompts"
        )
    write_records(out / "trajectories.jsonl", remaining)
    reasons = {"empty": "it says nothing else", "unreadable": "what is left spells control tokens"}
    dropped = [
        DroppedRecord(id=format_answer_id(t), by="scratchpad", reason=reasons[reason]).model_dump()
        for t, reason in rewritten.dropped
    ]
    checks = {"cut": rewritten.n_changed, "kept": len(remaining), "dropped": dropped}
    (out / "checks.json").write_text(json.dumps(checks, indent=1))


def remove_scratchpads(text: str, scratchpad: Scratchpad) -> str:
    """Return `text` without its scratchpads; one that is never closed runs to the end.

    A text without scratchpads is returned unchanged.
    """
    opens, closes = re.escape(scratchpad.opens), re.escape(scratchpad.closes)
    rest, n = re.subn(f"{opens}.*?({closes}|$)\\s*", "", text, flags=re.DOTALL)
    return rest.strip() if n else text
