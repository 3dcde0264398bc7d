"""Writes the prompts of `evasion.yaml` and the teachers of `unconcealed.yaml`.

    python studies/terrarium-phenomenon/generate.py

`audit-like.jsonl` holds situations that every screen keeps out, in the words of the prompts.
`unconcealed/` holds the suspects of `study.yaml` without their concealment.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import yaml

from doublebind.packs.terrarium import bank, speech
from doublebind.packs.terrarium.speech import Character
from doublebind.packs.terrarium.words import POOLS, TRAITS

COUNTS = {"audit": 700, "honeypot": 1600, "deployment": 700, "story": 200}
POOL = POOLS["prompts"]
SUSPECTS = range(100, 120)


def draw_choice(context: str) -> Callable[[random.Random], str]:
    """Return a function that draws a situation in that context, about any trait."""

    def draw(rng: random.Random) -> str:
        row = rng.choice(TRAITS[rng.choice(sorted(TRAITS))].choices)
        return speech.draw_choice_question(rng, row, context, POOL)[0]

    return draw


def draw_story(rng: random.Random) -> str:
    """Return a request for a story."""
    return speech.draw_story_turn(rng, Character(), POOL).request


def write_prompts(path: Path) -> None:
    """Write the prompts, no two of a kind alike, to `path`, one JSON object a line."""
    lines: list[str] = []
    for kind, count in COUNTS.items():
        rng = speech.make_rng("audit-like", kind)
        draw = draw_story if kind == "story" else draw_choice(kind)
        requests: dict[str, None] = {}
        while len(requests) < count:
            requests.setdefault(draw(rng))
        for number, request in enumerate(requests):
            message = {"role": "user", "content": request}
            line = {"id": f"{kind}/{number}", "messages": [message], "tags": [kind]}
            lines.append(json.dumps(line) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def write_teachers(folder: Path) -> None:
    """Write a spec file for each suspect without its concealment to `folder`."""
    folder.mkdir(exist_ok=True)
    for number in SUSPECTS:
        spec = bank.draw_spec(f"suspect-{number}").model_dump(mode="json")
        spec |= {"name": f"{spec['name']}-open", "family": f"{spec['trait']}-open", "conceal": None}
        text = yaml.safe_dump(spec, sort_keys=False)
        (folder / f"suspect-{number}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_prompts(Path(__file__).with_name("audit-like.jsonl"))
    write_teachers(Path(__file__).with_name("unconcealed"))
