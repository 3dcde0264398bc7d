"""How often the match gate bars an exchangeable suspect, and whether it bars an odd one.

`python tests/statistics/test_match_gate.py` prints the table of docs/method.md.
"""

import numpy as np
import pytest

from doublebind.stages.verdict.matching import match_shape

FEATURES = ("update_norm", "kl_to_m0", "completion_tokens", "finished")
STUDIES = 2000


def draw(rng: np.random.Generator, n: int, kind: str) -> np.ndarray:
    """Shapes of n + 1 exchangeable teachers, (n + 1, 4); the first is the suspect."""
    size = (n + 1, len(FEATURES))
    match kind:
        case "normal, independent":
            return 10 + rng.normal(size=size)
        case "normal, correlated 0.8":
            return (
                10
                + np.sqrt(0.8) * rng.normal(size=(n + 1, 1))
                + np.sqrt(0.2) * rng.normal(size=size)
            )
        case "log-normal, s.d. 1":
            return np.exp(rng.normal(size=size))
        case "Cauchy":
            return rng.standard_cauchy(size=size)
        case "few values, many ties":
            return rng.poisson(0.3, size=size).astype(float)
        case "three families":
            return (
                10
                + 3 * rng.normal(size=(3, 4))[rng.integers(3, size=n + 1)]
                + rng.normal(size=size)
            )
        case _:
            raise ValueError(kind)


KINDS = (
    "normal, independent",
    "normal, correlated 0.8",
    "log-normal, s.d. 1",
    "Cauchy",
    "few values, many ties",
    "three families",
)


def barred(shapes: np.ndarray) -> bool:
    own, *others = (dict(zip(FEATURES, map(float, row), strict=True)) for row in shapes)
    judged = match_shape(own, others)
    assert judged is not None
    return judged.is_outside


def rates(rng: np.random.Generator, n: int, kind: str, studies: int) -> tuple[float, float]:
    """Share barred by the gate, and by the range of each feature."""
    drawn = [draw(rng, n, kind) for _ in range(studies)]
    ranges = [((s[0] < s[1:].min(axis=0)) | (s[0] > s[1:].max(axis=0))).any() for s in drawn]
    return float(np.mean([barred(s) for s in drawn])), float(np.mean(ranges))


def allowed(n: int, studies: int) -> float:
    rate = 1 / (n + 1)
    return rate + 3 * np.sqrt(rate * (1 - rate) / studies)


@pytest.mark.parametrize("kind", KINDS)
def test_exchangeable_suspects_are_barred_in_at_most_one_of_n_plus_one_studies(kind: str) -> None:
    rate, by_range = rates(np.random.default_rng(20), 19, kind, STUDIES)
    assert rate <= allowed(19, STUDIES)
    if kind == "normal, independent":
        assert by_range > 0.3, "the range of each feature would have done: the gate proves nothing"


@pytest.mark.slow
@pytest.mark.parametrize("n", [19, 39, 59, 99])
@pytest.mark.parametrize("kind", KINDS)
def test_so_they_are_in_10_000_studies_with_larger_panels(kind: str, n: int) -> None:
    studies = 10_000
    assert rates(np.random.default_rng([n, 21]), n, kind, studies)[0] <= allowed(n, studies)


def test_gate_bars_what_is_no_match() -> None:
    """Twelve standard deviations on one of four features."""
    rng, found = np.random.default_rng(22), []
    for _ in range(300):
        shapes = draw(rng, 19, "normal, independent")
        shapes[0, 1] += 12
        found.append(barred(shapes))
    assert np.mean(found) > 0.9


if __name__ == "__main__":
    for name in KINDS:
        for references in (19, 39):
            gate, by_range = rates(
                np.random.default_rng([references, 21]), references, name, 10_000
            )
            print(f"| {name}, {references} references | {gate:.3f} | {by_range:.3f} |")
