"""How likely two rows share a hash value, from integrals over pairs of correlated Gaussians.

Rotating two unit vectors with cosine r at random gives pairs of coordinates that are Gaussian with correlation r
(exactly so for Gaussian matrices). A winner is shared if one pair is on top in both.
"""
from __future__ import annotations

import numpy as np
from scipy.special import ndtr, owens_t

# Gauss-Legendre over what a Gaussian leaves above 1e-16; the integrands are smooth
NODES, WEIGHTS = np.polynomial.legendre.leggauss(140)
NODES, WEIGHTS = 8.5 * NODES, 8.5 * WEIGHTS
DENSITY = WEIGHTS * np.exp(-NODES**2 / 2) / np.sqrt(2 * np.pi)


def both_below(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """P(X < x, Y < y) for standard Gaussians with correlation r, -1 < r < 1, by Owen's function T.

    Owen, "Tables for computing bivariate normal probabilities", 1956, formula 2.1.
    """
    x, y = (np.where(z == 0, 1e-300, z) for z in (x, y))  # the formula divides by both
    s = np.sqrt(1 - r * r)
    total = (ndtr(x) + ndtr(y)) / 2 - owens_t(x, (y - r * x) / (x * s)) - owens_t(y, (x - r * y) / (y * s))
    return np.clip(total - np.where(x * y > 0, 0, 0.5), 0, 1)


def same_largest(n: int, cosine: float) -> float:
    """P(argmax X = argmax Y) for n independent pairs: n E[P(X' < X, Y' < Y)^(n - 1)]."""
    if n == 1 or cosine >= 1:
        return 1.0
    if cosine <= -1:
        return 0.0
    x, y = NODES[:, None], cosine * NODES[:, None] + np.sqrt(1 - cosine**2) * NODES
    return float(n * (DENSITY @ both_below(x, y, cosine) ** (n - 1) @ DENSITY))


def same_vertex(n: int, cosine: float) -> float:
    """P(argmax |X| = argmax |Y| with equal signs): 2n E[P(|X'| < X, |Y'| < Y)^(n - 1); X > 0, Y > 0]; n > 1."""
    if abs(cosine) >= 1:
        return float(cosine > 0)
    # X > 0 and Y > 0 is a wedge: polar coordinates keep its border out of the integrand
    half_angle = np.arccos(cosine) / 2
    low, high = half_angle - np.pi / 2, np.pi / 2 - half_angle
    radius = (NODES + 8.5)[:, None] / 2
    angle = (low + high) / 2 + (high - low) / 2 * NODES / 8.5
    x, y = radius * np.cos(angle + half_angle), radius * np.cos(angle - half_angle)
    inside = (both_below(x, y, cosine) - both_below(-x, y, cosine)
              - both_below(x, -y, cosine) + both_below(-x, -y, cosine))
    radial = WEIGHTS / 2 * radius[:, 0] * np.exp(-radius[:, 0] ** 2 / 2) / (2 * np.pi)
    angular = WEIGHTS / 8.5 * (high - low) / 2
    return float(2 * n * (radial @ np.clip(inside, 0, 1) ** (n - 1) @ angular))
