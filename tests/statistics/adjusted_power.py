"""Power of four scores in a simulated world; shares no code with the library.

    python tests/statistics/adjusted_power.py [studies]

Ten drives of three endpoints; 60% of an endpoint's variance is drift along two common directions,
each endpoint with loadings of its own, and six placebo covariates are made alike; the suspect's
three endpoints of one drive are moved by a shift in s.d. One row per score: share of studies in
which at most c references score at or above the suspect (c = 1 of 39, 0 of 19).
"""

import sys

import numpy as np

SHIFTS = (0.0, 1.0, 1.5, 2.0, 3.0)
DRIVES, EACH, N_COVARIATES = 10, 3, 6
DIRECTIONS, SHARED = 2, 0.6


def draw_loadings(rng, studies, columns):
    loadings = rng.normal(size=(studies, DIRECTIONS, columns))
    return np.sqrt(SHARED) * loadings / np.linalg.norm(loadings, axis=1, keepdims=True)


def draw(rng, studies, n, shift, kind="useful", moved=EACH):
    drift = rng.normal(size=(studies, n + 1, DIRECTIONS))
    x = drift @ draw_loadings(rng, studies, DRIVES * EACH)
    x += np.sqrt(1 - SHARED) * rng.normal(size=x.shape)
    x[:, 0, :moved] += shift
    noise = rng.normal(size=(studies, n + 1, N_COVARIATES))
    if kind == "noise":
        return x, noise
    return x, drift @ draw_loadings(rng, studies, N_COVARIATES) + np.sqrt(1 - SHARED) * noise


def scale(v):
    middle = np.median(v, axis=1, keepdims=True)
    mad = np.median(np.abs(v - middle), axis=1, keepdims=True)
    return (v - middle) / (1.48 * mad)


def residuals(x, c):
    out = np.empty_like(x)
    for s in range(len(x)):
        u = (c[s] - c[s].mean(0)) / c[s].std(0)
        a = np.column_stack([np.ones(len(u)), u])
        penalty = np.diag([0.0] + [1.0] * u.shape[1])
        hat = a @ np.linalg.inv(a.T @ a + penalty) @ a.T
        out[s] = (x[s] - hat @ x[s]) / (1 - np.diag(hat))[:, None]
    return out


def by_drive(z):
    return z.reshape(*z.shape[:2], DRIVES, EACH).mean(-1)


def score(name, x, c):
    if name == "endpoints":
        return scale(x).max(-1)
    if name == "drive means":
        return scale(by_drive(scale(x))).max(-1)
    return scale(by_drive(scale(residuals(x, c)))).max(-1)


def power(name, n, shift, studies, seed=0, **world):
    rng = np.random.default_rng([seed, n, int(10 * shift)])
    s = score(name, *draw(rng, studies, n, shift, **world))
    allowed = (n + 1) // 20 - 1
    return float(np.mean((s[:, 1:] >= s[:, :1]).sum(1) <= allowed))


ROWS = {
    "max over 30 endpoints": ("endpoints", 39, {}),
    "drive means, max": ("drive means", 39, {}),
    "adjusted, drive means, max": ("adjusted", 39, {}),
    "the same, n = 19": ("adjusted", 19, {}),
    "the same, covariates of pure noise": ("adjusted", 39, {"kind": "noise"}),
    "the same, one of three endpoints moved": ("adjusted", 39, {"moved": 1}),
}


def table(studies):
    return {
        row: [power(name, n, shift, studies, **world) for shift in SHIFTS]
        for row, (name, n, world) in ROWS.items()
    }


if __name__ == "__main__":
    for row, rates in table(int(sys.argv[1]) if len(sys.argv) > 1 else 1200).items():
        print(f"{row:42s}", *(f"{rate:5.2f}" for rate in rates))
