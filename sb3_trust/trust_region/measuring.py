"""Measuring along the step of a finished update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trust.algorithms.base import TrustRegionAlgorithm
from sb3_trust.algorithms.listening import FinishedUpdate, SearchedStep
from sb3_trust.algorithms.random_states import capture, restore
from sb3_trust.algorithms.trpo import TRPO
from sb3_trust.engines.chunked import ChunkedEvaluation, fisher_in_chunks
from sb3_trust.engines.distributions import distribution_validation_off
from sb3_trust.engines.vectors import assign, flatten
from sb3_trust.numerics.losses import clipped_surrogate
from sb3_trust.numerics.objectives import SurrogateObjective, normalize_advantages, required
from sb3_trust.trust_region.record import LineSearch, Profile, RecordedUpdate

# points of a profile, and the last of them as a fraction of the full step
N_POINTS = 31
REACH = 1.5
# of algorithms that have none
USUAL_CLIP_RANGE = 0.2
# samples of which gradients and Fisher products are evaluated at once
CHUNK_SIZE = 1024


@contextmanager
def left_alone(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Whatever the block makes of parameters, buffers, the modules' modes and the random generators, they are
    bit-identical to before after it. Gradients and the optimizer are none of its business.
    """
    tensors = [*policy.parameters(), *policy.buffers()]
    kept = [tensor.detach().clone() for tensor in tensors]
    modes = [(module, module.training) for module in policy.modules()]
    states = capture(())
    try:
        yield
    finally:
        with th.no_grad():
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.copy_(before)
        for module, mode in modes:
            module.training = mode
        restore(states, ())


