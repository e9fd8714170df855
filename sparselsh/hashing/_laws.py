"""Collision probabilities, as integrals over pairs of correlated Gaussians.

A random rotation of two unit vectors with cosine r gives pairs of coordinates that are Gaussian
with correlation r (exactly so for Gaussian matrices). The vectors share a winner if the same
coordinate is largest in both.
"""
from __future__ import annotations

import numpy as np
from scipy.special import ndtr, owens_t

# Gauss-Legendre quadrature where a Gaussian exceeds 1e-16; the integrands are smooth.
N_NODES = 140
INTEGRATION_LIMIT = 8.5  # standard deviations
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(N_NODES)
NODES, NODE_WEIGHTS = INTEGRATION_LIMIT * NODES, INTEGRATION_LIMIT * NODE_WEIGHTS
GAUSSIAN_WEIGHTS = NODE_WEIGHTS * np.exp(-NODES**2 / 2) / np.sqrt(2 * np.pi)


def both_below(x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """P(X < x, Y < y) for standard Gaussians with correlation r, -1 < r < 1, by Owen's function T.

    Owen, "Tables for computing bivariate normal probabilities", 1956, formula 2.1.
    """
    x, y = (np.where(z == 0, 1e-300, z) for z in (x, y))  # the formula divides by both
    s = np.sqrt(1 - r * r)
    total = ((ndtr(x) + ndtr(y)) / 2 - owens_t(x, (y - r * x) / (x * s))
             - owens_t(y, (x - r * y) / (y * s)))
    return np.clip(total - np.where(x * y > 0, 0, 0.5), 0, 1)


def same_largest(n: int, cosine: float) -> float:
    """P(argmax X = argmax Y) for n independent pairs: n E[P(X' < X, Y' < Y)^(n - 1)]."""
    if n == 1 or cosine >= 1:
        return 1.0
    if cosine <= -1:
        return 0.0
    x, y = NODES[:, None], cosine * NODES[:, None] + np.sqrt(1 - cosine**2) * NODES
    below = both_below(x, y, cosine) ** (n - 1)
    return float(n * (GAUSSIAN_WEIGHTS @ below @ GAUSSIAN_WEIGHTS))


def same_vertex(n: int, cosine: float) -> float:
    """P(argmax |X| = argmax |Y| with equal signs), for n > 1.

    It is 2n E[P(|X'| < X, |Y'| < Y)^(n - 1); X > 0, Y > 0].
    """
    if abs(cosine) >= 1:
        return float(cosine > 0)

    # X > 0 and Y > 0 is a wedge: polar coordinates keep its border out of the integrand
    half_angle = np.arccos(cosine) / 2
    low, high = half_angle - np.pi / 2, np.pi / 2 - half_angle
    radius = (NODES + INTEGRATION_LIMIT)[:, None] / 2
    angle = (low + high) / 2 + (high - low) / 2 * NODES / INTEGRATION_LIMIT
    x, y = radius * np.cos(angle + half_angle), radius * np.cos(angle - half_angle)
    inside = (both_below(x, y, cosine) - both_below(-x, y, cosine)
              - both_below(x, -y, cosine) + both_below(-x, -y, cosine))

    radial = NODE_WEIGHTS / 2 * radius[:, 0] * np.exp(-radius[:, 0] ** 2 / 2) / (2 * np.pi)
    angular = NODE_WEIGHTS / INTEGRATION_LIMIT * (high - low) / 2
    return float(2 * n * (radial @ np.clip(inside, 0, 1) ** (n - 1) @ angular))
