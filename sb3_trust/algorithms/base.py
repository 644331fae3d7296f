"""What all algorithms share: collect, update under guard, measure, log, save."""

from __future__ import annotations

import math
import time
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv

from sb3_trust.algorithms.arguments import check_common_arguments, check_log_std_bounds, check_spaces
from sb3_trust.algorithms.critic import fit_critic
from sb3_trust.algorithms.initialization import initialize_action_net
from sb3_trust.algorithms.listening import ListenedTo
from sb3_trust.algorithms.loading import Loadable
from sb3_trust.algorithms.measurement import check_standard_deviation, measure
from sb3_trust.algorithms.statistics import NonFiniteUpdate, UndoneUpdate, UpdateStatistics
from sb3_trust.engines.base import DescentOptions, PolicyEngine
from sb3_trust.engines.batch import Batch, flat_batch
from sb3_trust.engines.choice import choose_engine
from sb3_trust.engines.distributions import distribution_validation_off
from sb3_trust.engines.snapshot import Snapshot, all_finite
from sb3_trust.errors import check_boolean, plain_number
from sb3_trust.numerics.schedules import value_at
from sb3_trust.rollout import collect


@dataclass(frozen=True)
class _Rollout:
    """
    The distribution parameters that acted in a rollout.

    :param actions: the buffer's array of actions; while it holds this one, it holds this rollout
    :param old_distribution: [n_steps, n_envs, n_parameters], or flat as the buffer is after an update
    """

    actions: np.ndarray
    old_distribution: th.Tensor


