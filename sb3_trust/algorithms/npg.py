"""Natural policy gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trust.algorithms.natural_policy import NaturalGradientAlgorithm
from sb3_trust.algorithms.statistics import NaturalGradientStatistics, UpdateStatistics
from sb3_trust.engines.batch import Batch
from sb3_trust.engines.vectors import assign
from sb3_trust.errors import check_number, check_optional
from sb3_trust.numerics.objectives import SurrogateObjective


class NPG(NaturalGradientAlgorithm):
    r"""
    Natural policy gradient (Kakade 2001, "A Natural Policy Gradient"):

    .. math:: \theta \leftarrow \theta + \beta F^{-1} g, \qquad \beta = \sqrt{2 \delta / x^T F x}
        \text{ for } x = F^{-1} g

    with the policy gradient g and the Fisher matrix F: TRPO without its line search. Nothing checks how far
    the policy has moved; ``train/kl`` says it, and ``target_kl`` is what the quadratic model promises.

    Arguments as for :class:`~sb3_trust.TRPO`, less those of the line search, and:

    :param target_kl: delta, the length of the step in the quadratic model's KL divergence; a number, a
        function of the remaining progress, or a string such as "lin_0.02". At 0 the policy takes no step
    :param step_size: beta itself, the same for every update; ``None``: from ``target_kl``, which otherwise
        counts for nothing
    :raises InvalidArgument: if an argument cannot work
    """

    statistics_class: ClassVar[type[UpdateStatistics]] = NaturalGradientStatistics
    mark = "step_size"
    has_peer = False

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 2048,
        batch_size: int = 128,
        gamma: float = 0.99,
        cg_max_steps: int = 15,
        cg_damping: float = 0.1,
        n_critic_updates: int = 10,
        gae_lambda: float = 0.95,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        normalize_advantage: bool = True,
        target_kl: float | str | Schedule = 0.01,
        sub_sampling_factor: int = 1,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        ent_coef: float = 0.0,
        step_size: float | None = None,
        cg_tolerance: float = 1e-4,
        max_chunk: int | None = None,
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
            target_kl=target_kl,
            cg_max_steps=cg_max_steps,
            cg_damping=cg_damping,
            cg_tolerance=cg_tolerance,
            sub_sampling_factor=sub_sampling_factor,
            max_chunk=max_chunk,
            critic_learning_rate=critic_learning_rate,
            log_std_bounds=log_std_bounds,
            action_net_gain=action_net_gain,
            engine=engine,
        )
        self.step_size = step_size
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_optional(check_number, "step_size", self.step_size, open_minimum=True)

    def _current_target_kl(self) -> float:
        return super()._current_target_kl() if self.step_size is None else math.nan

    def _policy_step(self, batch: Batch, statistics: NaturalGradientStatistics) -> None:
        target_kl = self._current_target_kl()
        if target_kl == 0:
            return
        surrogate = SurrogateObjective(self.ent_coef)
        natural = self._natural_gradient(batch, surrogate, statistics)
        direction = natural.direction(self.cg_damping, self.cg_max_steps, self.cg_tolerance)
        if direction is None:
            return
        beta = self.step_size
        if beta is None:
            beta = (2 * target_kl / direction.curvature) ** 0.5
        step, statistics.predicted_kl = natural.step(direction, beta)
        assign(natural.parameters, natural.origin + step)
        statistics.step_norm = step.norm().item()
        terms = self._policy_engine().measure(batch, surrogate.needs)
        statistics.policy_objective = surrogate(terms, batch).value.item()
