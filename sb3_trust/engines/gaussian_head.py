"""Gaussian actions in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import numpy as np
import torch as th

from sb3_trust.engines.distributions import LOG_2_PI_E
from sb3_trust.engines.heads import Evaluated, Head

HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


class GaussianHead(Head):
    """
    Independent Gaussians whose means the network puts out.

    :param log_std: the logarithms of the standard deviations, [k]
    :param gradient: where a pull-back leaves the derivative with respect to them
    """

    def __init__(self, log_std: np.ndarray, gradient: np.ndarray) -> None:
        self.log_std = log_std
        self.gradient = gradient

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
        k, n = self._shape = mean.shape
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
        return np.zeros(self._shape, np.float32) if slope is None else slope