class StepMeasurement:
    """
    What a policy says of its last update's rollout, there and anywhere on the line of the update's step.

    :param algorithm: its policy is as the update left it, and is so again after each call
    """

    def __init__(self, algorithm: TrustRegionAlgorithm, finished: FinishedUpdate) -> None:
        self._algorithm, self._policy = algorithm, algorithm.policy
        self._engine = algorithm._policy_engine()
        self._finished, self._statistics = finished, finished.statistics
        batch = finished.batch
        normalizes = getattr(algorithm, "normalize_advantage", False)
        self._batch = batch.with_advantages(normalize_advantages(batch.advantages)) if normalizes else batch
        no_entropy = getattr(self._engine.family, "squashed", False)
        self._surrogate = SurrogateObjective(0.0 if no_entropy else algorithm.ent_coef)
        self._fraction = math.nan  # how much of the full step was taken
        clip_range = getattr(self._statistics, "clip_range", math.nan)
        self._clip_range = USUAL_CLIP_RANGE if math.isnan(clip_range) else clip_range

    def recorded(self, number: int, max_samples: int) -> RecordedUpdate | None:
        """
        What is kept of the update; ``None`` where no parameter of the policy can move.

        :param number: the update's
        :param max_samples: samples to keep at most
        """
        algorithm, statistics, searched = self._algorithm, self._statistics, self._finished.searched
        with self._engine.threads(), distribution_validation_off(), left_alone(self._policy):
            self._policy.set_training_mode(False)
            if not self._engine.partition(self._batch).policy:
                return None
            self._fraction = self._accepted_fraction()
            log_prob = required(self._engine.measure(self._batch, {"log_prob"}).log_prob)
            chosen = self._chosen(number, max_samples)
            return RecordedUpdate(
                update=number,
                num_timesteps=algorithm.num_timesteps,
                kl=statistics.kl,
                kl_max=statistics.kl_max,
                kl_per_dimension=self._kl_per_dimension(),
                target_kl=statistics.target_kl,
                limit=self._limit(),
                limit_at_worst_state=getattr(algorithm, "kl_statistic", "mean") == "max",
                clip_range=self._clip_range,
                accept_ratio=getattr(algorithm, "accept_ratio", math.nan),
                accepted_fraction=self._fraction,
                ratios=_array((log_prob - self._batch.old_log_prob).exp()[chosen], np.float32),
                advantages=_array(self._batch.advantages[chosen], np.float32),
                profile=self._profile(),
                line_search=None if searched is None else _line_search(searched),
            )

    def _chosen(self, number: int, max_samples: int) -> th.Tensor:
        """Indices of the samples to keep, drawn by a generator of its own, in order."""
        n = len(self._batch)
        drawn = np.random.default_rng(number).permutation(n)[:max_samples]
        return th.from_numpy(np.sort(drawn)).to(self._batch.advantages.device)

    def _kl_per_dimension(self) -> np.ndarray:
        old = self._batch.old_distribution
        assert old is not None
        new = self._engine.distribution_parameters(self._batch)
        divergence = self._engine.family.kl_per_dimension(old.double(), new.double())
        return _array(divergence.mean(0), np.float64)

    def _limit(self) -> float:
        if isinstance(self._algorithm, TRPO):
            return self._statistics.target_kl
        max_kl = getattr(self._algorithm, "max_kl", None)
        return math.nan if max_kl is None else float(max_kl)

    def _accepted_fraction(self) -> float:
        fraction = getattr(self._statistics, "step_fraction", math.nan)
        return float(self._moved()) if math.isnan(fraction) else fraction

    def _moved(self) -> bool:
        """Whether a parameter of the policy is another than before the update."""
        of_policy = {id(p) for p in self._engine.partition(self._batch).policy}
        pairs = zip(self._policy.parameters(), self._finished.old_parameters, strict=True)
        return any(not th.equal(now, before) for now, before in pairs if id(now) in of_policy)

    def _ends(self) -> tuple[list[th.nn.Parameter], th.Tensor, th.Tensor]:
        """The policy's parameters, their old values and the full step, in float64."""
        parameters = self._engine.partition(self._batch).policy
        pairs = zip(self._policy.parameters(), self._finished.old_parameters, strict=True)
        before = {id(parameter): old for parameter, old in pairs}
        origin = flatten(before[id(p)] for p in parameters).double()
        if self._finished.searched is not None:
            return parameters, origin, self._finished.searched.step
        move = flatten(p.detach() for p in parameters).double() - origin
        return parameters, origin, move / self._fraction if self._fraction > 0 else move

    def _profile(self) -> Profile:
        parameters, origin, step = self._ends()
        assign(parameters, origin)
        slope, curvature = self._models(parameters, step)
        fractions = grid(self._fraction)
        points = []
        for fraction in fractions:
            assign(parameters, origin + float(fraction) * step)
            points.append(self._point())
        surrogate, clipped, kl, kl_max = np.array(points).T
        return Profile(
            fractions=fractions,
            surrogate=surrogate - surrogate[0],
            linear=fractions * slope,
            clipped=clipped - clipped[0],
            kl=kl,
            kl_max=kl_max,
            quadratic=0.5 * curvature * fractions**2,
        )

    def _models(self, parameters: list[th.nn.Parameter], step: th.Tensor) -> tuple[float, float]:
        """The surrogate's slope along the step, and s^T F s, at the present parameters."""
        engine, batch, surrogate = self._engine, self._batch, self._surrogate
        size = getattr(self._algorithm, "max_chunk", None) or CHUNK_SIZE
        evaluation = ChunkedEvaluation(engine, batch, surrogate.needs, size)
        slopes = surrogate.derivatives(evaluation.terms, batch)
        gradient = flatten(evaluation.gradient(slopes, parameters)).double()
        product = fisher_in_chunks(engine, batch, size)(step.float()).double()
        return float(gradient @ step), float(step @ product)

    def _point(self) -> tuple[float, float, float, float]:
        """Surrogate, clipped surrogate, mean and largest KL divergence at the present parameters."""
        batch, surrogate = self._batch, self._surrogate
        terms = self._engine.measure(batch, surrogate.needs | {"kl"})
        value, kl = surrogate(terms, batch).value, required(terms.kl)
        ratio = (required(terms.log_prob) - batch.old_log_prob).exp()
        clipped = th.min(*clipped_surrogate(ratio, batch.advantages, self._clip_range))
        lost = (batch.advantages * ratio).mean(dtype=th.float64) - clipped.mean(dtype=th.float64)
        return value.item(), (value - lost).item(), kl.mean().item(), kl.max().item()


def grid(accepted: float) -> np.ndarray:
    """Evenly spaced fractions from 0 on, the nearest of them moved to one that was accepted."""
    fractions = np.linspace(0.0, REACH, N_POINTS)
    if 0.0 < accepted < math.inf:
        nearest = 1 + int(np.argmin(np.abs(fractions[1:] - accepted)))
        fractions[nearest] = accepted
    return fractions


def _line_search(searched: SearchedStep) -> LineSearch:
    trials = searched.result.trials
    # as the search makes them, to the last bit
    fractions = searched.scale * np.cumprod([1.0, *[searched.shrinking_factor] * (len(trials) - 1)])
    accepted = np.zeros(len(trials), bool)
    accepted[-1] = searched.result.accepted
    return LineSearch(
        fractions=fractions,
        improvement=np.array([trial.improvement for trial in trials]),
        expected_improvement=fractions * searched.slope,
        constrained=np.array([trial.constraint for trial in trials]),
        accepted=accepted,
    )


def _array(tensor: th.Tensor, kind: type[np.generic]) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(kind)
