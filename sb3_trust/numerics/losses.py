"""The losses of actor-critic algorithms, to be minimised: see :mod:`sb3_trust.numerics.objectives`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch as th

from sb3_trust.numerics.arrays import Array, clamp, constant_like, exp, set_zero_
from sb3_trust.numerics.objectives import (
    Objective,
    ObjectiveValue,
    PolicyTerms,
    RolloutTerms,
    SurrogateObjective,
    approximate_kl,
    required,
)

# what statistics of a user's own objective are named after, so that none takes the place of one of ours
OF_OBJECTIVE = "objective/"


def clip_fraction(ratio: th.Tensor, clip_range: float) -> th.Tensor:
    """Share of samples whose ratio is outside the clip range. Shape [..., n] to [...]."""
    return ((ratio - 1).abs() > clip_range).float().mean(-1)


def clipped_surrogate(ratio: Array, advantages: Array, clip_range: float) -> tuple[Array, Array]:
    """
    The two terms of each sample of which PPO's objective takes the smaller (Schulman et al. 2017, equation
    7): without the clip and with it. Shapes [..., n].
    """
    return advantages * ratio, advantages * clamp(ratio, 1 - clip_range, 1 + clip_range)


@dataclass(frozen=True)
class ValueLoss:
    """
    Mean squared error of the value function against the returns.

    :param clip_range: bound on how far a value may move from the rollout's before it counts as moved no
        further
    :param weight: factor of the whole
    :param larger: take the larger of the squared errors with and without the clip, as OpenAI baselines' ppo2
        does; otherwise that with the clip, as SB3 does
    """

    clip_range: float | None = None
    weight: float = 1.0
    larger: bool = False
    needs = frozenset({"values"})

    def _errors(self, terms: PolicyTerms, data: RolloutTerms) -> tuple[Array, Array]:
        """Without the clip and with it."""
        values = required(terms.values)
        plain = values - data.returns
        if self.clip_range is None:
            return plain, plain
        moved = clamp(values - data.old_values, -self.clip_range, self.clip_range)
        return plain, data.old_values + moved - data.returns

    def __call__(self, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        plain, clipped = self._errors(terms, data)
        squared = clipped**2
        if self.larger:
            squared = th.max(plain**2, squared)
        return ObjectiveValue(self.weight * squared.mean(-1))

    def derivatives(self, terms: PolicyTerms, data: RolloutTerms) -> PolicyTerms:
        plain, error = self._errors(terms, data)
        flat = None
        if self.clip_range is not None:
            flat = abs(required(terms.values) - data.old_values) > self.clip_range
        if self.larger and flat is not None:
            # inside the range the two differ by rounding alone
            error, flat = plain, flat & (error**2 > plain**2)
        error = error * (2.0 * self.weight / error.shape[-1])
        return PolicyTerms(values=error if flat is None else set_zero_(error, flat))


@dataclass(frozen=True)
class PolicyGradientLoss(SurrogateObjective):
    """
    The negative surrogate: at the old policy, its gradient is the policy gradient.
    """

    def __call__(self, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        return ObjectiveValue(-super().__call__(terms, data).value)

    def derivatives(self, terms: PolicyTerms, data: RolloutTerms) -> PolicyTerms:
        slopes = vars(super().derivatives(terms, data))
        return PolicyTerms(**{name: None if slope is None else -slope for name, slope in slopes.items()})


@dataclass(frozen=True, kw_only=True)
class _ActorCriticLoss:
    """
    A policy loss with value loss and entropy bonus; a subclass has the policy's part.

    :param clip_range_vf: as ``clip_range`` of :class:`ValueLoss`
    :param larger_value_loss: as ``larger`` of :class:`ValueLoss`
    """

    vf_coef: float = 0.5
    ent_coef: float = 0.0
    clip_range_vf: float | None = None
    larger_value_loss: bool = False

    @cached_property
    def _value_loss(self) -> ValueLoss:
        return ValueLoss(self.clip_range_vf, self.vf_coef, self.larger_value_loss)

    def _policy_loss(self, log_ratio: th.Tensor, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        raise NotImplementedError

    def _policy_derivatives(self, log_ratio: Array, terms: PolicyTerms, data: RolloutTerms) -> PolicyTerms:
        raise NotImplementedError

    def __call__(self, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        log_prob = required(terms.log_prob)
        log_ratio = log_prob - data.old_log_prob
        policy = self._policy_loss(log_ratio, terms, data)
        value_loss = replace(self._value_loss, weight=1.0)(terms, data).value
        # no closed form (squashed Gaussian): the sample's -log_prob stands for it
        entropy = -log_prob if terms.entropy is None else terms.entropy
        entropy_loss = -entropy.mean(-1)
        loss = policy.value + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        statistics = {
            "policy_loss": policy.value,
            "value_loss": value_loss,
            "entropy_loss": entropy_loss,
            "approx_kl": approximate_kl(log_ratio),
            **policy.statistics,
            "loss": loss,
        }
        return ObjectiveValue(loss, statistics)

    def derivatives(self, terms: PolicyTerms, data: RolloutTerms) -> PolicyTerms:
        log_ratio = required(terms.log_prob) - data.old_log_prob
        # a copy: a user's objective may keep what it returns
        derivatives = replace(self._policy_derivatives(log_ratio, terms, data))
        derivatives.values = _sum(derivatives.values, self._value_loss.derivatives(terms, data).values)
        if self.ent_coef:
            per_sample = self.ent_coef / log_ratio.shape[-1]
            if terms.entropy is None:
                derivatives.log_prob = _sum(derivatives.log_prob, constant_like(log_ratio, per_sample))
            else:
                bonus = constant_like(terms.entropy, -per_sample)
                derivatives.entropy = _sum(derivatives.entropy, bonus)
        return derivatives


def _sum(first: Array | None, second: Array) -> Array:
    return second if first is None else first + second


@dataclass(frozen=True, kw_only=True)
class ClippedSurrogateLoss(_ActorCriticLoss):
    """
    PPO's clipped surrogate with value loss and entropy bonus, to be minimised (Schulman et al. 2017,
    equations 7 and 9).

    :param clip_range: bound on ``|ratio - 1|`` beyond which a sample no longer pushes; ``inf``: no clip
    :param dual_clip: a sample of negative advantage counts at most this many times its advantage (Ye et al.
        2020, equation 7); ``None``: any
    """

    clip_range: float = 0.2
    dual_clip: float | None = None
    needs = frozenset({"log_prob", "entropy", "values"})

    def _policy_loss(self, log_ratio: th.Tensor, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        ratio, advantages = log_ratio.exp(), data.advantages
        surrogate = th.min(*clipped_surrogate(ratio, advantages, self.clip_range))
        if self.dual_clip is not None:
            lowest = th.max(surrogate, self.dual_clip * advantages)
            surrogate = th.where(advantages < 0, lowest, surrogate)
        return ObjectiveValue(-surrogate.mean(-1), {"clip_fraction": clip_fraction(ratio, self.clip_range)})

    def _policy_derivatives(self, log_ratio: Array, terms: PolicyTerms, data: RolloutTerms) -> PolicyTerms:
        unclipped, clipped = clipped_surrogate(exp(log_ratio), data.advantages, self.clip_range)
        # where the clipped term is the strictly smaller one the derivative is zero; NaN compares false and
        # stays NaN
        flat = clipped < unclipped
        if self.dual_clip is not None:
            flat = flat | ((data.advantages < 0) & (unclipped < self.dual_clip * data.advantages))
        unclipped *= -1.0 / log_ratio.shape[-1]
        return PolicyTerms(log_prob=set_zero_(unclipped, flat))


@dataclass(frozen=True, kw_only=True)
class PenalizedSurrogateLoss(_ActorCriticLoss):
    """
    The surrogate less ``kl_coef * KL(old || new)``, with value loss and entropy bonus, to be minimised
    (Schulman et al. 2017, equation 8), plus ``hinge_coef * max(0, mean KL - 2 target_kl)^2`` (modular_rl).
    """

    kl_coef: float = 1.0
    target_kl: float = 0.01
    hinge_coef: float = 0.0
    needs = frozenset({"log_prob", "entropy", "kl", "values"})

    def _policy_loss(self, log_ratio: th.Tensor, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        mean_kl = required(terms.kl).mean(-1)
        excess = (mean_kl - 2.0 * self.target_kl).clamp(min=0.0)
        penalty = self.kl_coef * mean_kl + self.hinge_coef * excess**2
        surrogate_loss = -(data.advantages * log_ratio.exp()).mean(-1)
        return ObjectiveValue(
            surrogate_loss + penalty, {"surrogate_loss": surrogate_loss, "penalty": penalty}
        )

    def _policy_derivatives(self, log_ratio: Array, terms: PolicyTerms, data: RolloutTerms) -> PolicyTerms:
        kl = required(terms.kl)
        n = kl.shape[-1]
        slope: Array = self.kl_coef / n
        if self.hinge_coef:
            excess = clamp(kl.mean(-1)[..., None] - 2.0 * self.target_kl, 0.0, math.inf)
            slope = slope + excess * (2.0 * self.hinge_coef / n)
        weighted = exp(log_ratio)
        weighted *= data.advantages
        weighted *= -1.0 / n
        return PolicyTerms(log_prob=weighted, kl=constant_like(kl, slope))


@dataclass(frozen=True, kw_only=True)
class SurrogateLoss(_ActorCriticLoss):
    """
    A surrogate of the user's own with value loss and entropy bonus.

    :param surrogate: the policy's loss
    :param clip_range: what counts as outside in the statistic ``clip_fraction``
    """

    surrogate: Objective
    clip_range: float = 0.2

    @cached_property
    def needs(self) -> frozenset[str]:
        """The terms that the loss reads."""
        return frozenset({"log_prob", "entropy", "values"}) | self.surrogate.needs

    def _policy_loss(self, log_ratio: th.Tensor, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        result = self.surrogate(terms, data)
        outside = clip_fraction(log_ratio.exp(), self.clip_range)
        own = {OF_OBJECTIVE + name: value for name, value in result.statistics.items()}
        return ObjectiveValue(result.value, {**own, "clip_fraction": outside})

    def _policy_derivatives(self, log_ratio: Array, terms: PolicyTerms, data: RolloutTerms) -> PolicyTerms:
        return self.surrogate.derivatives(terms, data)
