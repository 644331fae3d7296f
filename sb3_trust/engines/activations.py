"""Activation functions and their derivatives on NumPy arrays, in place."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch as th
from torch import nn

# from this size on two calls of a vectorised sigmoid and arithmetic beat the hyperbolic tangent itself
TANH_BY_SIGMOID = 512


class ActivationPass(ABC):
    """
    Activates one array in place whenever it is called.

    :param z: the array, float32, of any shape
    :param differentiable: have the derivative in ``slope`` after each call
    """

    slope: np.ndarray

    def __init__(self, z: np.ndarray, differentiable: bool, parameter: float) -> None:
        self._z = z
        self._parameter = parameter
        self._differentiable = differentiable
        self.slope = np.ones_like(z) if differentiable else z

    @abstractmethod
    def __call__(self) -> None: ...


class _Tanh(ActivationPass):
    def __init__(self, z: np.ndarray, differentiable: bool, parameter: float) -> None:
        super().__init__(z, differentiable, parameter)
        self._tensor = th.from_numpy(z)
        self._large = z.size >= TANH_BY_SIGMOID

    def __call__(self) -> None:
        z = self._z
        if self._large:
            # tanh z = 2 sigmoid(2z) - 1
            np.add(z, z, z)
            self._tensor.sigmoid_()
            np.add(z, z, z)
            np.subtract(z, 1.0, z)
        else:
            np.tanh(z, z)
        if self._differentiable:
            np.multiply(z, z, self.slope)
            np.subtract(1.0, self.slope, self.slope)


class _ReLU(ActivationPass):
    def __call__(self) -> None:
        if self._differentiable:
            np.greater(self._z, 0.0, self.slope, casting="unsafe")
        np.maximum(self._z, 0.0, self._z)


class _LeakyReLU(ActivationPass):
    def __call__(self) -> None:
        slope = np.where(self._z > 0.0, np.float32(1.0), np.float32(self._parameter))
        np.multiply(self._z, slope, self._z)
        if self._differentiable:
            self.slope[...] = slope


class _ELU(ActivationPass):
    def __call__(self) -> None:
        z, alpha = self._z, np.float32(self._parameter)
        positive = z > 0.0
        negative = np.minimum(z, 0.0)
        exponential = alpha * np.expm1(negative)
        if self._differentiable:
            self.slope[...] = np.where(positive, np.float32(1.0), exponential + alpha)
        np.copyto(z, exponential, where=~positive)


class _SiLU(ActivationPass):
    def __init__(self, z: np.ndarray, differentiable: bool, parameter: float) -> None:
        super().__init__(z, differentiable, parameter)
        self._tensor = th.from_numpy(z)

    def __call__(self) -> None:
        z = self._z
        sigmoid = self._tensor.sigmoid().numpy()
        if self._differentiable:
            # s (1 + z (1 - s))
            np.subtract(1.0, sigmoid, self.slope)
            np.multiply(self.slope, z, self.slope)
            np.add(self.slope, 1.0, self.slope)
            np.multiply(self.slope, sigmoid, self.slope)
        np.multiply(z, sigmoid, z)


class _Identity(ActivationPass):
    def __call__(self) -> None:
        pass


# type -> (pass, attribute that holds its parameter)
_KINDS: dict[type[nn.Module], tuple[type[ActivationPass], str | None]] = {
    nn.Tanh: (_Tanh, None),
    nn.ReLU: (_ReLU, None),
    nn.LeakyReLU: (_LeakyReLU, "negative_slope"),
    nn.ELU: (_ELU, "alpha"),
    nn.SiLU: (_SiLU, None),
    nn.Identity: (_Identity, None),
}


class Activation:
    """
    An activation function.

    :param module: the torch module that computes it
    :raises KeyError: for one that is not known; its type must be exactly a known one
    """

    def __init__(self, module: nn.Module) -> None:
        self._pass, attribute = _KINDS[type(module)]
        self.parameter = 0.0 if attribute is None else float(getattr(module, attribute))

    def on(self, z: np.ndarray, differentiable: bool) -> ActivationPass:
        """The activation of one array, in place."""
        return self._pass(z, differentiable, self.parameter)

    @property
    def key(self) -> tuple[str, float]:
        """Equal for equal functions."""
        return self._pass.__name__, self.parameter
