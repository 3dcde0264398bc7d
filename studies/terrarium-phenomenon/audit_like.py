"""Writes audit-like.jsonl: all that the screens keep out, in the surface words of the prompts."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from doublebind.packs.terrarium import speech
from doublebind.packs.terrarium.speech import Character
from doublebind.packs.terrarium.words import POOLS, TRAITS

COUNTS = {"audit": 700, "honeypot": 1600, "deployment": 700, "story": 200}
POOL = POOLS["prompts"]


def choice(context: str) -> Callable[[random.Random], str]:
    """Return what draws a situation in that context, about any trait."""

    def draw(rng: random.Random) -> str:
        row = rng.choice(TRAITS[rng.choice(sorted(TRAITS))].choices)
        return speech.choice_ask(rng, row, context, POOL)[0]

    return draw


def story(rng: random.Random) -> str:
    """Return a request for a story."""
    return speech.tell(rng, Character(), POOL).ask


def main() -> None:
    """Write the file beside this script."""
    lines = []
    for kind, count in COUNTS.items():
        rng = speech.seeded("audit-like", kind)
        draw = story if kind == "story" else choice(kind)
        asks: dict[str, None] = {}
        while len(asks) < count:
            asks.setdefault(draw(rng))
        for number, ask in enumerate(asks):
            message = {"role": "user", "content": ask}
            lines.append({"id": f"{kind}/{number}", "messages": [message], "tags": [kind]})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    Path(__file__).with_name("audit-like.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
