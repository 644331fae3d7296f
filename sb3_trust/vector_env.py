"""Steps of a vector of environments."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

Step = Callable[[np.ndarray], tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]]

_METHODS = ("step", "step_async", "step_wait", "_save_obs", "_obs_from_buf")


def stepping(env: VecEnv, watched: bool) -> Step:
    """
    How to step a vector of environments: by its own ``step``, or, where nobody keeps what a step returned,
    without the deep copies that ``DummyVecEnv`` makes of all info dictionaries and observations.

    :param watched: whether anybody but SB3's own callbacks sees what a step returns
    """
    plain = (
        type(env) is DummyVecEnv
        and not any(name in vars(env) for name in _METHODS)
        and not isinstance(env.observation_space, (spaces.Dict, spaces.Tuple))
    )
    if watched or not plain:
        return env.step
    return _Uncopied(env)  # type: ignore[arg-type]


class _Uncopied:
    """
    ``DummyVecEnv.step``, whose infos are those of the environments themselves, but for those that end an
    episode.
    """

    def __init__(self, env: DummyVecEnv) -> None:
        self._env = env
        self._observations: np.ndarray = env.buf_obs[None]  # type: ignore[index]

    def __call__(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        vector = self._env
        vector.actions = actions
        for index, env in enumerate(vector.envs):
            obs, vector.buf_rews[index], terminated, truncated, info = env.step(actions[index])
            done = vector.buf_dones[index] = terminated or truncated
            info["TimeLimit.truncated"] = truncated and not terminated
            if done:
                info["terminal_observation"] = obs
                obs, vector.reset_infos[index] = env.reset()
                info = deepcopy(info)  # the statistics of the episode are kept
            vector.buf_infos[index] = info
            self._observations[index] = obs
        rewards, dones = vector.buf_rews.copy(), vector.buf_dones.copy()
        return self._observations.copy(), rewards, dones, list(vector.buf_infos)
