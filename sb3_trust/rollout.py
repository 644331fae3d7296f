"""The rollout loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_trust.engines.base import Stepper
from sb3_trust.finite_guard import FiniteGuard
from sb3_trust.vector_env import stepping

if TYPE_CHECKING:
    from sb3_trust.algorithms.base import TrustRegionAlgorithm

STOCK_CALLBACKS = (
    "stable_baselines3.common.callbacks",
    "rl_zoo3.callbacks",
    "sb3_trust.recorder",
    "sb3_trust.trust_region.recorder",
)


def collect(
    algorithm: TrustRegionAlgorithm,
    env: VecEnv,
    callback: BaseCallback,
    rollout_buffer: RolloutBuffer,
    n_rollout_steps: int,
) -> th.Tensor | None:
    """
    Fill a rollout buffer, with the callbacks, counters and local names of SB3's ``collect_rollouts``.

    :param algorithm: its engine's stepper acts for all environments at once
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
    guard = FiniteGuard(algorithm._vec_normalize_env)
    rollout_buffer.reset()
    if algorithm.use_sde:
        policy.reset_noise(env.num_envs)
    callback.on_rollout_start()

    watched = not is_stock(callback)
    engine = algorithm._policy_engine(choose=True)  # the callback may have changed the policy
    stepper = engine.stepper(rollout_buffer, n_rollout_steps, watched)
    step = stepping(env, watched)
    for_env = ActionTransform(algorithm)
    is_discrete = isinstance(algorithm.action_space, spaces.Discrete)
    n_envs = env.num_envs
    n_steps = 0
    new_obs: Any = None
    # callbacks of SB3 and of users look these names up
    names: dict[str, Any] = {
        "self": algorithm, "env": env, "callback": callback, "rollout_buffer": rollout_buffer,
        "n_rollout_steps": n_rollout_steps,
    }  # fmt: skip

    while n_steps < n_rollout_steps:
        if algorithm.use_sde and algorithm.sde_sample_freq > 0 and n_steps % algorithm.sde_sample_freq == 0:
            policy.reset_noise(n_envs)
        observations: Any = algorithm._last_obs
        guard.check_observations(observations)
        actions = stepper.act(observations)
        clipped_actions = for_env(actions)

        try:
            new_obs, rewards, dones, infos = step(clipped_actions)
        except (EOFError, ConnectionError) as error:
            raise EOFError(
                "the process of an environment ended, killed or by an error of its own: see what it printed"
            ) from error
        algorithm.num_timesteps += n_envs
        guard.check_rewards()

        names.update(
            n_steps=n_steps, actions=actions, clipped_actions=clipped_actions,
            new_obs=new_obs, rewards=rewards, dones=dones, infos=infos,
        )  # fmt: skip
        if watched:
            names.update(stepper.names())
        callback.update_locals(names)
        algorithm._step_reached = new_obs, dones
        if not callback.on_step():
            stepper.abandon()
            return None
        algorithm._step_reached = None
        algorithm._update_info_buffer(infos, dones)
        n_steps += 1

        if is_discrete:
            actions = actions.reshape(-1, 1)
        if np.count_nonzero(dones):
            names.update(_bootstrap_time_limits(algorithm.gamma, stepper, guard, rewards, dones, infos))
        stepper.add(observations, actions, rewards, algorithm._last_episode_starts)  # type: ignore[arg-type]
        algorithm._last_obs = new_obs
        algorithm._last_episode_starts = dones
        if watched:
            names.update(n_steps=n_steps, actions=actions, idx=n_envs - 1, done=dones[-1])

    guard.check_observations(new_obs)
    values = stepper.finish(new_obs)
    compute_returns(rollout_buffer, values, dones)
    names.update(n_steps=n_steps, actions=actions, values=values)
    callback.update_locals(names)
    callback.on_rollout_end()
    return stepper.distributions()


