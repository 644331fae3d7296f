"""Proximal policy optimization with an adaptive KL penalty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trust.algorithms.epochs import Epoch
from sb3_trust.algorithms.minibatch import MinibatchAlgorithm
from sb3_trust.algorithms.ppo import PPO
from sb3_trust.algorithms.statistics import MinibatchStatistics, PPOPenaltyStatistics, UpdateStatistics
from sb3_trust.engines.batch import Batch
from sb3_trust.errors import check_number, check_optional, reject
from sb3_trust.numerics.kl_coefficient import next_coefficient, preset
from sb3_trust.numerics.losses import PenalizedSurrogateLoss
from sb3_trust.numerics.schedules import check_target, value_at

DEFAULT_TARGET_KL = 0.01


def only_of_ppo() -> dict[str, Any]:
    """What a model of PPO holds and one of PPOPenalty does not, with its default."""
    own = signature(PPOPenalty).parameters
    arguments = {name: p.default for name, p in signature(PPO).parameters.items() if name not in own}
    return {**arguments, "current_learning_rate": None}


class PPOPenalty(MinibatchAlgorithm):
    r"""
    Proximal policy optimization with an adaptive KL penalty (Schulman et al. 2017, https://arxiv.org/abs/1707.06347,
    section 4; Heess et al. 2017):

    .. math:: \max_\theta \; E[r A - \beta KL(\pi_{old} \| \pi_\theta) - c_v (V - R)^2 + c_e H]
        - c_h \max(0, E[KL] - 2 t)^2

    The KL divergence is exact, not sampled, and summed over action dimensions. There is no clipping. After
    each rollout beta moves, by ``kl_rule``, so that the KL divergence of the final policy from the rollout's
    comes to ``target_kl``.

    Arguments as for :class:`~sb3_trust.PPO` less its clip ranges, and:

    :param target_kl: the KL divergence of an update that beta aims at, usually 0.003 to 0.03; a number, a
        function of the remaining progress, or a string such as "lin_0.02". At 0 the policy takes no step
    :param init_kl_coef: beta for the first update
    :param kl_rule: how beta moves. "paper": doubled above 1.5 times the target, halved below the target /
        1.5; "modular_rl": times 1.5 above 1.3, divided by 1.5 below 0.7, with the hinge; "proportional": by
        up to 20% in proportion to the relative error (Ziegler et al. 2019); "fixed": not at all; or a dict
        with any of ``high, low`` (thresholds in units of the target), ``increase, decrease`` (factors),
        ``min, max`` (bounds)
    :param hinge_coef: weight of the hinge on a KL divergence above twice the target; ``None``: the rule's,
        1000 for "modular_rl" and 0 for the others
    :param max_kl: and ``recompute_advantages``, ``critic_learning_rate``, ``log_std_bounds``,
        ``action_net_gain``: as for :class:`~sb3_trust.PPO`; beta moves by the KL divergence before the policy
        is taken back
    :raises InvalidArgument: if an argument cannot work
    """

    statistics_class: ClassVar[type[MinibatchStatistics]] = PPOPenaltyStatistics
    mark = "init_kl_coef"

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        target_kl: float | str | Schedule = DEFAULT_TARGET_KL,
        init_kl_coef: float = 1.0,
        kl_rule: str | Mapping[str, float] = "paper",
        hinge_coef: float | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        max_kl: float | None = None,
        recompute_advantages: bool = False,
        critic_learning_rate: float | str | Schedule | None = None,
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
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
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
            max_kl=max_kl,
            recompute_advantages=recompute_advantages,
            critic_learning_rate=critic_learning_rate,
            log_std_bounds=log_std_bounds,
            action_net_gain=action_net_gain,
            engine=engine,
        )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.init_kl_coef = init_kl_coef
        self.kl_rule = kl_rule
        self.hinge_coef = hinge_coef
        # beta itself; saved apart from the argument that it starts from
        self.kl_coef = init_kl_coef
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_target("target_kl", self.target_kl)
        check_number("init_kl_coef", self.init_kl_coef)
        check_optional(check_number, "hinge_coef", self.hinge_coef)
        rule = preset(self.kl_rule).rule
        if not rule.min <= self.init_kl_coef <= rule.max:
            allowed = f"within the bounds of `kl_rule`, [{rule.min:g}, {rule.max:g}]"
            raise reject("init_kl_coef", self.init_kl_coef, allowed)

    def _adopt(self, overridden: frozenset[str]) -> None:
        if "init_kl_coef" in overridden:
            self.kl_coef = self.init_kl_coef
        if self.__dict__.pop("clip_range", None) is not None:
            # a PPO's, SB3's or ours
            lost = [name for name, off in only_of_ppo().items() if self.__dict__.pop(name, off) != off]
            if "target_kl" not in overridden:
                self.target_kl = DEFAULT_TARGET_KL  # PPO's is another quantity
            self._said_at_loading(
                f"this is a model of PPO; its {' and '.join(['clip range', *lost])} "
                f"{'are' if lost else 'is'} dropped, and the KL penalty is set to "
                f"target_kl={self.target_kl!r}, init_kl_coef={self.init_kl_coef!r}, "
                f"kl_rule={self.kl_rule!r}, hinge_coef={self.hinge_coef!r} (pass others to `load`)"
            )
        super()._adopt(overridden)

    def _current_target_kl(self) -> float:
        return value_at("target_kl", self.target_kl, self._current_progress_remaining)

    def _objective(self) -> PenalizedSurrogateLoss:
        return PenalizedSurrogateLoss(
            kl_coef=self.kl_coef,
            target_kl=self._current_target_kl(),
            hinge_coef=preset(self.kl_rule).hinge_coef if self.hinge_coef is None else self.hinge_coef,
            vf_coef=self.vf_coef,
            ent_coef=self.ent_coef,
        )

    def _update(self, batch: Batch) -> MinibatchStatistics:
        if self._current_target_kl() > 0:
            return super()._update(batch)
        value_loss = self._fit_critic(batch, self.n_epochs, self.batch_size, self.max_grad_norm)
        self._n_updates += self.n_epochs
        return PPOPenaltyStatistics(value_loss=value_loss, kl_coef=self.kl_coef)

    def _summarize(self, epochs: list[Epoch]) -> MinibatchStatistics:
        statistics = super()._summarize(epochs)
        if isinstance(statistics, PPOPenaltyStatistics):
            statistics.kl_coef = self.kl_coef
        return statistics

    def _after_update(self, statistics: UpdateStatistics, n_samples: int) -> None:
        super()._after_update(statistics, n_samples)
        if statistics.target_kl > 0 and isinstance(statistics, MinibatchStatistics):
            rule = preset(self.kl_rule).rule
            self.kl_coef = next_coefficient(
                rule, self.kl_coef, statistics.reached_kl, statistics.target_kl, n_samples
            )
