"""Backtracking line search under a constraint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """
    What a point on the line is worth.

    :param improvement: the objective there less the objective at the start
    :param constraint: the constrained quantity there (for TRPO the mean KL divergence)
    """

    improvement: float
    constraint: float


@dataclass(frozen=True)
class LineSearchResult:
    """
    :param fraction: the accepted fraction of the full step, 0 where none was
    :param trials: every point that was tried, the accepted one last
    """

    fraction: float
    trials: tuple[Trial, ...]

    @property
    def accepted(self) -> bool:
        """Whether a point satisfied both conditions."""
        return self.fraction > 0.0


def backtracking_line_search(
    evaluate: Callable[[float], Trial],
    expected_improvement: float,
    limit: float,
    accept_ratio: float,
    shrinking_factor: float,
    max_steps: int,
) -> LineSearchResult:
    """
    Try the fractions ``1, s, s^2, ...`` of a step until one satisfies the constraint (Schulman et al. 2015,
    appendix C) and improves the objective by a given share of what its linear model promises (the Armijo
    condition).

    A comparison with NaN is false, so a point where anything is not a number is refused.

    :param evaluate: the value of a fraction of the step
    :param expected_improvement: the linear model's improvement for the full step
    :param limit: largest constraint value that is accepted
    :param accept_ratio: smallest accepted ratio of actual to expected improvement;
        with 0 any strict improvement will do
    :param shrinking_factor: ``s``, in (0, 1)
    :param max_steps: at most so many points
    """
    fraction = 1.0
    trials: list[Trial] = []
    for _ in range(max_steps):
        trial = evaluate(fraction)
        trials.append(trial)
        enough = trial.improvement >= accept_ratio * fraction * expected_improvement
        if trial.constraint <= limit and trial.improvement > 0.0 and enough:
            return LineSearchResult(fraction, tuple(trials))
        fraction *= shrinking_factor
    return LineSearchResult(0.0, tuple(trials))