class TrustRegionAlgorithm(ListenedTo, Loadable):
    """
    Base of the trust-region algorithms: an on-policy algorithm whose update is exact about how far it moved
    the policy, and is undone as a whole when anything in it is NaN or infinite.

    A subclass says in :meth:`_update` how the policy changes.

    :param critic_learning_rate: learning rate of what the value alone depends on; a number, a function of the
        remaining progress or a string such as "lin_3e-4"; ``None``: ``learning_rate``
    :param log_std_bounds: a Gaussian's ``log_std`` is kept between these two; ``None``: anywhere
    :param action_net_gain: gain of the orthogonal initialization of the policy's last layer; ``None``: the
        policy's own
    :param engine: "autograd": evaluate and differentiate the policy's own modules; "closed_form": two
        multilayer perceptrons on the CPU, without autograd; "auto": the fastest that is exactly right for
        the policy, looked at anew before each rollout and each update
    :param kwargs: as for SB3's ``OnPolicyAlgorithm``
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorCriticPolicy,
        "CnnPolicy": ActorCriticCnnPolicy,
        "MultiInputPolicy": MultiInputActorCriticPolicy,
    }
    statistics_class: ClassVar[type[UpdateStatistics]]

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        *,
        critic_learning_rate: float | str | Schedule | None = None,
        log_std_bounds: Sequence[float] | None = None,
        action_net_gain: float | None = None,
        engine: str = "auto",
        **kwargs: Any,
    ) -> None:
        check_boolean("use_sde", kwargs.get("use_sde", False))  # SB3 looks at it before it is checked
        super().__init__(policy, env, _init_setup_model=False, **kwargs)
        self.critic_learning_rate = critic_learning_rate
        self.log_std_bounds = log_std_bounds
        self.action_net_gain = action_net_gain
        self.engine = engine
        self.n_rollbacks = 0
        self.last_update: UpdateStatistics | None = None
        self._engine: PolicyEngine | None = None
        self._rollout: _Rollout | None = None

    # ---- set-up, saving, loading -------------------------------------------------------------------------

    def _setup_model(self) -> None:
        loading = self._adopt_loaded()
        self.__dict__.update({name: plain_number(value) for name, value in self.__dict__.items()})
        self._check_arguments()
        super()._setup_model()
        if self.action_net_gain is not None and not loading:
            initialize_action_net(self.policy, self.action_net_gain)
        self._engine = None
        self._rollout = None
        self._policy_engine()  # a policy that cannot be served is refused at construction
        # a model that is being read gets its parameters later
        self._check_log_std_bounds(with_values=not loading)

    def _check_loaded(self) -> None:
        self._check_log_std_bounds(with_values=True)

    def _check_log_std_bounds(self, with_values: bool) -> None:
        check_log_std_bounds(self.log_std_bounds, getattr(self.policy, "log_std", None), with_values)

    def _check_arguments(self) -> None:
        """
        :raises InvalidArgument: if an argument cannot work
        """
        check_common_arguments(self)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        # before SB3 makes a vector of it, which fails on some spaces without saying why
        if isinstance(env, (gym.Env, VecEnv)):
            check_spaces(env.observation_space, env.action_space)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_engine", "_rollout", "last_update"]

    def __getstate__(self) -> dict[str, Any]:
        """For copies: an engine holds views of its own model's arrays."""
        return {**self.__dict__, "_engine": None, "_rollout": None, "_listeners": ()}

    def _policy_engine(self, choose: bool = False) -> PolicyEngine:
        """
        The engine for the policy.

        :param choose: look at the policy anew, as it may have been changed since
        """
        if choose or self._engine is None or self._engine.policy is not self.policy:
            self._engine = choose_engine(self.policy, self._wanted_engine(), self._engine)
        return self._engine

    def _wanted_engine(self) -> str:
        return self.engine

    # ---- collecting --------------------------------------------------------------------------------------

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """As in SB3; keeps the distribution parameters that acted, for the exact KL divergence."""
        start = time.perf_counter()
        with self._policy_engine(choose=True).threads():
            old_distribution = collect(self, env, callback, rollout_buffer, n_rollout_steps)
        if old_distribution is None:
            return False
        self._rollout = _Rollout(rollout_buffer.actions, old_distribution)
        self.logger.record("time/collect_seconds", time.perf_counter() - start)
        return True

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # the last rollout may run past the end
        self._current_progress_remaining = min(max(self._current_progress_remaining, 0.0), 1.0)

    # ---- updating ----------------------------------------------------------------------------------------

    @abstractmethod
    def _update(self, batch: Batch) -> UpdateStatistics:
        """
        Move policy and critic, and say what was done; how far the policy moved is measured afterwards.

        :raises NonFiniteUpdate: where something is not finite; whatever was changed is then undone
        """

    def train(self) -> None:
        """Update policy and value function from the rollout buffer."""
        start = time.perf_counter()
        self._update_learning_rate(self.policy.optimizer)
        engine = self._policy_engine(choose=True)
        with engine.threads(), distribution_validation_off():
            batch = self._make_batch()
            self.last_update = self._guarded_update(batch)
        self._log(self.last_update, time.perf_counter() - start)
        self._tell_listeners()

    def _make_batch(self) -> Batch:
        buffer = self.rollout_buffer
        # the kept parameters belong to this buffer's content only if our loop filled it last
        rollout = self._rollout
        if rollout is not None and rollout.actions is not buffer.actions:
            rollout = None
        batch = flat_batch(buffer, self.action_space, None if rollout is None else rollout.old_distribution)
        if batch.old_distribution is None:
            self.policy.set_training_mode(False)
            batch.old_distribution = self._policy_engine().distribution_parameters(batch)
        # a second update from the same rollout starts from the same old policy
        self._rollout = _Rollout(buffer.actions, batch.old_distribution)
        return self._policy_engine().prepared(batch)

    def _guarded_update(self, batch: Batch) -> UpdateStatistics:
        """Update, or leave parameters, buffers and optimizer state bit-identical to before."""
        if not all_finite(self.policy):
            raise ValueError(
                "the policy's parameters or optimizer state are NaN or infinite already: "
                "there is nothing to go back to (load an earlier checkpoint)"
            )
        snapshot, n_updates = Snapshot(self.policy), self._n_updates
        try:
            reason = batch.non_finite()
            if reason is not None:
                raise NonFiniteUpdate(reason)
            check_standard_deviation(self.policy)
            statistics = self._update(batch)
            measure(self._policy_engine(), batch, statistics)
            if not snapshot.still_finite():
                raise NonFiniteUpdate("parameters, buffers or optimizer state")
            check_standard_deviation(self.policy)
            statistics.target_kl = self._current_target_kl()
            self._after_update(statistics, len(batch))
        except UndoneUpdate as error:
            snapshot.restore()
            self._n_updates = n_updates
            self.n_rollbacks += 1
            warnings.warn(f"update rolled back: {error.message}", RuntimeWarning, stacklevel=3)
            statistics = self.statistics_class(
                rollback_reason=str(error), target_kl=self._current_target_kl()
            )
        except BaseException:
            snapshot.restore()
            self._n_updates = n_updates
            raise
        statistics.n_updates, statistics.rollbacks = self._n_updates, self.n_rollbacks
        if not statistics.rollback_reason:
            values, returns = self.rollout_buffer.values, self.rollout_buffer.returns
            statistics.explained_variance = explained_variance(values.flatten(), returns.flatten())
            self._keep_update(batch, snapshot.parameters, statistics)
        if isinstance(std := getattr(self.policy, "log_std", None), th.Tensor):
            statistics.std = std.detach().exp().mean().item()
        return statistics

    def _current_target_kl(self) -> float:
        """The KL divergence that this update is to keep to or to aim at; ``nan`` where there is none."""
        return math.nan

    def _after_update(self, statistics: UpdateStatistics, n_samples: int) -> None:
        """Move adaptive coefficients; called once a rollout, after an update that stands."""

    def _descent_options(self, max_grad_norm: float) -> DescentOptions:
        """What this update's optimizer steps keep to."""
        rate, bounds = self.critic_learning_rate, self.log_std_bounds
        if rate is not None:
            rate = value_at("critic_learning_rate", rate, self._current_progress_remaining)
            self.logger.record("train/critic_learning_rate", rate)
        return DescentOptions(
            max_grad_norm=max_grad_norm,
            critic_learning_rate=rate,
            log_std_bounds=None if bounds is None else (float(bounds[0]), float(bounds[1])),
        )

    def _fit_critic(
        self, batch: Batch, n_epochs: int, batch_size: int, max_grad_norm: float = math.inf
    ) -> float:
        """Regress the value function on the returns, the policy left alone; the mean value loss."""
        options = self._descent_options(max_grad_norm)
        return fit_critic(self._policy_engine(), batch, n_epochs, batch_size, options)
