"""The three environments of ``when_ppo_fails.py``, each a batch of copies that are stepped as arrays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv


class BatchedEnv(VecEnv):
    """
    Copies of one environment. Those that end begin anew at once; returns of episodes are kept until somebody
    takes them.

    :param n_envs: copies
    :param horizon: steps after which an episode is truncated
    """

    render_mode = None

    def __init__(self, n_envs: int, observation_space: spaces.Box, action_space: spaces.Space, horizon: int):
        super().__init__(n_envs, observation_space, action_space)
        self.horizon = horizon
        self.random = np.random.default_rng()
        self.age = np.zeros(n_envs, np.int64)
        self.earned = np.zeros(n_envs)
        self._returns: list[float] = []
        self._actions = np.zeros(0)

    @abstractmethod
    def begin(self, where: np.ndarray) -> None:
        """Begin an episode in some copies; ``where``: [n_envs], of bool."""

    @abstractmethod
    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rewards and whether the episode has come to its end, [n_envs] each."""

    @abstractmethod
    def observe(self) -> np.ndarray:
        """[n_envs, n_features]"""

    def take_returns(self) -> list[float]:
        """Returns of the episodes that ended since the last call."""
        taken, self._returns = self._returns, []
        return taken

    def reset(self) -> np.ndarray:
        self.random = np.random.default_rng(self._seeds[0])
        self._reset_seeds()
        self._begin(np.ones(self.num_envs, bool))
        return self.observe()

    def _begin(self, where: np.ndarray) -> None:
        self.age[where], self.earned[where] = 0, 0.0
        self.begin(where)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        rewards, terminated = self.advance(self._actions)
        self.age += 1
        self.earned += rewards
        dones = terminated | (self.age >= self.horizon)
        observations = self.observe()
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones):
            infos[i] = {
                "terminal_observation": observations[i],
                "TimeLimit.truncated": not terminated[i],
                "episode": {"r": float(self.earned[i]), "l": int(self.age[i])},
            }
            self._returns.append(float(self.earned[i]))
        if dones.any():
            self._begin(dones)
            observations = self.observe()
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError(method_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))


class Lock(BatchedEnv):
    """
    A combination lock: a row of cells with one right action of two in each. It leads to the next cell, the
    other one back to the first. The reward is 1 in the last cell, where the episode ends, and 0 everywhere
    else: before the first success no return differs from another.

    :param distance: right actions in a row that the reward takes
    """

    HORIZON = 32

    def __init__(self, n_envs: int, distance: int):
        super().__init__(n_envs, spaces.Box(0, 1, (distance,)), spaces.Discrete(2), self.HORIZON)
        self.distance = distance
        self.right = np.random.default_rng(1).integers(2, size=distance)
        self.cell = np.zeros(n_envs, np.int64)

    def begin(self, where: np.ndarray) -> None:
        self.cell[where] = 0

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.cell = np.where(actions == self.right[self.cell], self.cell + 1, 0)
        opened = self.cell == self.distance
        return opened.astype(np.float64), opened

    def observe(self) -> np.ndarray:
        # the open lock is the end of the episode, and needs no feature of its own
        return np.eye(self.distance + 1, self.distance, dtype=np.float32)[self.cell]

    @classmethod
    def chance(cls, distance: int) -> float:
        """Probability that uniformly random actions open the lock in an episode."""
        at = np.zeros(distance + 1)
        at[0] = 1.0
        for _ in range(cls.HORIZON):
            moved = np.zeros_like(at)
            moved[1:] = at[:-1] / 2
            moved[0] = at[:-1].sum() / 2
            moved[-1] += at[-1]
            at = moved
        return float(at[-1])


class Targets(BatchedEnv):
    """
    Each dimension of the action has a target of its own, a fixed linear function of a random context. All
    targets have mean 0 and variance 1, whatever the number of dimensions. The reward is less by the squared
    distance from the target, averaged over dimensions; a step does not influence the next one.

    :param n_dimensions: of the action
    """

    N_FEATURES = 4

    def __init__(self, n_envs: int, n_dimensions: int):
        n = self.N_FEATURES
        box = spaces.Box(-4, 4, (n_dimensions,))
        super().__init__(n_envs, spaces.Box(-2, 2, (n,)), box, horizon=16)
        weights = np.random.default_rng(2).normal(size=(n_dimensions, n))
        self.weights = weights / np.linalg.norm(weights, axis=1, keepdims=True)
        self.context = np.zeros((n_envs, n))

    def begin(self, where: np.ndarray) -> None:
        self.context[where] = self.contexts(self.random, int(where.sum()))

    def contexts(self, random: np.random.Generator, n: int) -> np.ndarray:
        """Contexts of variance 1, [n, n_features]."""
        return random.uniform(-np.sqrt(3), np.sqrt(3), (n, self.N_FEATURES))

    def targets(self, context: np.ndarray) -> np.ndarray:
        """[n, n_dimensions]"""
        return context @ self.weights.T

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rewards = -((actions - self.targets(self.context)) ** 2).mean(1)
        self.context = self.contexts(self.random, self.num_envs)
        return rewards, np.zeros(self.num_envs, bool)

    def observe(self) -> np.ndarray:
        return self.context.astype(np.float32)

    def score(self, model: Any) -> float:
        """
        Share of the targets' variance that the policy's mean explains on contexts of its own: 0 for doing
        nothing, 1 for the optimum, in any number of dimensions.
        """
        context = self.contexts(np.random.default_rng(3), 1024)
        actions, _ = model.predict(context.astype(np.float32), deterministic=True)
        return 1 - float(((actions - self.targets(context)) ** 2).mean())


class Steering(BatchedEnv):
    """
    A point in a square is to be steered to a goal that it does not see; each step costs the distance from
    there. At given time steps the goal jumps to the opposite corner.

    :param flips: time steps, of all copies together, at which it jumps
    """

    REACH = 0.5
    HORIZON = 16
    GOAL = np.array([0.25, 0.25])

    def __init__(self, n_envs: int, flips: Sequence[int]):
        super().__init__(n_envs, spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,)), self.HORIZON)
        self.flips = flips
        self.position = np.zeros((n_envs, 2))
        self.elapsed = 0

    def begin(self, where: np.ndarray) -> None:
        self.position[where] = self.random.uniform(-1, 1, (int(where.sum()), 2))

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sign = (-1) ** sum(self.elapsed >= flip for flip in self.flips)
        self.elapsed += self.num_envs
        self.position = np.clip(self.position + self.REACH * actions, -1, 1)
        return -np.linalg.norm(self.position - sign * self.GOAL, axis=1), np.zeros(self.num_envs, bool)

    def observe(self) -> np.ndarray:
        return self.position.astype(np.float32)

    @classmethod
    def score(cls, returns: Sequence[float]) -> float:
        """Mean of episodes' returns on a scale on which 0 is to stay and 1 to go straight to the goal."""
        away = np.random.default_rng(4).uniform(-1, 1, (4096, 2)) - cls.GOAL
        staying = -cls.HORIZON * np.linalg.norm(away, axis=1).mean()
        straight = 0.0
        for _ in range(cls.HORIZON):
            away = away - cls.REACH * np.clip(away / cls.REACH, -1, 1)
            straight -= np.linalg.norm(away, axis=1).mean()
        return float((np.mean(returns) - staying) / (straight - staying))
