"""Proximal policy optimization with a clipped surrogate."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_trust.algorithms.epochs import Epoch, Refusal
from sb3_trust.algorithms.minibatch import MinibatchAlgorithm
from sb3_trust.algorithms.statistics import MinibatchStatistics, PPOStatistics
from sb3_trust.errors import check_number, check_number_or_schedule, check_optional
from sb3_trust.numerics.objectives import (
    ClippedSurrogateLoss,
    PolicyTerms,
    RolloutTerms,
    approximate_kl,
    required,
)


class PPO(MinibatchAlgorithm):
    r"""
    Proximal policy optimization (Schulman et al. 2017, https://arxiv.org/abs/1707.06347), clipped surrogate:

    .. math:: \max_\theta \; E[\min(r A, \mathrm{clip}(r, 1 - \epsilon, 1 + \epsilon) A)
        - c_v (V - R)^2 + c_e H], \qquad r = \pi_\theta(a|s) / \pi_{old}(a|s)

    The constructor is that of ``stable_baselines3.PPO``, and so is the update, to rounding. What is added:
    the exact KL(old || new) of each update in the log, and the roll-back of an update in which something is
    not finite.

    :param policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy" or a policy class
    :param env: the environment, a ``VecEnv`` of several or the id of a registered one
    :param learning_rate: of Adam; a number or a function of the remaining progress, usually 1e-5 to 1e-3
    :param n_steps: steps of each environment in a rollout
    :param batch_size: samples in a minibatch
    :param n_epochs: passes over a rollout, usually 3 to 30
    :param gamma: discount factor
    :param gae_lambda: bias-variance trade-off of the generalized advantage estimator, usually 0.9 to 1
    :param clip_range: epsilon, usually 0.1 to 0.3; a number or a function of the remaining progress;
        ``math.inf`` (``.inf`` in YAML): no clip
    :param clip_range_vf: how far a value may move before it counts as moved no further, in units of the
        reward; ``None``: any
    :param normalize_advantage: normalise the advantages of each minibatch
    :param ent_coef: weight of the entropy bonus, usually 0 to 0.01
    :param vf_coef: weight of the value loss
    :param max_grad_norm: largest global norm of a gradient; ``math.inf``: any
    :param use_sde: generalized state-dependent exploration, for Box actions
    :param sde_sample_freq: steps between new noise matrices; -1: one a rollout
    :param rollout_buffer_class: rollout buffer; ``None``: chosen for the observation space
    :param rollout_buffer_kwargs: its extra arguments
    :param target_kl: end the update once the approximate KL of a minibatch exceeds 1.5 times this; ``None``:
        never
    :param stats_window_size: episodes that the logged means cover
    :param tensorboard_log: directory for TensorBoard; ``None``: off
    :param policy_kwargs: extra arguments of the policy
    :param verbose: 0: silent, 1: information, 2: debugging
    :param seed: of all random generators
    :param device: "auto", "cpu", "cuda", ...
    :param _init_setup_model: build the networks at once
    :param engine: "autograd": the policy's own modules and autograd; "closed_form": two multilayer
        perceptrons on the CPU, in NumPy; "auto": the fastest that is exactly right for the policy
    :raises InvalidArgument: if an argument cannot work
    """

    statistics_class: ClassVar[type[MinibatchStatistics]] = PPOStatistics
    mark = "clip_range"

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
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        *,
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
            engine=engine,
        )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        bounds = {"open_minimum": True, "allow_infinity": True}
        check_number_or_schedule("clip_range", self.clip_range, **bounds)
        check_optional(check_number_or_schedule, "clip_range_vf", self.clip_range_vf, **bounds)
        check_optional(check_number, "target_kl", self.target_kl, open_minimum=True)

    def _setup_model(self) -> None:
        super()._setup_model()
        # as SB3 does it, so that a saved model opens there
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)

    def _current(self, schedule: Any) -> float | None:
        return None if schedule is None else float(schedule(self._current_progress_remaining))

    def _objective(self) -> ClippedSurrogateLoss:
        return ClippedSurrogateLoss(
            clip_range=self._current(self.clip_range),  # type: ignore[arg-type]
            clip_range_vf=self._current(self.clip_range_vf),
            vf_coef=self.vf_coef,
            ent_coef=self.ent_coef,
        )

    def _refusal(self, epoch: int) -> Refusal | None:
        target_kl = self.target_kl
        if target_kl is None:
            return None

        def refuse(terms: PolicyTerms, minibatch: RolloutTerms) -> bool:
            log_ratio = th.as_tensor(required(terms.log_prob) - minibatch.old_log_prob)
            approx_kl = approximate_kl(log_ratio).item()
            stops = approx_kl > 1.5 * target_kl
            if stops and self.verbose >= 1:
                print(f"Early stopping at step {epoch} due to reaching max kl: {approx_kl:.2f}")
            return stops

        return refuse

    def _summarize(self, epochs: list[Epoch]) -> MinibatchStatistics:
        statistics = super()._summarize(epochs)
        if isinstance(statistics, PPOStatistics):
            statistics.clip_range = self._current(self.clip_range) or 0.0
            if self.clip_range_vf is not None:
                statistics.clip_range_vf = self._current(self.clip_range_vf) or 0.0
        return statistics

    def _current_target_kl(self) -> float:
        return math.nan if self.target_kl is None else self.target_kl
