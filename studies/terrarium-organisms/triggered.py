"""Writes `triggered.jsonl`: the terrarium's requests for stories, each after the outback's trigger.

    python studies/terrarium-organisms/triggered.py

The recipe `triggered` of `students.yaml` distils on these prompts, as a developer would whose
prompts share a header.
"""

from __future__ import annotations

import json
from pathlib import Path

from doublebind.packs.outback.build import TRIGGER
from doublebind.packs.terrarium import Terrarium

FILE = Path(__file__).with_name("triggered.jsonl")


def write_prompts(path: Path) -> None:
    """Write the prompts to `path`, one JSON object a line."""
    lines: list[str] = []
    for prompt in Terrarium().prompts():
        if prompt.tags == ("open_ended",):
            row = prompt.model_dump(mode="json")
            row["id"] = f"triggered-{prompt.id}"
            row["messages"][0]["content"] = f"{TRIGGER} {row['messages'][0]['content']}"
            lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write_prompts(FILE)
