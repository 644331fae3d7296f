"""
The action distributions on NumPy arrays: log-probability, entropy, KL divergence with their derivatives, and
sampling, as functions of what a network puts out.

Arrays are feature-major: outputs [k, n], per-sample quantities [n]. The same quantities, differentiated by
autograd, are in :mod:`sb3_trust.engines.distributions`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

import numpy as np
import torch as th
import torch.nn.functional as F

from sb3_trust.engines.distributions import LOG_2_PI_E

HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


class Evaluated:
    """
    Log-probability, entropy and KL divergence of a batch, those that were asked for, and the way back.
    """

    log_prob: np.ndarray | None = None
    entropy: np.ndarray | None = None
    kl: np.ndarray | None = None

    def pull_back(
        self, log_prob: np.ndarray | None, entropy: np.ndarray | None, kl: np.ndarray | None
    ) -> np.ndarray:
        """
        From derivatives with respect to the three, [n] each, to those with respect to the outputs, [k, n].
        """
        raise NotImplementedError


class Head(ABC):
    """How a network's outputs make an action distribution."""

    @abstractmethod
    def encode(self, actions: th.Tensor) -> np.ndarray:
        """Actions as :meth:`evaluate` takes them, sample by sample: [n, k]."""

    @abstractmethod
    def encode_old(self, parameters: th.Tensor) -> np.ndarray:
        """Old distribution parameters [n, n_parameters] as :meth:`evaluate` takes them: [n, ...]."""

    @abstractmethod
    def evaluate(
        self, outputs: np.ndarray, actions: np.ndarray, old: np.ndarray | None, needs: Collection[str]
    ) -> Evaluated:
        """
        :param outputs: [k, n]
        :param actions: :meth:`encode` of them, [k, n]
        :param old: :meth:`encode_old` of the old distribution, [..., n], if its KL divergence is needed
        :param needs: some of "log_prob", "entropy", "kl"
        """

    @abstractmethod
    def metric(self, outputs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """
        The product with the distribution's Fisher information matrix with respect to the outputs, sample by
        sample: a map from [k, n] to [k, n].
        """

    @abstractmethod
    def parameters(self, outputs: np.ndarray) -> np.ndarray:
        """Flat distribution parameters, sample by sample: outputs [n, k] to [n, n_parameters]."""

    @abstractmethod
    def noise(self, *shape: int) -> np.ndarray:
        """Noise for :meth:`sample`, [*shape, k], from torch's generator."""

    @abstractmethod
    def sample(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Actions as the policy returns them, from outputs and noise of shape [n, k]."""


class GaussianHead(Head):
    """
    Independent Gaussians whose means the network puts out.

    :param log_std: the logarithms of the standard deviations, [k]
    :param gradient: where a pull-back leaves the derivative with respect to them
    """

    def __init__(self, log_std: np.ndarray, gradient: np.ndarray) -> None:
        self.log_std = log_std
        self.gradient = gradient

    def encode(self, actions: th.Tensor) -> np.ndarray:
        return actions.reshape(len(actions), -1).float().numpy()

    def encode_old(self, parameters: th.Tensor) -> np.ndarray:
        return parameters.float().numpy()

    def evaluate(
        self, outputs: np.ndarray, actions: np.ndarray, old: np.ndarray | None, needs: Collection[str]
    ) -> Evaluated:
        return _EvaluatedGaussian(self, outputs, actions, old, needs)

    def metric(self, outputs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        precision = np.exp(-2.0 * self.log_std)[:, None]
        return lambda tangent: tangent * precision

    def parameters(self, outputs: np.ndarray) -> np.ndarray:
        return np.concatenate([outputs, np.broadcast_to(self.log_std, outputs.shape)], axis=-1)

    def noise(self, *shape: int) -> np.ndarray:
        return th.randn(*shape, len(self.log_std)).numpy()

    def sample(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return outputs + np.exp(self.log_std) * noise


class _EvaluatedGaussian(Evaluated):
    def __init__(
        self,
        head: GaussianHead,
        mean: np.ndarray,
        actions: np.ndarray,
        old: np.ndarray | None,
        needs: Collection[str],
    ) -> None:
        self._head = head
        log_std = head.log_std
        k, n = mean.shape
        self._inverse = np.exp(-log_std)[:, None]
        if "log_prob" in needs:
            self._z = z = actions - mean
            z *= self._inverse
            self.log_prob = np.einsum("kn,kn->n", z, z)
            self.log_prob *= -0.5
            self.log_prob -= log_std.sum() + np.float32(k * HALF_LOG_2_PI)
        if "entropy" in needs:
            self.entropy = np.full(n, log_std.sum() + np.float32(k * 0.5 * LOG_2_PI_E), np.float32)
        if "kl" in needs and old is not None:
            change = log_std[:, None] - old[k:]
            self._distance = (mean - old[:k]) * self._inverse
            # expm1 keeps the digits of a small change
            self._shrinkage = np.expm1(-2.0 * change) + self._distance**2
            self.kl = (change + 0.5 * self._shrinkage).sum(axis=0)

    def pull_back(
        self, log_prob: np.ndarray | None, entropy: np.ndarray | None, kl: np.ndarray | None
    ) -> np.ndarray:
        gradient = self._head.gradient
        slope: np.ndarray | None = None
        gradient.fill(0.0)
        if log_prob is not None:
            z = self._z
            slope = z * log_prob
            # sum of g (z^2 - 1)
            np.einsum("kn,kn->k", slope, z, out=gradient)
            gradient -= log_prob.sum()
            slope *= self._inverse
        if entropy is not None:
            gradient += entropy.sum()
        if kl is not None:
            pull = self._distance * kl
            pull *= self._inverse
            slope = pull if slope is None else slope + pull
            gradient -= self._shrinkage @ kl
        return np.zeros_like(self._z) if slope is None else slope


class CategoricalHead(Head):
    """
    Independent categorical distributions whose logits the network puts out, one after another.

    :param sizes: number of choices of each
    :param flat: whether an action is a number (Discrete) and not a vector (MultiDiscrete)
    """

    def __init__(self, sizes: list[int], flat: bool) -> None:
        ends = np.cumsum(sizes).tolist()
        self._flat = flat
        self._sizes = sizes
        self.parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    def encode(self, actions: th.Tensor) -> np.ndarray:
        columns = actions.long().reshape(len(actions), -1).unbind(1)
        hot = [F.one_hot(column, size) for column, size in zip(columns, self._sizes, strict=True)]
        return th.cat(hot, dim=1).float().numpy()

    def encode_old(self, parameters: th.Tensor) -> np.ndarray:
        return th.cat([F.log_softmax(part, -1) for part in parameters.split(self._sizes, -1)], -1).numpy()

    def evaluate(
        self, outputs: np.ndarray, actions: np.ndarray, old: np.ndarray | None, needs: Collection[str]
    ) -> Evaluated:
        return _EvaluatedCategorical(self, outputs, actions, old, needs)

    def metric(self, outputs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        probs = np.exp(self.parameters(outputs.T)).T.copy()

        def product(tangent: np.ndarray) -> np.ndarray:
            weighted = probs * tangent
            for part in self.parts:
                weighted[part] -= probs[part] * np.add.reduce(weighted[part])
            return weighted

        return product

    def parameters(self, outputs: np.ndarray) -> np.ndarray:
        if len(self.parts) == 1:
            return th.log_softmax(th.from_numpy(outputs), -1).numpy()
        parts = [th.log_softmax(th.from_numpy(outputs[..., part]), -1) for part in self.parts]
        return th.cat(parts, -1).numpy()

    def noise(self, *shape: int) -> np.ndarray:
        # Gumbel noise: the largest of logits + noise is a sample
        exponential = th.empty(*shape, self.parts[-1].stop).exponential_()
        return exponential.clamp_(min=1e-30).log_().neg_().numpy()

    def sample(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        scores = outputs + noise
        if self._flat:
            return scores.argmax(axis=1)
        return np.stack([scores[:, part].argmax(axis=1) for part in self.parts], axis=1)


class _EvaluatedCategorical(Evaluated):
    def __init__(
        self,
        head: CategoricalHead,
        logits: np.ndarray,
        actions: np.ndarray,
        old: np.ndarray | None,
        needs: Collection[str],
    ) -> None:
        self._actions, self._parts = actions, head.parts
        self._probs = probs = np.empty_like(logits)
        self._log_probs = log_probs = np.empty_like(logits)
        for part in head.parts:
            z, p, log_p = logits[part], probs[part], log_probs[part]
            np.subtract(z, np.maximum.reduce(z), log_p)
            np.exp(log_p, p)
            total = np.add.reduce(p)
            np.divide(p, total, p)
            np.subtract(log_p, np.log(total), log_p)
        if "log_prob" in needs:
            self.log_prob = np.einsum("kn,kn->n", actions, log_probs)
        if "entropy" in needs:
            self.entropy = -np.einsum("kn,kn->n", probs, log_probs)
        if "kl" in needs and old is not None:
            self._old_probs = np.exp(old)
            self.kl = np.add.reduce(self._old_probs * (old - log_probs))

    def pull_back(
        self, log_prob: np.ndarray | None, entropy: np.ndarray | None, kl: np.ndarray | None
    ) -> np.ndarray:
        probs = self._probs
        slope = np.zeros_like(probs) if log_prob is None else (self._actions - probs) * log_prob
        if entropy is not None:
            for part in self._parts:
                p, log_p = probs[part], self._log_probs[part]
                weighted = p * log_p
                slope[part] -= (weighted - p * np.add.reduce(weighted)) * entropy
        if kl is not None:
            slope += (probs - self._old_probs) * kl
        return slope


class BernoulliHead(Head):
    """
    Independent binary actions whose logits the network puts out.

    :param size: number of them
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def encode(self, actions: th.Tensor) -> np.ndarray:
        return actions.reshape(len(actions), -1).float().numpy()

    def encode_old(self, parameters: th.Tensor) -> np.ndarray:
        return parameters.float().numpy()

    def evaluate(
        self, outputs: np.ndarray, actions: np.ndarray, old: np.ndarray | None, needs: Collection[str]
    ) -> Evaluated:
        return _EvaluatedBernoulli(outputs, actions, old, needs)

    def metric(self, outputs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        probs = th.sigmoid(th.from_numpy(outputs)).numpy()
        variance = probs * (1.0 - probs)
        return lambda tangent: tangent * variance

    def parameters(self, outputs: np.ndarray) -> np.ndarray:
        return outputs.copy()

    def noise(self, *shape: int) -> np.ndarray:
        # logistic noise: an action is taken where logit + noise is positive
        return th.rand(*shape, self._size).clamp_(1e-7, 1 - 1e-7).logit_().numpy()

    def sample(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return (outputs + noise > 0.0).astype(np.float32)


class _EvaluatedBernoulli(Evaluated):
    def __init__(
        self, logits: np.ndarray, actions: np.ndarray, old: np.ndarray | None, needs: Collection[str]
    ) -> None:
        self._logits, self._actions = logits, actions
        tensor = th.from_numpy(np.ascontiguousarray(logits))
        self._probs = th.sigmoid(tensor).numpy()
        log_one = F.logsigmoid(tensor).numpy()
        log_zero = log_one - logits  # log sigmoid(-x) = log sigmoid(x) - x
        if "log_prob" in needs:
            self.log_prob = np.add.reduce(log_zero + actions * logits)
        if "entropy" in needs:
            self.entropy = -np.add.reduce(log_zero + self._probs * logits)
        if "kl" in needs and old is not None:
            old_tensor = th.from_numpy(np.ascontiguousarray(old))
            self._old_probs = th.sigmoid(old_tensor).numpy()
            change = F.logsigmoid(old_tensor).numpy() - log_one
            self.kl = np.add.reduce(
                self._old_probs * change + (1.0 - self._old_probs) * (change - old + logits)
            )

    def pull_back(
        self, log_prob: np.ndarray | None, entropy: np.ndarray | None, kl: np.ndarray | None
    ) -> np.ndarray:
        probs = self._probs
        slope = np.zeros_like(probs) if log_prob is None else (self._actions - probs) * log_prob
        if entropy is not None:
            slope -= self._logits * probs * (1.0 - probs) * entropy
        if kl is not None:
            slope += (probs - self._old_probs) * kl
        return slope
