"""
Multilayer perceptrons in NumPy: forward, backward and forward-mode passes over preallocated arrays.

Arrays are feature-major, [width, n], and each layer's input ends in a row of ones, so that a weight matrix
``[W | b]`` of shape [out, in + 1] holds the bias too: one matrix product does a layer, and another one gives
the gradient of weight and bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_trust.engines.activations import Activation

FloatArray = np.ndarray

# what is not finite is found by the update, and rolled back
IGNORE_OVERFLOW = np.errstate(over="ignore", invalid="ignore", divide="ignore")


def with_ones(rows: FloatArray) -> FloatArray:
    """Rows of inputs, [n, in], as columns above a row of ones: [in + 1, n]."""
    x = np.ones((rows.shape[1] + 1, len(rows)), np.float32)
    x[:-1] = rows.T
    return x


@dataclass(frozen=True, eq=False)
class Network:
    """
    A multilayer perceptron with a linear output layer.

    :param weights: ``[W | b]`` of each layer, shape [out, in + 1]
    :param gradients: where a backward pass leaves the gradient of each, same shapes
    :param activation: of the hidden layers
    """

    weights: list[FloatArray]
    gradients: list[FloatArray]
    activation: Activation

    @property
    def widths(self) -> list[int]:
        """Widths of the hidden layers."""
        return [len(weight) for weight in self.weights[:-1]]

    @property
    def n_outputs(self) -> int:
        """Width of the output layer."""
        return len(self.weights[-1])


@dataclass(frozen=True, eq=False)
class _Layer:
    """
    One network's part in a layer, as views that are made once. A ``source`` of ``None`` is the input itself.
    """

    weight: FloatArray
    gradient: FloatArray
    weight_t: FloatArray  # without the bias, transposed
    source: FloatArray | None
    source_t: FloatArray | None
    source_slope: FloatArray | None  # where the derivative with respect to the source goes
    target: FloatArray
    target_slope: FloatArray


class Workspace:
    """
    The arrays of one evaluation of some networks on the same inputs. Layers of the same depth lie in one
    array, so that one call activates them all.

    :param networks: the networks; with hidden layers of the same activation
    :param n: number of inputs
    :param differentiable: keep what a backward pass needs
    """

    def __init__(self, networks: Sequence[Network], n: int, differentiable: bool) -> None:
        self.networks = list(networks)
        self.n = n
        self.differentiable = differentiable
        self._activation = networks[0].activation
        depth = max(len(network.widths) for network in networks)
        heights = [sum(net.widths[k] + 1 for net in networks if len(net.widths) > k) for k in range(depth)]
        # ones everywhere, and rows that are to stay ones are set again after each activation
        self.hidden = [np.ones((height, n), np.float32) for height in heights]
        self._activate = [self._activation.on(array, differentiable) for array in self.hidden]
        self._slopes = [np.zeros_like(array) if differentiable else array for array in self.hidden]
        self._ones: list[list[FloatArray]] = [[] for _ in range(depth)]
        self._layers: list[list[_Layer]] = [[] for _ in range(depth)]
        self._heads: list[_Layer] = []
        self.outputs = [np.empty((network.n_outputs, n), np.float32) for network in networks]
        self.derivatives = self.hidden if not differentiable else [a.slope for a in self._activate]
        starts = [0] * depth
        for network, output in zip(networks, self.outputs, strict=True):
            source = source_slope = None
            for k, weight in enumerate(network.weights):
                last = k == len(network.widths)
                if last:
                    target, target_slope = output, output
                else:
                    rows = slice(starts[k], starts[k] + len(weight))
                    target, target_slope = self.hidden[k][rows], self._slopes[k][rows]
                layer = _Layer(
                    weight,
                    network.gradients[k],
                    weight[:, :-1].T,
                    source,
                    None if source is None else source.T,
                    source_slope,
                    target,
                    target_slope,
                )
                if last:
                    self._heads.append(layer)
                    break
                self._layers[k].append(layer)
                with_ones = slice(starts[k], rows.stop + 1)
                self._ones[k].append(self.hidden[k][rows.stop])
                source, source_slope = self.hidden[k][with_ones], target_slope
                starts[k] = rows.stop + 1

    def forward(self, x: FloatArray) -> list[FloatArray]:
        """
        :param x: inputs with their row of ones, [in + 1, n]
        :return: each network's outputs, [out, n]; overwritten by the next call
        """
        dot = np.dot
        for layers, activate, ones in zip(self._layers, self._activate, self._ones, strict=True):
            for layer in layers:
                dot(layer.weight, x if layer.source is None else layer.source, layer.target)
            activate()
            for row in ones:
                row.fill(1.0)
        for layer in self._heads:
            dot(layer.weight, x if layer.source is None else layer.source, layer.target)
        return self.outputs

    def backward(self, x: FloatArray, slopes: Sequence[FloatArray]) -> None:
        """
        After :meth:`forward` on the same ``x``: leave the gradients in the networks' arrays.

        :param slopes: derivatives with respect to each network's outputs, [out, n]
        """
        x_t = x.T
        for layer, slope in zip(self._heads, slopes, strict=True):
            _pull_back(layer, slope, x_t)
        for k in range(len(self._layers) - 1, -1, -1):
            slope = self._slopes[k]
            np.multiply(slope, self.derivatives[k], slope)
            for layer in self._layers[k]:
                _pull_back(layer, layer.target_slope, x_t)


def _pull_back(layer: _Layer, slope: FloatArray, x_t: FloatArray) -> None:
    np.dot(slope, x_t if layer.source_t is None else layer.source_t, layer.gradient)
    if layer.source_slope is not None:
        np.dot(layer.weight_t, slope, layer.source_slope)


class Linearization:
    """
    One network near its present weights, on fixed inputs: the product of its Jacobian with a change of the
    weights (forward mode), and of the transposed Jacobian with a cotangent (reverse mode).

    In torch: its matrix products of a chunk are faster than NumPy's, and can be added to what is there.

    :param network: the network; changed weights are not seen afterwards
    :param x: inputs with their row of ones, [in + 1, n]
    """

    def __init__(self, network: Network, x: FloatArray) -> None:
        workspace = Workspace([network], x.shape[1], differentiable=True)
        self.outputs = workspace.forward(x)[0]
        self._inputs = [th.from_numpy(a) for a in (x, *workspace.hidden)]  # each layer's, with ones
        self._derivatives = [th.from_numpy(d[:-1]) for d in workspace.derivatives]
        self._weights = [th.from_numpy(weight[:, :-1].copy()) for weight in network.weights]

    def tangent(self, changes: Sequence[th.Tensor]) -> th.Tensor:
        """
        :param changes: a change of each layer's ``[W | b]``
        :return: the change of the outputs to first order, [out, n]
        """
        tangent = th.mm(changes[0], self._inputs[0])
        for k, derivative in enumerate(self._derivatives, start=1):
            tangent *= derivative
            tangent = th.mm(changes[k], self._inputs[k]).addmm_(self._weights[k], tangent)
        return tangent

    def pull_back(self, slope: th.Tensor, gradients: Sequence[th.Tensor]) -> None:
        """
        :param slope: derivatives with respect to the outputs, [out, n]
        :param gradients: what the derivatives with respect to each layer's ``[W | b]`` are added to
        """
        for k in range(len(self._derivatives), 0, -1):
            gradients[k].addmm_(slope, self._inputs[k].T)
            slope = th.mm(self._weights[k].T, slope)
            slope *= self._derivatives[k - 1]
        gradients[0].addmm_(slope, self._inputs[0].T)