def is_stock(callback: Any) -> bool:
    """
    Whether a callback, with all that it calls, is SB3's own, the Zoo's or ours: those read nothing of a step
    but what the environments returned, and change nothing of the policy.
    """
    kind = type(callback)
    patched = any(callable(getattr(kind, name, None)) for name in vars(callback))
    if kind.__module__ not in STOCK_CALLBACKS or patched:
        return False
    nested: list[Any] = []
    for name, value in vars(callback).items():
        if name == "callbacks":
            nested += value
        elif isinstance(value, BaseCallback) and name != "parent":
            nested.append(value)
    if isinstance(callback, ConvertCallback) and callback.callback is not None:
        # SB3's own make one of a method of theirs
        owner = getattr(callback.callback, "__self__", None)
        return type(owner).__module__ in STOCK_CALLBACKS
    return all(map(is_stock, nested))


class ActionTransform:
    """What the environment gets: unscaled if the policy squashes, clipped to the bounds otherwise."""

    def __init__(self, algorithm: OnPolicyAlgorithm) -> None:
        self._policy = algorithm.policy
        self._space = algorithm.action_space

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        space = self._space
        if not isinstance(space, spaces.Box):
            return actions
        if self._policy.squash_output:
            return self._policy.unscale_action(actions)
        return np.minimum(np.maximum(actions, space.low), space.high)


def _bootstrap_time_limits(
    gamma: float,
    stepper: Stepper,
    guard: FiniteGuard,
    rewards: np.ndarray,
    dones: np.ndarray,
    infos: list[dict[str, Any]],
) -> dict[str, Any]:
    """
    Where a time limit ended an episode, add the discounted value of its last state to the reward.

    :return: SB3's local name for such a state, if there was one
    """
    names: dict[str, Any] = {}
    for index in np.flatnonzero(dones):
        info = infos[index]
        terminal = info.get("terminal_observation")
        if terminal is not None and info.get("TimeLimit.truncated", False):
            guard.check_terminal_observation(terminal, int(index))
            stepper.bootstrap(rewards, int(index), terminal, gamma)
            names["terminal_obs"] = terminal
    return names


def compute_returns(buffer: RolloutBuffer, last_values: th.Tensor, dones: np.ndarray) -> None:
    """
    Generalized advantage estimation (Schulman et al. 2016, https://arxiv.org/abs/1506.02438, equation 16)
    and the returns, bit for bit as the buffer's own ``compute_returns_and_advantage``, with the
    recurrence alone left in the loop.

    :param last_values: values of the observations after the last step, [n_envs, 1]
    :param dones: whether the last step ended an episode, [n_envs]
    """
    own = "compute_returns_and_advantage" in vars(buffer)
    if own or type(buffer) not in (RolloutBuffer, DictRolloutBuffer):
        buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
        return
    with np.errstate(invalid="ignore", over="ignore"):  # an infinite reward: the update will be rolled back
        buffer.advantages[...] = generalized_advantages(buffer, buffer.values, last_values, dones)
        buffer.returns = buffer.advantages + buffer.values


def generalized_advantages(
    buffer: RolloutBuffer, values: np.ndarray, last_values: th.Tensor, dones: np.ndarray
) -> np.ndarray:
    """
    The advantages of a rollout, [n_steps, n_envs], from its rewards and any values of its states.

    :param values: [n_steps, n_envs]
    """
    ends = dones.astype(np.float32)[None]
    alive = 1.0 - np.concatenate([buffer.episode_starts[1:], ends])
    following = np.concatenate([values[1:], last_values.cpu().numpy().reshape(1, -1)])
    deltas = buffer.rewards + buffer.gamma * following * alive - values
    decay = (buffer.gamma * buffer.gae_lambda) * alive
    advantages = np.empty_like(deltas)
    advantage = np.zeros_like(deltas[0])
    multiply, add = np.multiply, np.add
    for delta, factor, target in zip(deltas[::-1], decay[::-1], advantages[::-1], strict=True):
        advantage = add(delta, multiply(factor, advantage))
        target[...] = advantage
    return advantages
