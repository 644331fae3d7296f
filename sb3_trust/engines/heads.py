"""
The action distributions on NumPy arrays: log-probability, entropy, KL divergence with their derivatives, and
sampling, as functions of what a network puts out.

Arrays are feature-major: outputs [k, n], per-sample quantities [n]. The same quantities, differentiated by
autograd, are in :mod:`sb3_trust.engines.distributions`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import ClassVar

import numpy as np
import torch as th


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
    """
    How a network's outputs make an action distribution.

    :cvar action_dtype: of :meth:`sample`
    """

    action_dtype: ClassVar[type[np.generic]] = np.float32

    def encode(self, actions: th.Tensor) -> np.ndarray:
        """Actions as :meth:`evaluate` takes them, sample by sample: [n, k]."""
        return actions.reshape(len(actions), -1).float().numpy()

    def encode_old(self, parameters: th.Tensor) -> np.ndarray:
        """Old distribution parameters [n, n_parameters] as :meth:`evaluate` takes them: [n, ...]."""
        return parameters.float().numpy()

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
