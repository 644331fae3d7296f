"""The conjugate gradient method for ``A x = b`` with ``A`` given by its product with a vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch as th


@dataclass(frozen=True)
class ConjugateGradientResult:
    """
    :param x: the approximate solution, shape [n]
    :param iterations: products with ``A`` that were made
    :param relative_residual: ``|b - A x| / |b|`` as the recurrence knows it; 0 for ``b = 0``
    :param stopped_by: "tolerance", "max_steps", "zero" (``b = 0``), "curvature" (``p^T A p <= 0``:
        ``A`` is not positive definite along the search direction) or "non_finite"
    """

    x: th.Tensor
    iterations: int
    relative_residual: float
    stopped_by: str


def conjugate_gradient(
    product: Callable[[th.Tensor], th.Tensor],
    b: th.Tensor,
    max_steps: int,
    tolerance: float = 0.0,
) -> ConjugateGradientResult:
    """
    Solve ``A x = b`` for a symmetric positive definite ``A`` (Hestenes and Stiefel 1952;
    Nocedal and Wright, Numerical Optimization, algorithm 5.2), from ``x = 0``.

    From zero each iterate is a combination of ``b, A b, A^2 b, ...`` with ``b^T x > 0``: an ascent direction
    when ``b`` is a gradient. Where the curvature fails, the last good iterate is returned.

    :param product: the map ``v -> A v`` on vectors of shape [n]
    :param b: right-hand side, shape [n]; its dtype is the dtype of the computation
    :param max_steps: at most so many products
    :param tolerance: stop once the residual's norm is below ``tolerance * |b|``
    """
    x = th.zeros_like(b)
    residual = b.clone()
    direction = b.clone()
    squared = float(residual @ residual)
    norm_b = squared**0.5
    if squared == 0.0:
        return ConjugateGradientResult(x, 0, 0.0, "zero")
    for step in range(max_steps):
        a_direction = product(direction)
        curvature = float(direction @ a_direction)
        if not abs(curvature) < float("inf"):
            return ConjugateGradientResult(x, step + 1, squared**0.5 / norm_b, "non_finite")
        if curvature <= 0.0:
            return ConjugateGradientResult(x, step + 1, squared**0.5 / norm_b, "curvature")
        alpha = squared / curvature
        x = x + alpha * direction
        residual = residual - alpha * a_direction
        new_squared = float(residual @ residual)
        if new_squared <= (tolerance * norm_b) ** 2:
            return ConjugateGradientResult(x, step + 1, new_squared**0.5 / norm_b, "tolerance")
        direction = residual + (new_squared / squared) * direction
        squared = new_squared
    return ConjugateGradientResult(x, max_steps, squared**0.5 / norm_b, "max_steps")
