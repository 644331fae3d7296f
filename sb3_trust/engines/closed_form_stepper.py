"""The rollout in NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_trust.engines.base import Stepper
from sb3_trust.engines.networks import IGNORE_OVERFLOW, Workspace

if TYPE_CHECKING:
    from sb3_trust.engines.closed_form import ClosedFormEngine


class ClosedFormStepper(Stepper):
    """
    Computes in the loop what the environments need, the actions; values and log-probabilities follow in one
    pass when the rollout ends. If somebody watches, everything is computed step by step, from the
    parameters as they are at that step.

    The noise of the whole rollout is drawn at once, from torch's generator.
    """

    def __init__(self, engine: ClosedFormEngine, buffer: RolloutBuffer, n_steps: int, watched: bool) -> None:
        super().__init__(engine.policy, buffer)
        # what the buffer would round is not computed from the buffer
        self._watched = watched or not np.can_cast(engine.head.action_dtype, buffer.actions.dtype)
        self._engine = engine
        self._head, self._encoder = engine.head, engine.encoder
        n_envs = buffer.n_envs
        flat = engine.parameters
        self._n_inputs = self._encoder.n_inputs
        self._x = np.ones((self._n_inputs + 1, n_envs), np.float32)
        self._actor = Workspace([flat.actor], n_envs, differentiable=False)
        self._critic = Workspace([flat.critic], n_envs, differentiable=False)
        self._noise = self._head.noise(n_steps, n_envs)
        self._outputs = np.empty((n_steps, n_envs, flat.actor.n_outputs), np.float32)
        self._kept: list[np.ndarray] = []
        self._terminal: list[tuple[int, int, np.ndarray, float]] = []
        self._step = 0
        self._action_shape = (n_envs, *(engine.policy.action_space.shape or ()))
        self._buffer_shape = buffer.actions.shape[1:]
        flat.read()
        self._check(flat.values)

    @staticmethod
    def _check(values: np.ndarray) -> None:
        # the square of a finite value overflows only where no policy can be trusted any more
        if not np.isfinite(np.vdot(values, values)):
            raise ValueError(
                "the policy's parameters, or what it makes of an observation, are NaN or infinite: "
                "no action can be chosen by it"
            )

    @IGNORE_OVERFLOW
    def act(self, observations: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
        assert not isinstance(observations, dict)
        if self._step == 0 and not np.can_cast(observations.dtype, self.buffer.observations.dtype):
            self._watched = True
        if self._watched:
            self._engine.parameters.read()
        self._encoder.write(observations, self._x[:-1])
        (output,) = self._actor.forward(self._x)
        step = self._step
        outputs = self._outputs[step]
        outputs[...] = output.T
        self._check(outputs)
        actions = self._head.sample(outputs, self._noise[step])
        self._step = step + 1
        if self._watched:
            self._evaluate(observations, outputs, actions)
        return actions.reshape(self._action_shape)

    def _evaluate(self, observations: np.ndarray, outputs: np.ndarray, actions: np.ndarray) -> None:
        (values,) = self._critic.forward(self._x)
        log_probs = self._log_probs(outputs, actions)
        self._kept.append(self._head.parameters(outputs))
        self._values, self._log_prob = th.from_numpy(values.T.copy()), th.from_numpy(log_probs)
        self._observations = observations

    def _log_probs(self, outputs: np.ndarray, actions: np.ndarray) -> np.ndarray:
        encoded = self._head.encode(th.from_numpy(actions))
        log_prob = self._head.evaluate(outputs.T, encoded.T, None, {"log_prob"}).log_prob
        assert log_prob is not None
        return log_prob

    def names(self) -> dict[str, Any]:
        return {
            "obs_tensor": th.as_tensor(self._observations),
            "values": self._values,
            "log_probs": self._log_prob,
        }

    def bootstrap(
        self, rewards: np.ndarray, index: int, observation: np.ndarray | dict[str, np.ndarray], gamma: float
    ) -> None:
        row = self._encoder.rows(np.asarray(observation)[None])
        if self._watched:
            self._engine.parameters.read()
            rewards[index] += gamma * self._engine.values(row)[0]
        else:
            self._terminal.append((self.buffer.pos, index, row[0].copy(), gamma))

    def add(
        self,
        observations: np.ndarray | dict[str, np.ndarray],
        actions: np.ndarray,
        rewards: np.ndarray,
        episode_starts: np.ndarray,
    ) -> None:
        buffer = self.buffer
        step = buffer.pos
        row = buffer.observations[step]
        row[...] = observations.reshape(row.shape)  # type: ignore[union-attr]
        buffer.actions[step] = actions.reshape(self._buffer_shape)
        buffer.rewards[step] = rewards
        buffer.episode_starts[step] = episode_starts
        if self._watched:
            buffer.values[step] = self._values.numpy()[:, 0]
            buffer.log_probs[step] = self._log_prob.numpy()
        buffer.pos = step + 1
        buffer.full = buffer.pos == buffer.buffer_size

    def finish(self, observations: np.ndarray | dict[str, np.ndarray]) -> th.Tensor:
        last = self._encoder.rows(np.asarray(observations))
        if self._watched:
            self._engine.parameters.read()
            return th.from_numpy(self._engine.values(last))[:, None]
        return th.from_numpy(self._complete(last))[:, None]

    def abandon(self) -> None:
        if not self._watched and self.buffer.pos:
            self._complete(np.empty((0, self._n_inputs), np.float32))

    def _complete(self, last: np.ndarray) -> np.ndarray:
        """Values and log-probabilities of all steps, and terminal values; returns those of ``last``."""
        buffer = self.buffer
        steps, n_envs = buffer.pos, buffer.n_envs
        n = steps * n_envs
        rows = self._encoder.rows(buffer.observations[:steps].reshape(n, *buffer.obs_shape))
        terminal = [row[None] for _, _, row, _ in self._terminal]
        values = self._engine.values(np.concatenate([rows, last, *terminal]))
        buffer.values[:steps] = values[:n].reshape(steps, n_envs)
        for (step, index, _, gamma), value in zip(self._terminal, values[n + len(last) :], strict=True):
            buffer.rewards[step, index] += gamma * value
        if n:
            actions = buffer.actions[:steps].reshape(n, -1)
            outputs = self._outputs[:steps].reshape(n, -1)
            buffer.log_probs[:steps] = self._log_probs(outputs, actions).reshape(steps, n_envs)
        return values[n : n + len(last)]

    def distributions(self) -> th.Tensor:
        if self._watched:
            return th.from_numpy(np.stack(self._kept))
        outputs = self._outputs[: self._step]
        flat = outputs.reshape(-1, outputs.shape[-1])
        return th.from_numpy(self._head.parameters(flat).reshape(*outputs.shape[:2], -1))
