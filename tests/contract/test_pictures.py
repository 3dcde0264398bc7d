"""Pictures in the README exist, are small and say what they show."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURES = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", README)
PICTURES += [
    (re.findall(r'alt="([^"]*)"', tag)[0], re.findall(r'src="([^"]*)"', tag)[0])
    for tag in re.findall(r"<img[^>]*>", README)
]


def test_every_picture_is_shown() -> None:
    shown = {ROOT / path for _, path in PICTURES}
    assert shown == set((ROOT / "docs" / "images").iterdir())


@pytest.mark.parametrize(("description", "path"), PICTURES)
def test_a_picture_is_small_and_described(description: str, path: str) -> None:
    assert len(description) > 15
    assert (ROOT / path).read_bytes().startswith(b"\x89PNG")
    assert (ROOT / path).stat().st_size < 150_000
