"""
The action distributions in closed form: KL divergence, entropy and Fisher metric.

A distribution's parameters are one flat array of shape [..., n_parameters]: all logits, or the means
followed by the logarithms of the standard deviations. Logits and log sigma rather than probabilities and
sigma, so that nothing underflows: a probability too small for a float still has a finite logit.

A squashed Gaussian stands in for its base Gaussian: tanh is a bijection, so the KL divergence and the Fisher
metric are those of the base; only its entropy has no closed form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th
import torch.nn.functional as F
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)

from sb3_trust.errors import InvalidArgument

LOG_2_PI_E = 2.8378770664093453  # log(2 pi e)


class DistributionFamily(ABC):
    """One kind of action distribution. Arrays called ``parameters`` have shape [..., n_parameters]."""

    @abstractmethod
    def raw(self, distribution: Any) -> tuple[th.Tensor, ...]:
        """
        The tensors that a ``torch.distributions`` object (or SB3's list of them) holds; shape [n, k] each.
        """

    @abstractmethod
    def parameters(self, *raw: th.Tensor) -> th.Tensor:
        """:meth:`raw` as one flat array, differentiable."""

    @abstractmethod
    def kl_per_dimension(self, old: th.Tensor, new: th.Tensor) -> th.Tensor:
        """
        KL(old || new) of each action dimension: of each Gaussian, categorical or binary action. They are
        independent, so these sum to that of the joint distribution. Shape [..., n_dimensions].
        """

    def kl(self, old: th.Tensor, new: th.Tensor) -> th.Tensor:
        """KL(old || new), summed over action dimensions. Shape [...]."""
        return self.kl_per_dimension(old, new).sum(-1)

    @abstractmethod
    def entropy(self, parameters: th.Tensor) -> th.Tensor | None:
        """The entropy, summed over action dimensions; ``None`` without a closed form. Shape [...]."""

    @abstractmethod
    def fisher(self, parameters: th.Tensor, tangent: th.Tensor) -> th.Tensor:
        """
        The Fisher information matrix of the parameters times ``tangent``, sample by sample. [...,
        n_parameters].
        """

    def of(self, distribution: Distribution) -> th.Tensor:
        """The flat parameters that an SB3 distribution object holds at present, differentiable."""
        return self.parameters(*self.raw(distribution.distribution))


class GaussianFamily(DistributionFamily):
    """Independent Gaussians; parameters are the means, then log sigma."""

    def __init__(self, squashed: bool = False) -> None:
        self.squashed = squashed

    def raw(self, distribution: Any) -> tuple[th.Tensor, ...]:
        return distribution.loc, distribution.scale

    def parameters(self, *raw: th.Tensor) -> th.Tensor:
        mean, std = raw
        return th.cat([mean, std.log()], dim=-1)

    def kl_per_dimension(self, old: th.Tensor, new: th.Tensor) -> th.Tensor:
        (old_mean, old_log_std), (new_mean, new_log_std) = old.chunk(2, -1), new.chunk(2, -1)
        change = new_log_std - old_log_std
        distance = (new_mean - old_mean) * (-new_log_std).exp()
        # expm1 keeps the digits of a small change
        return change + 0.5 * (th.expm1(-2.0 * change) + distance**2)

    def entropy(self, parameters: th.Tensor) -> th.Tensor | None:
        if self.squashed:
            return None
        return (parameters.chunk(2, -1)[1] + 0.5 * LOG_2_PI_E).sum(-1)

    def fisher(self, parameters: th.Tensor, tangent: th.Tensor) -> th.Tensor:
        log_std = parameters.chunk(2, -1)[1]
        mean_tangent, log_std_tangent = tangent.chunk(2, -1)
        return th.cat([mean_tangent * (-2.0 * log_std).exp(), 2.0 * log_std_tangent], dim=-1)


class CategoricalFamily(DistributionFamily):
    """One or several independent categorical distributions; parameters are the concatenated logits."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def raw(self, distribution: Any) -> tuple[th.Tensor, ...]:
        several = isinstance(distribution, list)
        return tuple(d.logits for d in distribution) if several else (distribution.logits,)

    def parameters(self, *raw: th.Tensor) -> th.Tensor:
        return raw[0] if len(raw) == 1 else th.cat(raw, dim=-1)

    def _log_probs(self, parameters: th.Tensor) -> list[th.Tensor]:
        # a forbidden action (logit -inf) keeps a finite logarithm, so that 0 * log 0 is 0
        smallest = th.finfo(parameters.dtype).min
        return [F.log_softmax(part, -1).clamp(min=smallest) for part in parameters.split(self.sizes, -1)]

    def kl_per_dimension(self, old: th.Tensor, new: th.Tensor) -> th.Tensor:
        pairs = zip(self._log_probs(old), self._log_probs(new), strict=True)
        return th.stack([(p.exp() * (p - q)).sum(-1) for p, q in pairs]).movedim(0, -1)

    def entropy(self, parameters: th.Tensor) -> th.Tensor | None:
        return -th.stack([(p.exp() * p).sum(-1) for p in self._log_probs(parameters)]).sum(0)

    def fisher(self, parameters: th.Tensor, tangent: th.Tensor) -> th.Tensor:
        products = []
        for log_p, v in zip(self._log_probs(parameters), tangent.split(self.sizes, -1), strict=True):
            weighted = log_p.exp() * v
            products.append(weighted - log_p.exp() * weighted.sum(-1, keepdim=True))
        return th.cat(products, dim=-1)


class BernoulliFamily(DistributionFamily):
    """Independent binary actions; parameters are the logits."""

    def raw(self, distribution: Any) -> tuple[th.Tensor, ...]:
        return (distribution.logits,)

    def parameters(self, *raw: th.Tensor) -> th.Tensor:
        return raw[0]

    def kl_per_dimension(self, old: th.Tensor, new: th.Tensor) -> th.Tensor:
        one = th.sigmoid(old) * (F.logsigmoid(old) - F.logsigmoid(new))
        zero = th.sigmoid(-old) * (F.logsigmoid(-old) - F.logsigmoid(-new))
        return one + zero

    def entropy(self, parameters: th.Tensor) -> th.Tensor | None:
        one = th.sigmoid(parameters) * F.logsigmoid(parameters)
        return -(one + th.sigmoid(-parameters) * F.logsigmoid(-parameters)).sum(-1)

    def fisher(self, parameters: th.Tensor, tangent: th.Tensor) -> th.Tensor:
        return th.sigmoid(parameters) * th.sigmoid(-parameters) * tangent


def family_of(distribution: Distribution) -> DistributionFamily:
    """
    The family of an SB3 distribution.

    :raises InvalidArgument: for a distribution whose KL divergence is not known in closed form
    """
    if isinstance(distribution, StateDependentNoiseDistribution):
        return GaussianFamily(squashed=distribution.bijector is not None)
    if isinstance(distribution, DiagGaussianDistribution):
        return GaussianFamily(squashed=isinstance(distribution, SquashedDiagGaussianDistribution))
    if isinstance(distribution, CategoricalDistribution):
        return CategoricalFamily([distribution.action_dim])
    if isinstance(distribution, MultiCategoricalDistribution):
        return CategoricalFamily([int(size) for size in distribution.action_dims])
    if isinstance(distribution, BernoulliDistribution):
        return BernoulliFamily()
    raise InvalidArgument(
        "`policy` must act by one of Stable-Baselines3's Gaussian, categorical or Bernoulli distributions, "
        f"or a subclass, but its `action_dist` is a {type(distribution).__name__}"
    )


@contextmanager
def distribution_validation_off() -> Iterator[None]:
    """Let torch's distributions pass NaN on instead of raising: the update looks for it and rolls back."""
    kind: Any = th.distributions.Distribution
    before = kind._validate_args
    kind.set_default_validate_args(False)
    try:
        yield
    finally:
        kind.set_default_validate_args(before)
