"""The interface between an algorithm and the way a policy is evaluated and differentiated."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trust.engines.batch import Batch
from sb3_trust.engines.distributions import DistributionFamily, family_of
from sb3_trust.numerics.objectives import PolicyTerms, RolloutTerms

ENGINES = ("auto", "autograd", "closed_form")


@dataclass(frozen=True)
class DescentOptions:
    """
    What steps of the optimizer keep to.

    :param max_grad_norm: a gradient with a larger global norm is scaled down to it
    :param critic_learning_rate: learning rate of what the value alone depends on; ``None``: the optimizer's
    :param log_std_bounds: the policy's ``log_std`` is brought back between these after each step
    :param auxiliary_loss: of a minibatch; its gradient is added to that of the objective
    """

    max_grad_norm: float = math.inf
    critic_learning_rate: float | None = None
    log_std_bounds: tuple[float, float] | None = None
    auxiliary_loss: Callable[[Batch], th.Tensor] | None = None


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
    def gradient(self, derivatives: PolicyTerms, parameters: list[th.nn.Parameter]) -> list[th.Tensor]:
        """The gradient with respect to ``parameters``, one tensor of its shape each."""


class Descent(ABC):
    """
    Steps of the policy's optimizer along gradients of minibatches.

    A context: what the steps make of the parameters and of the optimizer's state is in the policy when the
    context is left in good order, and may be there or not before.
    """

    def __enter__(self) -> Descent:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        return None

    def prepared(self, batch: Batch) -> Batch:
        """The same samples, with what these steps leave alone computed ahead; for this descent only."""
        return batch

    def synchronize(self) -> None:
        """Have the policy hold what the steps so far have made of its parameters."""
        return None

    @abstractmethod
    def use_learning_rate(self, rate: float) -> None:
        """
        Step at another rate from now on, and leave the optimizer with it; ``critic_learning_rate`` stays.
        """

    @abstractmethod
    def minibatches(self, batch: Batch, size: int, needs: Collection[str]) -> Iterable[RolloutTerms]:
        """A batch in pieces of a size, in order, the last one perhaps smaller."""

    @abstractmethod
    def evaluate(self, minibatch: RolloutTerms) -> PolicyTerms:
        """What the policy says about one of these pieces: the terms that they were asked for."""

    @abstractmethod
    def step(self, derivatives: PolicyTerms) -> th.Tensor | float:
        """
        A step of the optimizer, given the derivatives of what is to be minimised with respect to the terms
        evaluated last.

        :return: the gradient's norm before it was clipped
        """


class Stepper(ABC):
    """
    Acts in one rollout, and writes to the rollout buffer what the policy has to say about it.

    :param policy: acts
    :param buffer: the rollout buffer
    """

    def __init__(self, policy: ActorCriticPolicy, buffer: RolloutBuffer) -> None:
        self.policy = policy
        self.buffer = buffer

    @abstractmethod
    def act(self, observations: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
        """One step of all environments: actions as the policy returns them."""

    @abstractmethod
    def names(self) -> dict[str, Any]:
        """SB3's names for what the last step computed: ``obs_tensor``, ``values``, ``log_probs``."""

    @abstractmethod
    def bootstrap(
        self, rewards: np.ndarray, index: int, observation: np.ndarray | dict[str, np.ndarray], gamma: float
    ) -> None:
        """
        Add the discounted value of an environment's terminal observation to its reward, now or by the time
        that the rollout ends.
        """

    @abstractmethod
    def add(
        self,
        observations: np.ndarray | dict[str, np.ndarray],
        actions: np.ndarray,
        rewards: np.ndarray,
        episode_starts: np.ndarray,
    ) -> None:
        """Write a step to the buffer."""

    @abstractmethod
    def finish(self, observations: np.ndarray | dict[str, np.ndarray]) -> th.Tensor:
        """
        Complete the buffer, but for advantages and returns.

        :param observations: those after the last step
        :return: their values, [n_envs, 1]
        """

    def abandon(self) -> None:
        """Complete what the buffer holds of a rollout that was ended early."""
        return None

    @abstractmethod
    def distributions(self) -> th.Tensor:
        """The distribution parameters of all steps, [n_steps, n_envs, n_parameters]."""


class PolicyEngine(ABC):
    """Evaluates and differentiates one policy."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self.family: DistributionFamily = family_of(policy.action_dist)

    @abstractmethod
    def stepper(self, buffer: RolloutBuffer, n_steps: int, watched: bool) -> Stepper:
        """
        A stepper for one rollout.

        :param n_steps: how many steps it will have at most
        :param watched: whether somebody may look at each step, or change the policy between two
        """

    def threads(self) -> AbstractContextManager[None]:
        """A context with the number of threads that this engine is fastest on."""
        return nullcontext()

    @abstractmethod
    def descent(self, batch: Batch, options: DescentOptions, critic_only: bool = False) -> Descent:
        """
        Steps of the policy's optimizer on pieces of a batch.

        :param critic_only: only ``partition(batch).critic_only`` moves
        """

    def prepared(self, batch: Batch) -> Batch:
        """The same samples, in the form that this engine evaluates fastest."""
        return batch

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
    def fisher_vector_product(self, batch: Batch, once: bool = False) -> Callable[[th.Tensor], th.Tensor]:
        """
        The product with the policy's Fisher information matrix, averaged over the batch's states, at the
        present parameters: a map on vectors of shape [n_policy_parameters].

        :param once: it will be used for a single product
        """

    @abstractmethod
    def partition(self, batch: Batch) -> Partition:
        """Which parameters are the policy's and which the critic's alone."""
