"""A name says what its value is."""

import re
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "doublebind"
MAX_UNNAMED = 20
_ASSIGNED = re.compile(r"\b(found|said|told|its|asked|those|there)\b *(=|:)")


def test_hardly_any_value_has_a_name_that_says_nothing() -> None:
    lines = [
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if _ASSIGNED.search(line)
    ]
    assert len(lines) < MAX_UNNAMED, "\n".join(lines)
