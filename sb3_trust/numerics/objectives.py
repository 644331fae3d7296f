"""
Objectives as values and partial derivatives.

An objective is a function of what the policy says about a batch (:class:`PolicyTerms`) and of what the
rollout says about it (:class:`RolloutTerms`): its value, and its derivative with respect to each entry of
each term, so that an engine only has to pull these derivatives back to the parameters. The two are asked for
apart, because a gradient step needs the derivatives alone; the values of many minibatches are then taken at
once.

All arrays have shape [..., n]: n samples, and any number of batches. Derivatives are taken of NumPy arrays as
well as of tensors; values of tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch as th

from sb3_trust.numerics.arrays import Array, clamp, constant_like, exp, set_zero_


@dataclass
class PolicyTerms:
    """
    Per-sample quantities of the current policy, or the derivatives with respect to them. ``None``: not asked
    for, or without influence on the objective; for the entropy also: no closed form.

    :param log_prob: log pi(a|s)
    :param entropy: H(pi(.|s))
    :param kl: KL(old || new) at the state, summed over action dimensions
    :param values: V(s)
    """

    log_prob: Array | None = None
    entropy: Array | None = None
    kl: Array | None = None
    values: Array | None = None


class RolloutTerms(Protocol):
    """Per-sample quantities that the rollout recorded; shape [..., n] each."""

    advantages: Array
    returns: Array
    old_values: Array
    old_log_prob: Array


@dataclass
class ObjectiveValue:
    """
    :param value: the objective of each batch, shape [...]
    :param statistics: what else is worth logging of each batch, by name; shape [...]
    """

    value: th.Tensor
    statistics: dict[str, th.Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A loss or an objective; ``needs`` names the fields of :class:`PolicyTerms` that it reads."""

    needs: frozenset[str]

    def __call__(self, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        """Its value."""

    def derivatives(self, terms: PolicyTerms, data: RolloutTerms) -> PolicyTerms:
        """The partial derivatives of its value with respect to each sample's terms."""


def required(term: Array | None) -> Array:
    """A term that was asked for, and so is there."""
    if term is None:
        raise RuntimeError("the engine did not compute a term that the objective needs")
    return term


def normalize_advantages(advantages: th.Tensor) -> th.Tensor:
    """
    Zero mean and unit standard deviation within each batch; a single sample has none and stays as it is.
    Shape [..., n].
    """
    if advantages.shape[-1] < 2:
        return advantages
    deviation = advantages - advantages.mean(-1, keepdim=True)
    return deviation / (advantages.std(-1, keepdim=True) + 1e-8)


def approximate_kl(log_ratio: th.Tensor) -> th.Tensor:
    """
    The estimator ``mean(r - 1 - log r)`` of KL(old || new) from samples of old (Schulman 2020, "k3"). Shape
    [..., n] to [...].
    """
    return ((log_ratio.exp() - 1) - log_ratio).mean(-1)


@dataclass(frozen=True)
class ValueLoss:
    """
    Mean squared error of the value function against the returns.

    :param clip_range: bound on how far a value may move from the rollout's before it counts as moved no
        further
    :param weight: factor of the whole
    """

    clip_range: float | None = None
    weight: float = 1.0
    needs = frozenset({"values"})

    def _error(self, terms: PolicyTerms, data: RolloutTerms) -> Array:
        values = required(terms.values)
        if self.clip_range is not None:
            values = data.old_values + clamp(values - data.old_values, -self.clip_range, self.clip_range)
        return values - data.returns

    def __call__(self, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        return ObjectiveValue(self.weight * (self._error(terms, data) ** 2).mean(-1))

    def derivatives(self, terms: PolicyTerms, data: RolloutTerms) -> PolicyTerms:
        error = self._error(terms, data)
        error *= 2.0 * self.weight / error.shape[-1]
        if self.clip_range is not None:
            moved = abs(required(terms.values) - data.old_values)
            set_zero_(error, moved > self.clip_range)
        return PolicyTerms(values=error)


@dataclass(frozen=True)
class SurrogateObjective:
    """
    ``mean(A exp(log pi - log pi_old)) + ent_coef * mean(H)``, to be maximised (Schulman et al. 2015,
    equation 14).
    """

    ent_coef: float = 0.0

    @property
    def needs(self) -> frozenset[str]:
        """The terms that the objective reads."""
        return frozenset({"log_prob", "entropy"} if self.ent_coef else {"log_prob"})

    def __call__(self, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        weighted = data.advantages * (required(terms.log_prob) - data.old_log_prob).exp()
        value = weighted.mean(-1, dtype=th.float64)
        if self.ent_coef:
            value = value + self.ent_coef * required(terms.entropy).mean(-1, dtype=th.float64)
        return ObjectiveValue(value)

    def derivatives(self, terms: PolicyTerms, data: RolloutTerms) -> PolicyTerms:
        weighted = data.advantages * exp(required(terms.log_prob) - data.old_log_prob)
        n = weighted.shape[-1]
        derivatives = PolicyTerms(log_prob=weighted / n)
        if self.ent_coef:
            derivatives.entropy = constant_like(required(terms.entropy), self.ent_coef / n)
        return derivatives


@dataclass(frozen=True, kw_only=True)
class _ActorCriticLoss:
    """A policy loss with value loss and entropy bonus; a subclass has the policy's part."""

    vf_coef: float = 0.5
    ent_coef: float = 0.0

    @cached_property
    def _value_loss(self) -> ValueLoss:
        return ValueLoss(weight=self.vf_coef)

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
        derivatives = self._policy_derivatives(log_ratio, terms, data)
        derivatives.values = self._value_loss.derivatives(terms, data).values
        if self.ent_coef:
            per_sample = self.ent_coef / log_ratio.shape[-1]
            if terms.entropy is None:
                derivatives.log_prob = required(derivatives.log_prob) + per_sample
            else:
                derivatives.entropy = constant_like(terms.entropy, -per_sample)
        return derivatives


@dataclass(frozen=True, kw_only=True)
class ClippedSurrogateLoss(_ActorCriticLoss):
    """
    PPO's clipped surrogate with value loss and entropy bonus, to be minimised (Schulman et al. 2017,
    equations 7 and 9).

    :param clip_range: bound on ``|ratio - 1|`` beyond which a sample no longer pushes; ``inf``: no clip
    :param clip_range_vf: as ``clip_range`` of :class:`ValueLoss`
    """

    clip_range: float = 0.2
    clip_range_vf: float | None = None
    needs = frozenset({"log_prob", "entropy", "values"})

    @cached_property
    def _value_loss(self) -> ValueLoss:
        return ValueLoss(self.clip_range_vf, self.vf_coef)

    def _terms(self, ratio: Array, advantages: Array) -> tuple[Array, Array]:
        return advantages * ratio, advantages * clamp(ratio, 1 - self.clip_range, 1 + self.clip_range)

    def _policy_loss(self, log_ratio: th.Tensor, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        ratio = log_ratio.exp()
        clip_fraction = ((ratio - 1).abs() > self.clip_range).float().mean(-1)
        loss = -th.min(*self._terms(ratio, data.advantages)).mean(-1)
        return ObjectiveValue(loss, {"clip_fraction": clip_fraction})

    def _policy_derivatives(self, log_ratio: Array, terms: PolicyTerms, data: RolloutTerms) -> PolicyTerms:
        unclipped, clipped = self._terms(exp(log_ratio), data.advantages)
        # where the clipped term is the strictly smaller one the derivative is zero; NaN compares false and
        # stays NaN
        flat = clipped < unclipped
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
