"""Policy gradient with a learned baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trust.algorithms.epochs import run_epoch
from sb3_trust.algorithms.separate_critic import SeparateCriticAlgorithm
from sb3_trust.algorithms.statistics import REINFORCEStatistics, UpdateStatistics
from sb3_trust.engines.batch import Batch
from sb3_trust.errors import check_integer, check_number
from sb3_trust.numerics.losses import PolicyGradientLoss


class REINFORCE(SeparateCriticAlgorithm):
    r"""
    REINFORCE (Williams 1992, "Simple statistical gradient-following algorithms for connectionist
    reinforcement learning") with a learned baseline:

    .. math:: \nabla_\theta \, E[\log \pi_\theta(a|s) A] + c_e \nabla_\theta E[H]

    One step of the optimizer on the whole rollout. With more of them the ratio of the policies corrects for
    the actions being the old policy's, and nothing holds it: what TRPO and PPO were invented to guard. How
    far the policy has moved is logged as ``train/kl``.

    Arguments as for :class:`~sb3_trust.TRPO`, less those of the natural gradient and the line search, and:

    :param learning_rate: of the policy's optimizer; the critic's too, unless it has its own
    :param n_gradient_steps: steps on each rollout
    :param max_grad_norm: largest global norm of the policy's gradient; ``math.inf``: any
    :param gae_lambda: 1: the returns less the baseline, as in the paper
    :raises InvalidArgument: if an argument cannot work
    """

    statistics_class: ClassVar[type[UpdateStatistics]] = REINFORCEStatistics
    mark = "n_gradient_steps"
    has_peer = False

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 128,
        gamma: float = 0.99,
        n_gradient_steps: int = 1,
        n_critic_updates: int = 10,
        gae_lambda: float = 1.0,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        max_grad_norm: float = math.inf,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        ent_coef: float = 0.0,
        critic_learning_rate: float | str | Schedule | None = None,
        critic_max_grad_norm: float = math.inf,
        log_std_bounds: Sequence[float] | None = None,
        action_net_gain: float | None = None,
        engine: str = "auto",
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            rollout_buffer_class=rollout_buffer_class,
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            device=device,
            seed=seed,
            batch_size=batch_size,
            n_critic_updates=n_critic_updates,
            normalize_advantage=normalize_advantage,
            critic_max_grad_norm=critic_max_grad_norm,
            max_grad_norm=max_grad_norm,
            critic_learning_rate=critic_learning_rate,
            log_std_bounds=log_std_bounds,
            action_net_gain=action_net_gain,
            engine=engine,
        )
        self.n_gradient_steps = n_gradient_steps
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_integer("n_gradient_steps", self.n_gradient_steps, 1)
        check_number("max_grad_norm", self.max_grad_norm, open_minimum=True, allow_infinity=True)

    def _policy_step(self, batch: Batch, statistics: REINFORCEStatistics) -> None:
        loss = PolicyGradientLoss(self.ent_coef)
        options = self._descent_options(self.max_grad_norm)
        with self._policy_engine().descent(batch, options) as descent:
            epochs = [run_epoch(descent, loss, batch, len(batch)) for _ in range(self.n_gradient_steps)]
        losses = th.stack([epoch.values[0].squeeze() for epoch in epochs])
        norms = th.stack([th.as_tensor(epoch.gradient_norms[0]) for epoch in epochs])
        statistics.policy_loss = losses.mean(dtype=th.float64).item()
        statistics.gradient_norm = norms.mean(dtype=th.float64).item()
