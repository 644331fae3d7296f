"""The interface between an algorithm and the way a policy is evaluated and differentiated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trust.engines.batch import Batch, Observations
from sb3_trust.engines.distributions import DistributionFamily, family_of
from sb3_trust.numerics.objectives import PolicyTerms

ENGINES = ("auto", "autograd")


@dataclass(frozen=True)
class Partition:
    """
    A policy's trainable parameters, told apart by what depends on them.

    :param policy: what the action distribution depends on, shared parameters included
    :param critic_only: what the value depends on and the action distribution does not
    """

    policy: list[th.nn.Parameter]
    critic_only: list[th.nn.Parameter]


class Evaluation(ABC):
    """What a policy says about a batch, and the way back from there to its parameters."""

    terms: PolicyTerms

    @abstractmethod
    def backward(self, derivatives: PolicyTerms) -> None:
        """Add the gradient of what ``derivatives`` belongs to to each parameter's ``.grad``."""

    @abstractmethod
    def gradient(self, derivatives: PolicyTerms, parameters: list[th.nn.Parameter]) -> list[th.Tensor]:
        """The gradient with respect to ``parameters``, one tensor of its shape each."""


class Stepper(ABC):
    """Acts in the rollout loop."""

    @abstractmethod
    def act(
        self, observations: np.ndarray | dict[str, np.ndarray]
    ) -> tuple[Observations, th.Tensor, th.Tensor, th.Tensor]:
        """
        One step of all environments.

        :return: observations as tensors, actions, values, log-probabilities
        """

    @abstractmethod
    def values(self, observations: np.ndarray | dict[str, np.ndarray]) -> th.Tensor:
        """Values of a batch of observations, [n, 1]."""

    @abstractmethod
    def terminal_value(self, observation: np.ndarray | dict[str, np.ndarray]) -> th.Tensor:
        """Value of one environment's terminal observation, [1]."""

    @abstractmethod
    def finish(self) -> th.Tensor:
        """
        Distribution parameters of all steps since the stepper was made, [n_steps, n_envs, n_parameters].
        """


class PolicyEngine(ABC):
    """Evaluates and differentiates one policy."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self.family: DistributionFamily = family_of(policy.action_dist)

    @abstractmethod
    def stepper(self) -> Stepper:
        """A stepper for one rollout."""

    @abstractmethod
    def evaluate(self, batch: Batch, needs: Collection[str]) -> Evaluation:
        """Evaluate the policy on a batch; ``needs`` names the fields of ``PolicyTerms`` that are wanted."""

    @abstractmethod
    def measure(self, batch: Batch, needs: Collection[str]) -> PolicyTerms:
        """As :meth:`evaluate`, without a way back. The KL divergence comes in float64."""

    @abstractmethod
    def distribution_parameters(self, batch: Batch) -> th.Tensor:
        """
        Flat parameters of the action distribution at each state, [n, n_parameters], without gradient.
        """

    @abstractmethod
    def fisher_vector_product(self, batch: Batch) -> Callable[[th.Tensor], th.Tensor]:
        """
        The product with the policy's Fisher information matrix, averaged over the batch's states, at the
        present parameters: a map on vectors of shape [n_policy_parameters].
        """

    @abstractmethod
    def partition(self, batch: Batch) -> Partition:
        """Which parameters are the policy's and which the critic's alone."""
