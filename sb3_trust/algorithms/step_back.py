"""Taking an update back towards the old policy until a bound on its KL divergence holds."""

from __future__ import annotations

import math

import torch as th

from sb3_trust.engines.base import PolicyEngine
from sb3_trust.engines.batch import Batch
from sb3_trust.engines.vectors import assign, flatten
from sb3_trust.numerics.line_search import Trial, backtracking_line_search
from sb3_trust.numerics.objectives import required

SHRINKING_FACTOR = 0.8
MAX_STEPS = 30


class SegmentToOldPolicy:
    """
    The way back to the parameters that the policy has now.

    :param batch: the states over which the KL divergence is averaged
    """

    def __init__(self, engine: PolicyEngine, batch: Batch) -> None:
        self._engine = engine
        self._batch = batch
        self._parameters = engine.partition(batch).policy
        self._old = [p.detach().clone() for p in self._parameters]

    def _kl(self) -> float:
        return required(self._engine.measure(self._batch, {"kl"}).kl).mean().item()

    def step_back(self, max_kl: float) -> tuple[float, float]:
        """
        Move the policy along the segment to its old parameters to the first point with KL(old || new) at
        most ``max_kl``; where there is none, to the old parameters, bit for bit. The critic stays.

        :return: the fraction of the step that is left, and KL(old || new) of the whole step
        """
        kl = self._kl()
        if kl <= max_kl or not self._parameters:
            return 1.0, kl
        old = flatten(self._old).double()
        step = flatten(p.detach() for p in self._parameters).double() - old
        # the KL divergence is quadratic in small steps; what is not finite says nothing about the length
        start = math.sqrt(max_kl / kl) if math.isfinite(kl) else SHRINKING_FACTOR

        def trial(fraction: float) -> Trial:
            assign(self._parameters, old + fraction * start * step)
            return Trial(improvement=1.0, constraint=self._kl())

        found = backtracking_line_search(trial, 0.0, max_kl, 0.0, SHRINKING_FACTOR, MAX_STEPS)
        if not found.accepted:
            with th.no_grad():
                for parameter, weights in zip(self._parameters, self._old, strict=True):
                    parameter.copy_(weights)
        return found.fraction * start, kl
