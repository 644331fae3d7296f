"""Algorithms that move the policy first, on the whole rollout, and then fit the critic apart from it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from sb3_trust.algorithms.arguments import check_minibatch
from sb3_trust.algorithms.base import TrustRegionAlgorithm
from sb3_trust.algorithms.statistics import UpdateStatistics
from sb3_trust.engines.batch import Batch
from sb3_trust.errors import InvalidArgument, check_integer, check_number
from sb3_trust.numerics.objectives import normalize_advantages


class SeparateCriticAlgorithm(TrustRegionAlgorithm):
    """
    A step of the policy on the whole rollout, then epochs of the critic on minibatches. Policy and critic are
    evaluated in eval mode throughout: no dropout, no moving batch statistics.

    A subclass says how the policy moves.

    :param batch_size: samples in a minibatch of the critic
    :param n_critic_updates: epochs of the critic
    :param normalize_advantage: normalise the advantages of the rollout
    :param critic_max_grad_norm: largest global norm of the critic's gradient; ``math.inf``: any
    """

    def __init__(
        self,
        *args: Any,
        batch_size: int,
        n_critic_updates: int,
        normalize_advantage: bool,
        critic_max_grad_norm: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, vf_coef=0.0, **kwargs)  # the critic is fitted on its own
        self.batch_size = batch_size
        self.n_critic_updates = n_critic_updates
        self.normalize_advantage = normalize_advantage
        self.critic_max_grad_norm = critic_max_grad_norm

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_minibatch(self, self.batch_size, self.normalize_advantage, per_minibatch=False)
        check_integer("n_critic_updates", self.n_critic_updates, 0)
        bounds = {"open_minimum": True, "allow_infinity": True}
        check_number("critic_max_grad_norm", self.critic_max_grad_norm, **bounds)

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.ent_coef > 0 and getattr(self._policy_engine().family, "squashed", False):
            raise InvalidArgument(
                "`ent_coef` must be 0 for a squashed policy, whose entropy has no closed form, "
                f"but got {self.ent_coef!r}"
            )

    @abstractmethod
    def _policy_step(self, batch: Batch, statistics: Any) -> None:
        """Move the policy, and say how in ``statistics``; the advantages are normalised where asked."""

    def _update(self, batch: Batch) -> UpdateStatistics:
        self.policy.set_training_mode(False)
        statistics = self.statistics_class()
        advantages = normalize_advantages(batch.advantages) if self.normalize_advantage else batch.advantages
        if self._policy_engine().partition(batch).policy:  # not all frozen
            self._policy_step(batch.with_advantages(advantages), statistics)
        statistics.value_loss = self._fit_critic(
            batch, self.n_critic_updates, self.batch_size, self.critic_max_grad_norm
        )
        self._n_updates += 1
        return statistics
