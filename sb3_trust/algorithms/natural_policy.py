"""What the algorithms that follow the natural gradient share: NPG and TRPO."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.type_aliases import Schedule

from sb3_trust.algorithms.natural_gradient import NaturalGradient
from sb3_trust.algorithms.separate_critic import SeparateCriticAlgorithm
from sb3_trust.algorithms.statistics import NaturalGradientStatistics
from sb3_trust.engines.batch import Batch
from sb3_trust.errors import check_integer, check_number, check_optional
from sb3_trust.numerics.objectives import SurrogateObjective
from sb3_trust.numerics.schedules import check_target, value_at


class NaturalGradientAlgorithm(SeparateCriticAlgorithm):
    """
    A step along the natural gradient of the surrogate.

    :param target_kl: the length of the full step: the quadratic model's KL(old || new)
    :param cg_max_steps: iterations of the conjugate gradient method
    :param cg_damping: multiple of the identity that is added to the Fisher matrix to solve for the direction
    :param cg_tolerance: relative residual at which the conjugate gradient method ends
    :param sub_sampling_factor: average the Fisher matrix over one in so many states
    :param max_chunk: samples of which gradient and Fisher-vector products are evaluated at once
    """

    def __init__(
        self,
        *args: Any,
        target_kl: float | str | Schedule,
        cg_max_steps: int,
        cg_damping: float,
        cg_tolerance: float,
        sub_sampling_factor: int,
        max_chunk: int | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, max_grad_norm=0.0, **kwargs)
        self.target_kl = target_kl
        self.cg_max_steps = cg_max_steps
        self.cg_damping = cg_damping
        self.cg_tolerance = cg_tolerance
        self.sub_sampling_factor = sub_sampling_factor
        self.max_chunk = max_chunk

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_target("target_kl", self.target_kl)
        check_integer("cg_max_steps", self.cg_max_steps, 1)
        check_number("cg_damping", self.cg_damping)
        check_number("cg_tolerance", self.cg_tolerance, 0.0, 1.0)
        check_integer("sub_sampling_factor", self.sub_sampling_factor, 1)
        check_optional(check_integer, "max_chunk", self.max_chunk, 1)

    def _current_target_kl(self) -> float:
        return value_at("target_kl", self.target_kl, self._current_progress_remaining)

    def _natural_gradient(
        self, batch: Batch, surrogate: SurrogateObjective, statistics: NaturalGradientStatistics
    ) -> NaturalGradient:
        return NaturalGradient(
            self._policy_engine(),
            batch,
            surrogate,
            self.sub_sampling_factor,
            self.max_chunk,
            statistics,
            self.log_std_bounds,
        )
