"""The natural gradient of a batch: what the algorithms that follow it share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trust.algorithms.statistics import NaturalGradientStatistics, NonFiniteUpdate, finite
from sb3_trust.engines.base import Evaluation, PolicyEngine
from sb3_trust.engines.batch import Batch
from sb3_trust.engines.chunked import ChunkedEvaluation, fisher_in_chunks
from sb3_trust.engines.vectors import flatten
from sb3_trust.numerics.conjugate_gradient import conjugate_gradient
from sb3_trust.numerics.objectives import SurrogateObjective


@dataclass(frozen=True)
class NaturalDirection:
    """
    :param x: ``(F + damping I)^-1 g``, [n_policy_parameters]
    :param curvature: ``x^T F x``, undamped and positive
    :param fisher: the undamped product with F, good until a parameter is written to
    """

    x: th.Tensor
    curvature: float
    fisher: Callable[[th.Tensor], th.Tensor]


class NaturalGradient:
    """
    Gradient g of the surrogate and Fisher matrix F at the present parameters, ``origin``, in float64.

    :param sub_sampling_factor: F is averaged over one in so many states, drawn at random
    :param max_chunk: evaluate no more samples at once; ``None``: all
    :param statistics: told what was found
    :param log_std_bounds: smallest and largest value of the policy's ``log_std``; ``None``: any
    :raises NonFiniteUpdate: if the gradient is not finite
    """

    def __init__(
        self,
        engine: PolicyEngine,
        batch: Batch,
        surrogate: SurrogateObjective,
        sub_sampling_factor: int,
        max_chunk: int | None,
        statistics: NaturalGradientStatistics,
        log_std_bounds: Sequence[float] | None = None,
    ) -> None:
        self._statistics = statistics
        self.parameters = engine.partition(batch).policy
        size = len(batch) if max_chunk is None else max_chunk
        evaluation: Evaluation
        if size < len(batch):
            evaluation = ChunkedEvaluation(engine, batch, surrogate.needs, size)
        else:
            evaluation = engine.evaluate(batch, surrogate.needs)
        statistics.policy_objective = surrogate(evaluation.terms, batch).value.item()
        slopes = surrogate.derivatives(evaluation.terms, batch)
        self.gradient = flatten(evaluation.gradient(slopes, self.parameters)).double()
        self.origin = flatten(p.detach() for p in self.parameters).double()
        self._limits: tuple[th.Tensor, th.Tensor] | None = None
        if log_std_bounds is not None:
            self._limits = low, high = _limits(engine.policy, self.parameters, log_std_bounds)
            # a parameter at a limit does not move beyond it: the others have the trust region to themselves
            outward = ((self.origin >= high) & (self.gradient > 0)) | (
                (self.origin <= low) & (self.gradient < 0)
            )
            self.gradient[outward] = 0.0
        statistics.gradient_norm = finite("policy gradient", self.gradient.norm().item())
        self._engine, self._chunk_size = engine, size
        self._states = batch
        if sub_sampling_factor > 1:
            n = max(len(batch) // sub_sampling_factor, 1)
            chosen = th.from_numpy(np.random.permutation(len(batch))[:n])
            self._states = batch[chosen.to(batch.advantages.device)]

    def _fisher(self) -> Callable[[th.Tensor], th.Tensor]:
        """
        The undamped Fisher-vector product, on vectors of float64; good until a parameter is written to.
        """
        if self._chunk_size < len(self._states):
            product = fisher_in_chunks(self._engine, self._states, self._chunk_size)
        else:
            product = self._engine.fisher_vector_product(self._states)
        return lambda vector: product(vector.float()).double()

    def step(self, direction: NaturalDirection, beta: float) -> tuple[th.Tensor, float]:
        """
        ``beta * x``, or what ``log_std_bounds`` leave of it; to be called before a parameter is written to.

        :return: the step s, [n_policy_parameters], and the quadratic model's KL divergence, ``s^T F s / 2``
        """
        step, predicted_kl = beta * direction.x, 0.5 * direction.curvature * beta**2
        if self._limits is None:
            return step, predicted_kl
        low, high = self._limits
        end = self.origin + step
        step = end.clamp(low, high) - self.origin
        if bool(((end < low) | (end > high)).any()):
            predicted_kl = 0.5 * float(step @ direction.fisher(step))
            self._statistics.fisher_products += 1
        return step, predicted_kl

    def direction(self, damping: float, max_steps: int, tolerance: float) -> NaturalDirection | None:
        """
        The direction of the natural gradient; ``None`` where there is nowhere to go: no gradient, or no
        curvature along it.

        :raises NonFiniteUpdate: if a Fisher-vector product is not finite
        """
        statistics, fisher = self._statistics, self._fisher()
        cg = conjugate_gradient(lambda v: fisher(v) + damping * v, self.gradient, max_steps, tolerance)
        statistics.cg_damping = damping
        statistics.cg_iterations = cg.iterations
        statistics.fisher_products += cg.iterations
        statistics.cg_residual = cg.relative_residual
        if cg.stopped_by == "non_finite":
            raise NonFiniteUpdate("Fisher-vector product")
        if not bool(cg.x.any()):
            return None
        statistics.curvature = finite("curvature", float(cg.x @ fisher(cg.x)))
        statistics.fisher_products += 1
        return NaturalDirection(cg.x, statistics.curvature, fisher) if statistics.curvature > 0 else None


def _limits(
    policy: ActorCriticPolicy, parameters: list[th.nn.Parameter], bounds: Sequence[float]
) -> tuple[th.Tensor, th.Tensor]:
    """Smallest and largest value of each entry of the parameters."""
    log_std = getattr(policy, "log_std", None)
    low, high = (
        flatten(th.full_like(p, bound if p is log_std else free, dtype=th.float64) for p in parameters)
        for free, bound in zip((-math.inf, math.inf), bounds, strict=True)
    )
    return low, high
