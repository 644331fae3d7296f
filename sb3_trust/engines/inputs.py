"""Observations as the inputs of a multilayer perceptron, as SB3 preprocesses and flattens them."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space

IMAGE_SCALE = np.float32(255.0)


class InputEncoder:
    """
    Turns observations into rows of float32.

    :param space: the observation space
    :param normalize_images: scale images to [0, 1], as the policy's argument of this name
    :raises NotImplementedError: for a space that it does not know
    """

    def __init__(self, space: spaces.Space, normalize_images: bool) -> None:
        self._sizes: list[int] = []  # of what is one-hot encoded
        self._scaled = False
        if isinstance(space, spaces.Box):
            self._scaled = normalize_images and is_image_space(space)
        elif isinstance(space, spaces.Discrete) and space.start == 0:
            self._sizes = [int(space.n)]
        elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and not space.start.any():
            self._sizes = [int(size) for size in space.nvec]
        elif not isinstance(space, spaces.MultiBinary):
            raise NotImplementedError(f"observation space {space}")
        self._offsets = np.cumsum([0, *self._sizes[:-1]])
        self.n_inputs = get_flattened_obs_dim(space)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for encoders that do the same."""
        return tuple(self._sizes), self._scaled, self.n_inputs

    def write(self, observations: np.ndarray, inputs: np.ndarray) -> None:
        """
        :param observations: [n, ...]
        :param inputs: where they go, one column each: [n_inputs, n]
        """
        if self._sizes:
            n = inputs.shape[1]
            inputs.fill(0.0)
            rows = observations.reshape(n, -1).astype(np.int64, copy=False) + self._offsets
            inputs[rows, np.arange(n)[:, None]] = 1.0
            return
        inputs[...] = observations.reshape(inputs.shape[::-1]).T
        if self._scaled:
            np.divide(inputs, IMAGE_SCALE, inputs)

    def rows(self, observations: np.ndarray) -> np.ndarray:
        """Observations [n, ...] as rows of inputs, [n, n_inputs], of float32."""
        if self._sizes or self._scaled or observations.dtype != np.float32:
            inputs = np.empty((len(observations), self.n_inputs), np.float32)
            self.write(observations, inputs.T)
            return inputs
        return observations.reshape(len(observations), -1)
