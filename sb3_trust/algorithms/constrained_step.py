"""A step of the policy under a bound on its KL divergence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch as th

from sb3_trust.algorithms.listening import SearchedStep
from sb3_trust.algorithms.natural_gradient import NaturalGradient
from sb3_trust.algorithms.statistics import TRPOStatistics
from sb3_trust.engines.batch import Batch
from sb3_trust.engines.snapshot import Snapshot
from sb3_trust.engines.vectors import assign
from sb3_trust.numerics.line_search import LineSearchResult, Trial, backtracking_line_search
from sb3_trust.numerics.objectives import SurrogateObjective, required

if TYPE_CHECKING:
    from sb3_trust.algorithms.trpo import TRPO


class ConstrainedStep:
    """
    The points between the policy's parameters and a full step from them.

    :param natural: where the step starts, and the gradient of the surrogate there
    :param step: [n_policy_parameters], in float64
    """

    def __init__(
        self,
        algorithm: TRPO,
        batch: Batch,
        surrogate: SurrogateObjective,
        natural: NaturalGradient,
        step: th.Tensor,
    ) -> None:
        self._algorithm, self._batch, self._surrogate = algorithm, batch, surrogate
        self._engine = algorithm._policy_engine()
        self._parameters, self._origin, self._step = natural.parameters, natural.origin, step
        self._slope = float(natural.gradient @ step)
        self._needs = surrogate.needs | {"kl"}
        self._start = surrogate(self._engine.measure(batch, self._needs), batch).value

    def _trial(self, fraction: float) -> Trial:
        assign(self._parameters, self._origin + fraction * self._step)
        terms = self._engine.measure(self._batch, self._needs)
        improvement = self._surrogate(terms, self._batch).value - self._start
        return Trial(improvement.item(), self._algorithm.constrained(required(terms.kl)))

    def search(self, target_kl: float, statistics: TRPOStatistics) -> LineSearchResult:
        """
        Move the policy to the first point that keeps the bound and improves enough, or leave it as it is.

        :param statistics: told what was found
        """
        algorithm = self._algorithm
        before = Snapshot(algorithm.policy)
        scale = self._scale_to_the_worst_state(target_kl)
        shrinking = algorithm.line_search_shrinking_factor
        search = backtracking_line_search(
            lambda fraction: self._trial(fraction * scale),
            scale * self._slope,
            target_kl,
            algorithm.accept_ratio,
            shrinking,
            algorithm.line_search_max_iter,
        )
        if not search.accepted:
            before.restore()
        last, tried = search.trials[-1], scale * shrinking ** (len(search.trials) - 1)
        statistics.line_search_steps += len(search.trials)
        statistics.is_line_search_success = int(search.accepted)
        statistics.step_fraction = search.fraction * scale
        statistics.step_norm = statistics.step_fraction * self._step.norm().item()
        statistics.expected_improvement = tried * self._slope
        statistics.actual_improvement = last.improvement
        statistics.policy_objective += last.improvement if search.accepted else 0.0
        step = SearchedStep(self._step, self._slope, scale, shrinking, search)
        algorithm._keep_search(statistics, step)
        return search

    def _scale_to_the_worst_state(self, target_kl: float) -> float:
        """
        Where the bound is on each state, the length at which the worst would just keep it if its KL
        divergence were quadratic; the full step is made for the mean.
        """
        if self._algorithm.kl_statistic == "mean":
            return 1.0
        worst = self._trial(1.0).constraint
        return math.sqrt(target_kl / worst) if target_kl < worst < math.inf else 1.0
