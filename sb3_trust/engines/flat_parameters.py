"""A policy's parameters in one flat NumPy array, with the optimizer's moments beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch as th
from torch import nn

from sb3_trust.engines.networks import Network
from sb3_trust.engines.recognition import Perceptrons


class FlatParameters:
    """
    Copies of the parameters of actor and critic as the networks of the closed form take them: ``[W | b]``
    of each layer, the actor's, then log sigma, then the critic's, all in one array.

    The policy's own tensors are read when asked, and written when asked, in place; their storage is never
    rebound.
    """

    def __init__(self, perceptrons: Perceptrons) -> None:
        actor, critic, log_std = perceptrons.actor, perceptrons.critic, perceptrons.log_std
        sizes = [_size(actor), 0 if log_std is None else log_std.numel(), _size(critic)]
        self.n_actor = sum(sizes[:2])
        self.values = np.zeros(sum(sizes), np.float32)
        self.gradients = np.zeros_like(self.values)
        ends = np.cumsum(sizes).tolist()
        starts = [0, *ends[:-1]]
        networks = []
        for layers, start in ((actor, starts[0]), (critic, starts[2])):
            matrices = self._matrices(self.values, layers, start)
            slopes = self._matrices(self.gradients, layers, start)
            networks.append(Network(matrices, slopes, perceptrons.activation))
        self.actor, self.critic = networks
        self._layers = (actor, critic)
        self._starts = (starts[0], starts[2])
        self._log_std = log_std
        self.log_std_slice = slice(starts[1], ends[1])
        self.log_std = self.values[self.log_std_slice]
        self.log_std_gradient = self.gradients[self.log_std_slice]
        self.parameters = [parameter for parameter, _ in self.views(self.values)]
        self._read_from = [(p.data_ptr(), p.detach().numpy(), v) for p, v in self.views(self.values)]

    @staticmethod
    def _matrices(flat: np.ndarray, layers: Sequence[nn.Linear], start: int) -> list[np.ndarray]:
        matrices = []
        for layer in layers:
            shape = (layer.out_features, layer.in_features + 1)
            stop = start + shape[0] * shape[1]
            matrices.append(flat[start:stop].reshape(shape))
            start = stop
        return matrices

    def views(self, flat: np.ndarray) -> list[tuple[nn.Parameter, np.ndarray]]:
        """Each parameter with its part of a flat array."""
        pairs: list[tuple[nn.Parameter, np.ndarray]] = []
        for layers, start in zip(self._layers, self._starts, strict=True):
            for layer, matrix in zip(layers, self._matrices(flat, layers, start), strict=True):
                pairs.append((layer.weight, matrix[:, :-1]))  # type: ignore[arg-type]
                pairs.append((layer.bias, matrix[:, -1]))
        if self._log_std is not None:
            pairs.append((self._log_std, flat[self.log_std_slice]))
        return pairs

    def actor_matrices(self, flat: np.ndarray) -> list[np.ndarray]:
        """``[W | b]`` of the actor's layers in a flat array of the actor's parameters."""
        return self._matrices(flat, self._layers[0], 0)

    def read(self) -> None:
        """Take over the policy's parameters as they are now."""
        for index, (parameter, (address, source, target)) in enumerate(
            zip(self.parameters, self._read_from, strict=True)
        ):
            if parameter.data_ptr() != address:  # its storage was replaced
                source = parameter.detach().numpy()
                self._read_from[index] = (parameter.data_ptr(), source, target)
            target[...] = source

    def within(self, part: slice) -> list[nn.Parameter]:
        """The parameters in a part of the array: the actor's, the critic's or all."""
        critic = {id(p) for layer in self._layers[1] for p in layer.parameters()}
        with_actor = (part.start or 0) < self.n_actor
        with_critic = part.stop is None or part.stop > self.n_actor
        return [p for p in self.parameters if (with_critic if id(p) in critic else with_actor)]

    @th.no_grad()
    def write(self, part: slice) -> None:
        """
        Give the policy's tensors, in place, what a part of the array holds, and their gradients; the others
        have none.
        """
        chosen = {id(p) for p in self.within(part)}
        pairs = zip(self.views(self.values), self.views(self.gradients), strict=True)
        for (parameter, value), (_, gradient) in pairs:
            if id(parameter) in chosen:
                parameter.copy_(th.from_numpy(value))
                parameter.grad = th.from_numpy(gradient.copy())
            else:
                parameter.grad = None

    @property
    def actor_part(self) -> slice:
        """The actor's parameters, log sigma included."""
        return slice(0, self.n_actor)

    @property
    def critic_part(self) -> slice:
        """The critic's parameters."""
        return slice(self.n_actor, None)


def _size(layers: Sequence[nn.Linear]) -> int:
    return sum(layer.weight.numel() + layer.bias.numel() for layer in layers)
