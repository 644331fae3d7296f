"""The rollout through the policy's own modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trust.engines.base import Stepper

if TYPE_CHECKING:
    from sb3_trust.engines.autograd import AutogradEngine


class TorchStepper(Stepper):
    """
    Steps any policy by calling it, exactly as SB3's own loop does, and keeps the distributions it acted by.
    """

    def __init__(self, engine: AutogradEngine, buffer: RolloutBuffer) -> None:
        super().__init__(engine.policy, buffer)
        self._engine = engine
        self._call_leaves_distribution = engine.holds_its_distribution("forward")
        self._raw: list[tuple[th.Tensor, ...]] = []

    @th.no_grad()
    def act(self, observations: np.ndarray | dict[str, np.ndarray]) -> np.ndarray:
        tensors: Any = obs_as_tensor(observations, self.policy.device)
        actions, self._values, self._log_probs = self.policy(tensors)
        self._tensors = tensors
        if self._call_leaves_distribution:
            distribution = self.policy.action_dist
        else:
            distribution = self.policy.get_distribution(tensors)
        self._raw.append(self._engine.family.raw(distribution.distribution))
        return actions.cpu().numpy()

    def names(self) -> dict[str, Any]:
        return {"obs_tensor": self._tensors, "values": self._values, "log_probs": self._log_probs}

    @th.no_grad()
    def bootstrap(
        self, rewards: np.ndarray, index: int, observation: np.ndarray | dict[str, np.ndarray], gamma: float
    ) -> None:
        rewards[index] += gamma * self.policy.predict_values(self.policy.obs_to_tensor(observation)[0])[0]

    def add(
        self,
        observations: np.ndarray | dict[str, np.ndarray],
        actions: np.ndarray,
        rewards: np.ndarray,
        episode_starts: np.ndarray,
    ) -> None:
        self.buffer.add(
            observations,  # type: ignore[arg-type]
            actions,
            rewards,
            episode_starts,
            self._values,
            self._log_probs,
        )

    @th.no_grad()
    def finish(self, observations: np.ndarray | dict[str, np.ndarray]) -> th.Tensor:
        tensors: Any = obs_as_tensor(observations, self.policy.device)
        return self.policy.predict_values(tensors)

    def distributions(self) -> th.Tensor:
        stacked = [th.stack(parts) for parts in zip(*self._raw, strict=True)]
        return self._engine.family.parameters(*stacked)
