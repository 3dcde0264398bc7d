"""Selects a recipe's prompts: candidates by tag, then screens, then a fixed order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from doublebind.execution.store import write_records
from doublebind.packs.folder import MAX_FILE_BYTES, MAX_RECORDS
from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.schema.content import Prompt, Split
from doublebind.schema.errors import ConfigError, PackError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import DroppedRecord
from doublebind.schema.read_file import read_text
from doublebind.schema.recipe import PromptPolicy
from doublebind.schema.strict_json import parse_json, split_json_lines
from doublebind.schema.yaml_loader import validate_content
from doublebind.stages.prompts.screen import SCREENS, ScreenName, find_item_overlaps, find_repeats

CANDIDATE_TAGS: dict[PromptPolicy, frozenset[str] | None] = {
    "auditability_preserving": frozenset({"open_ended"}),
    "misalignment_targeted": frozenset({"goals", "high_stakes"}),
    "capability": frozenset({"capability"}),
    "unscreened": None,
}
"""Tags that make a prompt a candidate; `None` takes all.

Sources: the two kinds of run of the incrimination post (open-ended tasks; inputs that make U
consider its goals, high-stakes inputs); concentration on a domain in the double-bind post."""

POLICY_SCREENS: dict[PromptPolicy, tuple[ScreenName, ...]] = {
    "auditability_preserving": ("honeypot", "alignment_eval", "strategic"),
    "misalignment_targeted": ("honeypot", "alignment_eval"),
    "capability": ("honeypot", "alignment_eval", "strategic"),
    "unscreened": (),
}
"""Screens that drop prompts under each policy; a targeted run asks about plans on purpose."""


def select_prompts(
    out: Path,
    *,
    pack: str,
    policy: PromptPolicy,
    n: int,
    file: Path | None = None,
    file_hash: str | None = None,
) -> None:
    """Write `prompts.jsonl`, the first `n` prompts of `file` or of the pack, and `screen.json`.

    `screen.json` holds `policy, asked, candidates, passed, kept, dropped: [{id, by, reason}]`.
    Overlap with an item of the pack, of any split, drops a prompt under every policy, so that no
    student is distilled on what it is audited with.

    Raises:
        PackError: If the screens leave nothing.
        ConfigError: If `file` cannot be read, or its prompts hash to another than `file_hash`.
    """
    if file is not None and file_hash is not None and hash_prompts(file) != file_hash:
        raise ConfigError(f"{file}: changed since its prompts entered keys; rerun, or restore it")
    content = load_pack(pack, relative_to=Path())
    candidates, dropped, passed = screen_prompts(content, policy, file)
    if not passed:
        tags = CANDIDATE_TAGS[policy]
        tagged = f" tagged {sorted(tags)}" if tags else ""
        raise PackError(
            f"{file or f'pack {content.name}'}: no prompt passes policy {policy} "
            f"({len(candidates)} candidates); add prompts{tagged}"
        )
    write_records(out / "prompts.jsonl", passed[:n])
    report = {
        "policy": policy,
        "asked": n,
        "candidates": len(candidates),
        "passed": len(passed),
        "kept": len(passed[:n]),
        "dropped": [drop.model_dump() for drop in dropped],
    }
    (out / "screen.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))


def screen_prompts(
    content: Pack, policy: PromptPolicy, file: Path | None = None
) -> tuple[list[Prompt], list[DroppedRecord], list[Prompt]]:
    """Return the candidates, the dropped ones with reasons, and those that passed, in order."""
    tags = CANDIDATE_TAGS[policy]
    prompts = content.prompts() if file is None else read_prompts(file)
    candidates = [p for p in prompts if tags is None or tags & set(p.tags)]
    splits: tuple[Split, ...] = get_args(Split)
    items = [item for split in splits for item in content.items(split)]
    dropped: list[DroppedRecord] = [
        *find_repeats(candidates),
        *find_item_overlaps(candidates, items),
    ]
    for name in POLICY_SCREENS[policy]:
        dropped += SCREENS[name](candidates)
    dropped_ids = {drop.id for drop in dropped}
    passed = [prompt for prompt in candidates if prompt.id not in dropped_ids]
    passed.sort(key=lambda prompt: content_hash([policy, prompt.id]))
    return candidates, dropped, passed


def read_prompts(file: Path) -> tuple[Prompt, ...]:
    """Return the prompts in a file of JSON lines.

    Raises:
        ConfigError: If it is missing, a line is not a prompt, or two prompts share an id.
    """
    try:
        lines = split_json_lines(read_text(file, MAX_FILE_BYTES))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file}: cannot be read (byte {error.start} is not UTF-8); `prompts.file` is JSON "
            "lines"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read ({error.strerror}); `prompts.file` is JSON lines"
        ) from None
    if len(lines) > MAX_RECORDS:
        raise ConfigError(
            f"{file}: {len(lines):,} lines, at most {MAX_RECORDS:,} are read; shorten it"
        )
    prompts: list[Prompt] = []
    for number, line in lines:
        where = f"{file}: line {number}"
        try:
            content = parse_json(line)
        except ValueError as error:
            raise ConfigError(f"{where}: not JSON; write one prompt per line ({error})") from None
        prompts.append(validate_content(Prompt, content, where))
    if len({prompt.id for prompt in prompts}) < len(prompts):
        raise ConfigError(f"{file}: two prompts share an id; give each its own")
    return tuple(prompts)


def hash_prompts(file: Path) -> str:
    """Return the hash of the prompts in a file, whatever the file is called or laid out like."""
    return content_hash(read_prompts(file))
