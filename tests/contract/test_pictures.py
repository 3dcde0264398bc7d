"""Pictures in the README and the docs exist, are small and say what they show."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def list_pictures(page: Path) -> list[tuple[str, Path]]:
    """Return description and file of every picture of a page."""
    text = page.read_text(encoding="utf-8")
    pictures = re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text)
    pictures += [
        (re.findall(r'alt="([^"]*)"', tag)[0], re.findall(r'src="([^"]*)"', tag)[0])
        for tag in re.findall(r"<img[^>]*>", text)
    ]
    return [(description, (page.parent / path).resolve()) for description, path in pictures]


PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PICTURES = [picture for page in PAGES for picture in list_pictures(page)]


def test_every_picture_is_shown() -> None:
    shown = {path for _, path in PICTURES}
    assert set((ROOT / "docs" / "images").iterdir()) <= shown


@pytest.mark.parametrize(("description", "path"), PICTURES)
def test_a_picture_is_small_and_described(description: str, path: Path) -> None:
    assert len(description) > 15
    assert path.read_bytes().startswith(b"<svg" if path.suffix == ".svg" else b"\x89PNG")
    assert path.stat().st_size < 150_000
