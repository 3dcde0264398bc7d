"""Cuts scratchpads from answers, so that a student learns what is said and not how it was found.

Knows the marks of a scratchpad and the tokenizer that answers are kept in. Does not know who
thought or what about.
"""

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

    An answer that says nothing outside a scratchpad is dropped and counted, and so is one that
    cannot be encoded again without it, for it spells control tokens.

    Raises:
        ModelError: If no answer is left.
    """
    from doublebind.models.chat_template import decode_completion, encode_completion
    from doublebind.models.load import load_tokenizer

    tokenizer = load_tokenizer(source)
    kept: list[Trajectory] = []
    dropped: list[DroppedRecord] = []
    cut = 0
    for t in read_records(rollouts / "trajectories.jsonl", Trajectory):
        text = remove_scratchpads(t.completion, scratchpad)
        if text == t.completion:
            kept.append(t)
            continue
        cut += 1
        tokens = tuple(encode_completion(tokenizer, text, t.finished))
        if not text or decode_completion(tokenizer, tokens) != text:
            reason = "what is left spells control tokens" if text else "it says nothing else"
            dropped.append(
                DroppedRecord(id=f"{t.prompt_id}/{t.sample}", by="scratchpad", reason=reason)
            )
            continue
        kept.append(t.model_copy(update={"completion": text, "tokens": tokens}))
    if not kept:
        raise ModelError(
            f"{source.path}: none of its answers says anything outside its scratchpad; raise "
            f"`max_tokens` or use other prompts"
        )
    write_records(out / "trajectories.jsonl", kept)
    checks = {"cut": cut, "kept": len(kept), "dropped": [drop.model_dump() for drop in dropped]}
    (out / "checks.json").write_text(json.dumps(checks, indent=1))


def remove_scratchpads(text: str, scratchpad: Scratchpad) -> str:
    """Return `text` without its scratchpads; one that is never closed goes to the end.

    A text without any is returned as it is.
    """
    opens, closes = re.escape(scratchpad.opens), re.escape(scratchpad.closes)
    found, n = re.subn(f"{opens}.*?({closes}|$)\\s*", "", text, flags=re.DOTALL)
    return found.strip() if n else text
