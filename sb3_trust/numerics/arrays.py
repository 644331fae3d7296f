"""The few array operations that NumPy and torch spell differently."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch as th

# a torch tensor or a NumPy array; all arrays of a computation are of the same kind
Array: TypeAlias = Any


def exp(x: Array) -> Array:
    """The exponential of each entry."""
    return np.exp(x) if isinstance(x, np.ndarray) else x.exp()


def clamp(x: Array, low: float, high: float) -> Array:
    """Each entry brought into [low, high]; NaN stays NaN."""
    if isinstance(x, np.ndarray):
        return np.minimum(np.maximum(x, low), high)
    return x.clamp(low, high)


def set_zero_(x: Array, mask: Array) -> Array:
    """Zero where the mask is true, in place."""
    if isinstance(x, np.ndarray):
        np.copyto(x, 0.0, where=mask)
        return x
    return x.masked_fill_(mask, 0.0)


def constant_like(x: Array, value: Array) -> Array:
    """An array of x's shape and kind with one value, or one that broadcasts to it."""
    if isinstance(x, np.ndarray):
        return np.full_like(x, value)
    return value.expand_as(x) if isinstance(value, th.Tensor) else th.full_like(x, value)


def tensor(x: Array) -> th.Tensor:
    """The same entries as a tensor."""
    return th.from_numpy(x) if isinstance(x, np.ndarray) else x


def like(x: Array, values: th.Tensor) -> Array:
    """These values as an array of x's kind."""
    return values.numpy() if isinstance(x, np.ndarray) else values
