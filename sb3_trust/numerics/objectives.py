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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch as th

from sb3_trust.numerics.arrays import Array, constant_like, exp, like, tensor


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
class RolloutArrays:
    """These quantities and nothing else."""

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
    """A loss or an objective."""

    @property
    def needs(self) -> frozenset[str]:
        """The fields of :class:`PolicyTerms` that it reads."""

    def __call__(self, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        """Its value."""

    def derivatives(self, terms: PolicyTerms, data: RolloutTerms) -> PolicyTerms:
        """The partial derivatives of its value with respect to each sample's terms."""


def required(term: Array | None) -> Array:
    """A term that was asked for, and so is there."""
    if term is None:
        raise RuntimeError("the engine did not compute a term that the objective needs")
    return term


def joined(parts: Sequence[PolicyTerms], join: Callable[[list[Any]], Array]) -> PolicyTerms:
    """
    The terms of several batches as one.

    :param join: concatenates or stacks one term's arrays
    """
    columns = {name: [getattr(part, name) for part in parts] for name in vars(parts[0])}
    return PolicyTerms(
        **{name: None if column[0] is None else join(column) for name, column in columns.items()}
    )


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


@dataclass(frozen=True)
class Differentiated:
    """
    An objective whose derivatives autograd takes, one call a minibatch slower than formulas.

    :param function: the value of each batch, [...], from terms and rollout, differentiable in the terms
    :param needs: the terms that it reads
    """

    function: Callable[[PolicyTerms, RolloutTerms], th.Tensor]
    needs: frozenset[str] = frozenset({"log_prob"})

    def __call__(self, terms: PolicyTerms, data: RolloutTerms) -> ObjectiveValue:
        return ObjectiveValue(self.function(terms, data))

    def derivatives(self, terms: PolicyTerms, data: RolloutTerms) -> PolicyTerms:
        given = {name: term for name, term in vars(terms).items() if term is not None}
        leaves = {name: tensor(term).detach().requires_grad_() for name, term in given.items()}
        names = ("advantages", "returns", "old_values", "old_log_prob")
        rollout = RolloutArrays(*(tensor(getattr(data, name)) for name in names))
        with th.enable_grad():
            value = self.function(PolicyTerms(**leaves), rollout).sum()
        slopes = th.autograd.grad(value, list(leaves.values()), allow_unused=True)
        pairs = zip(given.items(), slopes, strict=True)
        return PolicyTerms(
            **{name: None if slope is None else like(term, slope) for (name, term), slope in pairs}
        )
