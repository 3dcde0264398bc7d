"""Computes the departure from exchangeability that a p-value withstands.

Numbers in brackets are equations of docs/method.md.
"""

from __future__ import annotations

from doublebind.stages.evidence.conformal import exact_fraction


def gamma_at_alpha(k: int, n: int, alpha: float) -> float:
    """Return the G at which p_G = alpha: alpha (n - k) / ((1 - alpha) (k + 1)). [11].

    p_G = G (k + 1) / (G (k + 1) + n - k) is the p-value where the odds of being the suspect may
    differ by the factor G between any two of the n + 1 teachers (Rosenbaum 2002, ch. 4); the worst
    case gives weight G to those at or above the suspect's score. The counterpart of the Gamma-value
    of Jin, Ren & Candes (2023, doi 10.1073/pnas.2214889120). Exact arithmetic: 38 references and
    none above give 2, not 1.9999.

    Args:
        k: References at or above the suspect.
        n: References.
        alpha: Level, in (0, 1).

    Returns:
        Odds ratio G >= 0; below 1, p exceeds alpha without any bias.
    """
    level = exact_fraction(alpha)
    return float(level * (n - k) / ((1 - level) * (k + 1)))
