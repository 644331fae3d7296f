"""
Objectives as values and partial derivatives.

An objective is a function of what the policy says about a batch (:class:`PolicyTerms`) and of what the
rollout says about it (:class:`RolloutTerms`). It returns its value and its derivative with respect to each
entry of each term, so that an engine only has to pull these derivatives back to the parameters. All arrays
have shape [n].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch as th


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

    log_prob: th.Tensor | None = None
    entropy: th.Tensor | None = None
    kl: th.Tensor | None = None
    values: th.Tensor | None = None


class RolloutTerms(Protocol):
    """Per-sample quantities that the rollout recorded; shape [n] each."""

    advantages: th.Tensor
    returns: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor


@dataclass
class ObjectiveValue:
    """
    :param value: the objective, a scalar
    :param derivatives: its partial derivatives with respect to each sample's terms
    :param statistics: scalars worth logging, by name
    """

    value: th.Tensor
    derivatives: PolicyTerms
    statistics: dict[str, th.Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A loss or an objective; ``needs`` names the fields of :class:`PolicyTerms` that it reads."""

    needs: frozenset[str]

    def __call__(self, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue: ...


def required(term: th.Tensor | None) -> th.Tensor:
    """A term that was asked for, and so is there."""
    if term is None:
        raise RuntimeError("the engine did not compute a term that the objective needs")
    return term


def normalize_advantages(advantages: th.Tensor) -> th.Tensor:
    """Zero mean and unit standard deviation; a single sample has none and stays as it is. Shape [n]."""
    if len(advantages) < 2:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def approximate_kl(log_ratio: th.Tensor) -> th.Tensor:
    """The estimator ``mean(r - 1 - log r)`` of KL(old || new) from samples of old (Schulman 2020, "k3")."""
    return ((log_ratio.exp() - 1) - log_ratio).mean()


@dataclass(frozen=True)
class ValueLoss:
    """
    Mean squared error of the value function against the returns.

    :param clip_range: bound on how far a value may move from the rollout's before it counts as moved no
        further
    """

    clip_range: float | None = None
    needs = frozenset({"values"})

    def __call__(self, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        values = predicted = required(terms.values)
        if self.clip_range is not None:
            change = values - data.old_values
            predicted = data.old_values + change.clamp(-self.clip_range, self.clip_range)
        error = predicted - data.returns
        derivative = error * (2.0 / len(error))
        if self.clip_range is not None:
            derivative = derivative.masked_fill(change.abs() > self.clip_range, 0.0)
        return ObjectiveValue((error * error).mean(), PolicyTerms(values=derivative))


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
        value = weighted.mean(dtype=th.float64)
        derivatives = PolicyTerms(log_prob=weighted / len(weighted))
        if self.ent_coef:
            entropy = required(terms.entropy)
            value = value + self.ent_coef * entropy.mean(dtype=th.float64)
            derivatives.entropy = th.full_like(entropy, self.ent_coef / len(entropy))
        return ObjectiveValue(value, derivatives)


def _actor_critic_loss(
    terms: PolicyTerms,
    data: RolloutTerms,
    policy: ObjectiveValue,
    value_loss: ValueLoss,
    vf_coef: float,
    ent_coef: float,
) -> ObjectiveValue:
    """Add value loss and entropy bonus to a policy loss. Takes over the policy loss's derivatives."""
    log_prob = required(terms.log_prob)
    critic = value_loss(terms, data)
    derivatives = policy.derivatives
    derivatives.values = vf_coef * required(critic.derivatives.values)
    if terms.entropy is None:
        # no closed form (squashed Gaussian): the sample's -log_prob stands for it
        entropy_loss = log_prob.mean()
        if ent_coef:
            derivatives.log_prob = required(derivatives.log_prob) + ent_coef / len(log_prob)
    else:
        entropy_loss = -terms.entropy.mean()
        if ent_coef:
            derivatives.entropy = th.full_like(terms.entropy, -ent_coef / len(terms.entropy))
    statistics = {"policy_loss": policy.value, "value_loss": critic.value, "entropy_loss": entropy_loss}
    loss = policy.value + ent_coef * entropy_loss + vf_coef * critic.value
    return ObjectiveValue(loss, derivatives, {**statistics, **policy.statistics, "loss": loss})


@dataclass(frozen=True)
class ClippedSurrogateLoss:
    """
    PPO's clipped surrogate with value loss and entropy bonus, to be minimised (Schulman et al. 2017,
    equations 7 and 9).

    :param clip_range: bound on ``|ratio - 1|`` beyond which a sample no longer pushes; ``inf``: no clip
    :param clip_range_vf: as :class:`ValueLoss`
    """

    clip_range: float
    clip_range_vf: float | None = None
    vf_coef: float = 0.5
    ent_coef: float = 0.0
    needs = frozenset({"log_prob", "entropy", "values"})

    def __call__(self, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        log_ratio = required(terms.log_prob) - data.old_log_prob
        ratio = log_ratio.exp()
        unclipped = data.advantages * ratio
        clipped = data.advantages * ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        # where the clipped term is the strictly smaller one the derivative is zero; NaN compares false and
        # stays NaN
        derivative = (unclipped / -len(ratio)).masked_fill(clipped < unclipped, 0.0)
        policy = ObjectiveValue(
            -th.min(unclipped, clipped).mean(),
            PolicyTerms(log_prob=derivative),
            {
                "clip_fraction": ((ratio - 1).abs() > self.clip_range).float().mean(),
                "approx_kl": approximate_kl(log_ratio),
            },
        )
        return _actor_critic_loss(
            terms, data, policy, ValueLoss(self.clip_range_vf), self.vf_coef, self.ent_coef
        )


@dataclass(frozen=True)
class PenalizedSurrogateLoss:
    """
    The surrogate less ``kl_coef * KL(old || new)``, with value loss and entropy bonus, to be minimised
    (Schulman et al. 2017, equation 8), plus ``hinge_coef * max(0, mean KL - 2 target_kl)^2`` (modular_rl).
    """

    kl_coef: float
    target_kl: float
    hinge_coef: float = 0.0
    vf_coef: float = 0.5
    ent_coef: float = 0.0
    needs = frozenset({"log_prob", "entropy", "kl", "values"})

    def __call__(self, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        log_ratio = required(terms.log_prob) - data.old_log_prob
        weighted = data.advantages * log_ratio.exp()
        kl = required(terms.kl)
        mean_kl = kl.mean()
        excess = (mean_kl - 2.0 * self.target_kl).clamp(min=0.0)
        penalty = self.kl_coef * mean_kl + self.hinge_coef * excess**2
        slope = self.kl_coef + 2.0 * self.hinge_coef * excess
        surrogate_loss = -weighted.mean()
        policy = ObjectiveValue(
            surrogate_loss + penalty,
            PolicyTerms(log_prob=weighted / -len(weighted), kl=(slope / len(kl)).expand_as(kl)),
            {"surrogate_loss": surrogate_loss, "penalty": penalty, "approx_kl": approximate_kl(log_ratio)},
        )
        return _actor_critic_loss(terms, data, policy, ValueLoss(), self.vf_coef, self.ent_coef)
