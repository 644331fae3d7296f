"""The rollout loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trust.engines.base import Stepper


def collect(
    algorithm: OnPolicyAlgorithm,
    stepper: Stepper,
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: RolloutBuffer,
    n_rollout_steps: int,
) -> th.Tensor | None:
    """
    Fill a rollout buffer, with the callbacks, counters and local names of SB3's ``collect_rollouts``.

    :param stepper: acts for all environments at once
    :return: the distribution parameters that acted, [n_steps, n_envs, n_parameters];
        ``None`` if a callback ended the rollout
    :raises ValueError: when an observation, or a reward that a normaliser would absorb, is NaN or infinite
    """
    if algorithm._last_obs is None:
        raise RuntimeError(
            "no previous observation: `collect_rollouts` is called by `learn`, which resets the environment"
        )
    policy = algorithm.policy
    policy.set_training_mode(False)
    guard = _FiniteGuard(algorithm._vec_normalize_env)
    n_steps = 0
    rollout_buffer.reset()
    if algorithm.use_sde:
        policy.reset_noise(env.num_envs)
    callback.on_rollout_start()

    while n_steps < n_rollout_steps:
        if algorithm.use_sde and algorithm.sde_sample_freq > 0 and n_steps % algorithm.sde_sample_freq == 0:
            policy.reset_noise(env.num_envs)
        guard.check_observations(algorithm._last_obs)  # type: ignore[arg-type]
        obs_tensor, action_tensor, values, log_probs = stepper.act(algorithm._last_obs)  # type: ignore[arg-type]
        actions = action_tensor.cpu().numpy()
        clipped_actions = actions_for_env(algorithm, actions)

        new_obs, rewards, dones, infos = env.step(clipped_actions)
        algorithm.num_timesteps += env.num_envs
        guard.check_rewards()

        # callbacks of SB3 and of users look these names up
        callback.update_locals({**locals(), "self": algorithm})
        if not callback.on_step():
            return None
        algorithm._update_info_buffer(infos, dones)
        n_steps += 1

        if isinstance(algorithm.action_space, spaces.Discrete):
            actions = actions.reshape(-1, 1)
        _bootstrap_time_limits(algorithm.gamma, stepper, guard, rewards, dones, infos)
        rollout_buffer.add(
            algorithm._last_obs,  # type: ignore[arg-type]
            actions,
            rewards,
            algorithm._last_episode_starts,  # type: ignore[arg-type]
            values,
            log_probs,
        )
        algorithm._last_obs = new_obs  # type: ignore[assignment]
        algorithm._last_episode_starts = dones

    guard.check_observations(new_obs)  # type: ignore[arg-type]
    values = stepper.values(new_obs)  # type: ignore[arg-type]
    rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
    callback.update_locals({**locals(), "self": algorithm})
    callback.on_rollout_end()
    return stepper.finish()


def actions_for_env(algorithm: OnPolicyAlgorithm, actions: np.ndarray) -> np.ndarray:
    """What the environment gets: unscaled if the policy squashes, clipped to the bounds otherwise."""
    space = algorithm.action_space
    if not isinstance(space, spaces.Box):
        return actions
    if algorithm.policy.squash_output:
        return algorithm.policy.unscale_action(actions)
    return np.clip(actions, space.low, space.high)


def _bootstrap_time_limits(
    gamma: float,
    stepper: Stepper,
    guard: _FiniteGuard,
    rewards: np.ndarray,
    dones: np.ndarray,
    infos: list[dict[str, Any]],
) -> None:
    """
    Where a time limit ended an episode, add the discounted value of its last state to the reward, in place.
    """
    for index in np.flatnonzero(dones):
        info = infos[index]
        terminal = info.get("terminal_observation")
        if terminal is not None and info.get("TimeLimit.truncated", False):
            guard.check_terminal_observation(terminal, int(index))
            rewards[index] += gamma * stepper.terminal_value(terminal)


class _FiniteGuard:
    """
    Stops a rollout at the first observation that is NaN or infinite.

    Nothing can be learned from it, and no later rollout would be better: a running normaliser carries it on
    for ever. For the same reason rewards are checked here only under a reward normaliser; without one, a bad
    reward spoils one rollout, and the update guards against that.
    """

    def __init__(self, normalizer: VecNormalize | None) -> None:
        self._normalizer = normalizer

    def check_observations(self, observations: np.ndarray | dict[str, np.ndarray]) -> None:
        if self._normalizer is not None and self._normalizer.norm_obs:
            # normalising clips infinities and spreads NaN over all environments: the raw ones tell
            _check_batch(self._normalizer.old_obs, "observation")
        _check_batch(observations, "observation")

    def check_terminal_observation(self, observation: np.ndarray | dict[str, np.ndarray], index: int) -> None:
        parts = observation if isinstance(observation, dict) else {"": observation}
        for key, part in parts.items():
            if not np.isfinite(np.asarray(part)).all():
                raise _not_finite("terminal observation", key, index)

    def check_rewards(self) -> None:
        if self._normalizer is not None and self._normalizer.norm_reward:
            _check_batch(self._normalizer.old_reward, "reward under VecNormalize")


def _check_batch(values: np.ndarray | dict[str, np.ndarray], quantity: str) -> None:
    parts = values if isinstance(values, dict) else {"": values}
    for key, part in parts.items():
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            bad = np.flatnonzero(~np.isfinite(part.reshape(len(part), -1)).all(axis=1))
            raise _not_finite(quantity, key, int(bad[0]))


def _not_finite(quantity: str, key: str, index: int) -> ValueError:
    where = f" (entry {key!r})" if key else ""
    return ValueError(
        f"environment {index} returned a NaN or infinite {quantity}{where}; "
        "training stopped before the policy could be changed by it"
    )
