"""Proximal policy optimization with a clipped surrogate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate

from sb3_trust.algorithms.epochs import Epoch, Refusal
from sb3_trust.algorithms.minibatch import MinibatchAlgorithm
from sb3_trust.algorithms.ppo_arguments import check_ppo_arguments
from sb3_trust.algorithms.statistics import MinibatchStatistics, PPOStatistics, UpdateStatistics
from sb3_trust.engines.base import Descent
from sb3_trust.engines.batch import Batch
from sb3_trust.numerics.kl_coefficient import next_learning_rate
from sb3_trust.numerics.losses import ClippedSurrogateLoss, SurrogateLoss
from sb3_trust.numerics.objectives import Objective, PolicyTerms, RolloutTerms, approximate_kl, required


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
    :param value_clip: what ``clip_range_vf`` does. "sb3": the squared error with the clip; "max": the larger
        of those with and without it
    :param dual_clip: a sample of negative advantage counts at most this many times its advantage (Ye et al.
        2020, https://arxiv.org/abs/1912.09729), usually 3; ``None``: off
    :param kl_stop: what ``target_kl`` bounds. "approx": a minibatch's sample estimate, before its step;
        "exact": the exact KL(old || new) of the rollout, after each epoch. Either ends the update above 1.5
        times ``target_kl``
    :param max_kl: take the policy back along the segment to the old parameters, after the last epoch, until
        its exact KL(old || new) is at most this; ``None``: off
    :param recompute_advantages: estimate the advantages anew before each epoch but the first, from the critic
        as it is
    :param learning_rate_kl_target: adapt the learning rate to this KL(old || new): divided by 1.5 above twice
        the target, multiplied by 1.5 below half of it, within [1e-5, 1e-2]; usually 0.01; ``None``: off
    :param learning_rate_kl_interval: when: after each "rollout" or each "epoch"
    :param critic_learning_rate: of what the value alone depends on; a number, a function of the remaining
        progress or a string such as "lin_3e-4"; ``None``: ``learning_rate``
    :param log_std_bounds: a Gaussian's ``log_std`` is kept between these two, such as (-5, 2); ``None``:
        anywhere
    :param action_net_gain: gain of the orthogonal initialization of the policy's last layer, usually 0.01
        to 1; ``None``: SB3's, 0.01
    :param objective: a policy loss in place of the clipped surrogate, in the form of
        :class:`sb3_trust.numerics.objectives.Objective`; value loss and entropy bonus are added to it, and
        ``clip_range`` only says what ``clip_fraction`` counts
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
        value_clip: str = "sb3",
        dual_clip: float | None = None,
        kl_stop: str = "approx",
        max_kl: float | None = None,
        recompute_advantages: bool = False,
        learning_rate_kl_target: float | None = None,
        learning_rate_kl_interval: str = "rollout",
        critic_learning_rate: float | str | Schedule | None = None,
        log_std_bounds: Sequence[float] | None = None,
        action_net_gain: float | None = None,
        objective: Objective | None = None,
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
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.value_clip = value_clip
        self.dual_clip = dual_clip
        self.kl_stop = kl_stop
        self.learning_rate_kl_target = learning_rate_kl_target
        self.learning_rate_kl_interval = learning_rate_kl_interval
        self.objective = objective
        # the adapted learning rate; saved apart from the argument that it starts from
        self.current_learning_rate: float | None = None
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_ppo_arguments(self)

    def _setup_model(self) -> None:
        super()._setup_model()
        # as SB3 does it, so that a saved model opens there
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)
        if self.learning_rate_kl_target is not None and self.current_learning_rate is None:
            self.current_learning_rate = float(self.lr_schedule(1.0))

    def _adopt(self, overridden: frozenset[str]) -> None:
        super()._adopt(overridden)
        if {"learning_rate", "learning_rate_kl_target"} & overridden:
            self.current_learning_rate = None

    def _update_learning_rate(self, optimizers: Any) -> None:
        if self.learning_rate_kl_target is None or self.current_learning_rate is None:
            super()._update_learning_rate(optimizers)
            return
        self.logger.record("train/learning_rate", self.current_learning_rate)
        update_learning_rate(self.policy.optimizer, self.current_learning_rate)

    def _current(self, schedule: Any) -> float | None:
        return None if schedule is None else float(schedule(self._current_progress_remaining))

    def _objective(self) -> Objective:
        common: dict[str, Any] = {
            "clip_range": self._current(self.clip_range),
            "clip_range_vf": self._current(self.clip_range_vf),
            "larger_value_loss": self.value_clip == "max",
            "vf_coef": self.vf_coef,
            "ent_coef": self.ent_coef,
        }
        if self.objective is not None:
            return SurrogateLoss(surrogate=self.objective, **common)
        return ClippedSurrogateLoss(dual_clip=self.dual_clip, **common)

    def _refusal(self, epoch: int) -> Refusal | None:
        target_kl = self.target_kl
        if target_kl is None or self.kl_stop == "exact":
            return None

        def refuse(terms: PolicyTerms, minibatch: RolloutTerms) -> bool:
            log_ratio = th.as_tensor(required(terms.log_prob) - minibatch.old_log_prob)
            approx_kl = approximate_kl(log_ratio).item()
            stops = approx_kl > 1.5 * target_kl
            if stops and self.verbose >= 1:
                print(f"Early stopping at step {epoch} due to reaching max kl: {approx_kl:.2f}")
            return stops

        return refuse

    def _ends_after(self, epoch: int, descent: Descent, batch: Batch) -> bool:
        stops = self.target_kl is not None and self.kl_stop == "exact"
        target = self.learning_rate_kl_target if self.learning_rate_kl_interval == "epoch" else None
        if not stops and target is None:
            return False
        kl = self._exact_kl(descent, batch)
        if target is not None:
            rate = self.policy.optimizer.param_groups[0]["lr"]
            descent.use_learning_rate(next_learning_rate(rate, kl, target))
        stops = stops and kl > 1.5 * self._current_target_kl()
        if stops and self.verbose >= 1:
            print(f"Early stopping after epoch {epoch} due to reaching max kl: {kl:.2f}")
        return stops

    def _after_update(self, statistics: UpdateStatistics, n_samples: int) -> None:
        super()._after_update(statistics, n_samples)
        target = self.learning_rate_kl_target
        if target is None:
            return
        self.current_learning_rate = rate = self.policy.optimizer.param_groups[0]["lr"]
        if self.learning_rate_kl_interval == "rollout":
            assert isinstance(statistics, MinibatchStatistics)
            self.current_learning_rate = next_learning_rate(rate, statistics.reached_kl, target)

    def _summarize(self, epochs: list[Epoch]) -> MinibatchStatistics:
        statistics = super()._summarize(epochs)
        if isinstance(statistics, PPOStatistics):
            statistics.clip_range = self._current(self.clip_range) or 0.0
            if self.clip_range_vf is not None:
                statistics.clip_range_vf = self._current(self.clip_range_vf) or 0.0
        return statistics

    def _current_target_kl(self) -> float:
        return math.nan if self.target_kl is None else self.target_kl
