"""Trust region policy optimization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_trust.algorithms.constrained_step import ConstrainedStep
from sb3_trust.algorithms.natural_policy import NaturalGradientAlgorithm
from sb3_trust.algorithms.statistics import TRPOStatistics, UndoneUpdate, UpdateStatistics
from sb3_trust.engines.batch import Batch
from sb3_trust.errors import check_choice, check_integer, check_number, reject
from sb3_trust.numerics.damping import MAX_DAMPING, MAX_RETRIES, RETRY_FACTOR, next_damping
from sb3_trust.numerics.objectives import SurrogateObjective

DAMPING_RULES = ("fixed", "adaptive")
KL_STATISTICS = ("mean", "max")
# the KL divergence of a policy from itself, evaluated in float32 in another batch
KL_ROUNDING = 1e-9


class TRPO(NaturalGradientAlgorithm):
    r"""
    Trust region policy optimization (Schulman et al. 2015, https://arxiv.org/abs/1502.05477):

    .. math:: \max_\theta \; E[r A] + c_e H \quad \text{s.t.} \quad E[KL(\pi_{old} \| \pi_\theta)] \le \delta,
        \qquad r = \pi_\theta(a|s) / \pi_{old}(a|s)

    The constraint is the exact KL divergence, summed over action dimensions and averaged over the rollout's
    states. A step that breaks it, or does not improve the surrogate, is not taken: the policy then is
    bit-identical to before. Policy and critic are evaluated in eval mode throughout: no dropout, no moving
    batch statistics.

    The constructor is that of ``sb3_contrib.TRPO``, then ``ent_coef`` and what follows by keyword. contrib
    averages the KL divergence over the dimensions of Box and MultiBinary actions: on d of them its
    ``target_kl`` and ``cg_damping`` are d times smaller than here.

    :param learning_rate: of the critic's optimizer; a number or a function of the remaining progress
    :param batch_size: samples in a minibatch of the critic
    :param cg_max_steps: iterations of the conjugate gradient method, usually 10 to 25
    :param cg_damping: multiple of the identity that is added to the Fisher matrix to solve for the step,
        usually 1e-3 to 1
    :param line_search_shrinking_factor: factor between two points of the line search, in (0, 1)
    :param line_search_max_iter: points of the line search
    :param n_critic_updates: passes of the critic over a rollout
    :param normalize_advantage: normalise the advantages of the rollout
    :param target_kl: the bound, usually 0.005 to 0.1; a number, a function of the remaining progress, or a
        string such as "lin_0.02". At 0 the policy takes no step
    :param sub_sampling_factor: average the Fisher matrix over one in so many states, drawn at random;
        gradient and line search use all (Schulman 2016, Optimizing Expectations, p. 40)
    :param ent_coef: weight of the entropy bonus in the surrogate; 0 for a squashed policy, whose entropy has
        no closed form
    :param accept_ratio: smallest ratio of the surrogate's improvement to what its linear model promises at
        which the line search accepts; 0: any improvement
    :param cg_tolerance: relative residual at which the conjugate gradient method ends
    :param damping_rule: "fixed": ``cg_damping``; "adaptive": from there by the rule of Levenberg and
        Marquardt, up where a step's KL divergence comes out larger than the quadratic model says, and down
        where it does not; a line search that finds nothing is repeated with more damping
    :param kl_statistic: what ``target_kl`` bounds: the "mean" over states, or the "max", and so each state
    :param max_chunk: samples of which gradient and Fisher-vector products are evaluated at once, for rollouts
        that do not fit into memory, at the price of evaluating each anew; ``None``: all
    :param critic_learning_rate: ``None``: ``learning_rate``, which the critic alone uses anyway
    :param critic_max_grad_norm: largest global norm of the critic's gradient; ``math.inf``: any
    :param log_std_bounds: a Gaussian's ``log_std`` is kept between these two, such as (-5, 2); ``None``:
        anywhere
    :param action_net_gain: gain of the orthogonal initialization of the policy's last layer, usually 0.01
        to 1; ``None``: SB3's, 0.01
    :param engine: and the others as for :class:`~sb3_trust.PPO`
    :raises InvalidArgument: if an argument cannot work
    """

    statistics_class: ClassVar[type[UpdateStatistics]] = TRPOStatistics
    mark = "line_search_max_iter"

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
        line_search_shrinking_factor: float = 0.8,
        line_search_max_iter: int = 10,
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
        accept_ratio: float = 0.1,
        cg_tolerance: float = 1e-4,
        damping_rule: str = "fixed",
        kl_statistic: str = "mean",
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
        self.line_search_shrinking_factor = line_search_shrinking_factor
        self.line_search_max_iter = line_search_max_iter
        self.accept_ratio = accept_ratio
        self.damping_rule = damping_rule
        self.kl_statistic = kl_statistic
        # the adapted damping; saved apart from the argument that it starts from
        self.current_cg_damping: float | None = None
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        shrinking = self.line_search_shrinking_factor
        check_number("line_search_shrinking_factor", shrinking, 0.0, 1.0, open_minimum=True)
        if shrinking == 1.0:
            raise reject("line_search_shrinking_factor", shrinking, "a number in (0, 1)")
        check_integer("line_search_max_iter", self.line_search_max_iter, 1)
        check_number("accept_ratio", self.accept_ratio, 0.0, 1.0)
        check_choice("damping_rule", self.damping_rule, DAMPING_RULES)
        if self.damping_rule == "adaptive" and not self.cg_damping > 0:
            raise reject("cg_damping", self.cg_damping, "> 0 where it is to adapt")
        check_choice("kl_statistic", self.kl_statistic, KL_STATISTICS)

    def _adopt(self, overridden: frozenset[str]) -> None:
        super()._adopt(overridden)
        if {"cg_damping", "damping_rule"} & overridden:
            self.current_cg_damping = None
        if "_trust_format" in self.__dict__ or not isinstance(
            self.action_space, (spaces.Box, spaces.MultiBinary)
        ):
            return
        dimensions = get_action_dim(self.action_space)
        converted = []
        for name in sorted({"target_kl", "cg_damping"} - overridden):
            before = getattr(self, name)
            setattr(self, name, before * dimensions)
            converted.append(f"{name} {before:g} -> {before * dimensions:g}")
        self._said_at_loading(
            f"this is a model of sb3-contrib's TRPO, whose KL divergence is averaged over the {dimensions} "
            f"action dimensions; here it is summed, so: {', '.join(converted) or 'nothing to convert'}"
        )

    def _policy_step(self, batch: Batch, statistics: TRPOStatistics) -> None:
        """The practical algorithm of section 6, with the step and the line search of appendix C."""
        target_kl = self._current_target_kl()
        if target_kl == 0:
            return
        surrogate = SurrogateObjective(self.ent_coef)
        natural = self._natural_gradient(batch, surrogate, statistics)
        damping = self._damping()
        for _ in range(1 + (MAX_RETRIES if self.damping_rule == "adaptive" else 0)):
            direction = natural.direction(damping, self.cg_max_steps, self.cg_tolerance)
            if direction is None:
                return
            # beta = sqrt(2 delta / x^T F x), from the undamped curvature: the quadratic model's KL is then
            # delta itself
            beta = (2 * target_kl / direction.curvature) ** 0.5
            step, predicted_kl = natural.step(direction, beta)
            del direction  # a Fisher product can hold a graph of the whole rollout
            search = ConstrainedStep(self, batch, surrogate, natural, step).search(target_kl, statistics)
            # of the quadratic model, for the step that was taken
            statistics.predicted_kl = predicted_kl * statistics.step_fraction**2
            if search.accepted:
                break
            damping = min(damping * RETRY_FACTOR, MAX_DAMPING)

    def _damping(self) -> float:
        if self.damping_rule == "adaptive" and self.current_cg_damping is not None:
            return self.current_cg_damping
        return self.cg_damping

    def constrained(self, kl: th.Tensor) -> float:
        """What ``target_kl`` bounds, of the KL divergence at each state, [n]."""
        return (kl.max() if self.kl_statistic == "max" else kl.mean()).item()

    def _after_update(self, statistics: UpdateStatistics, n_samples: int) -> None:
        assert isinstance(statistics, TRPOStatistics)
        # a module that changes its buffers as it is evaluated may move the policy after the line search
        kl = statistics.kl_max if self.kl_statistic == "max" else statistics.kl
        may_have_moved = statistics.step_norm > 0 or any(True for _ in self.policy.buffers())
        if may_have_moved and kl > statistics.target_kl + KL_ROUNDING:
            raise UndoneUpdate("kl above target_kl")
        if self.damping_rule == "adaptive" and statistics.line_search_steps:
            self.current_cg_damping = next_damping(
                statistics.cg_damping, statistics.kl, statistics.predicted_kl
            )
