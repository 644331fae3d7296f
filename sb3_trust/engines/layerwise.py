"""The Jacobian of a policy of linear layers and convolutions, kept in factors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch as th
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trust.engines.batch import Observations
from sb3_trust.engines.distributions import DistributionFamily

# modules whose output is linear in their own parameters, with samples apart from each other
LAYERS = (th.nn.Linear, th.nn.Conv1d, th.nn.Conv2d, th.nn.Conv3d)
# how far a gradient by the factors may be off autograd's
TOLERANCE = 1e-4


class NotLayerwise(Exception):
    """A policy's Jacobian does not come apart into its layers'."""


@dataclass
class _Factor:
    """
    What one call of a layer adds to the Jacobian: the gradient of output k with respect to the layer's
    weights is the layer's own, linear and known from its input, applied to ``slopes[:, k]``.

    :param output: the layer's output, [n, ...], with its graph
    :param inputs: its input, [n, ...]
    :param slopes: gradient of each of the policy's outputs with respect to the layer's, [n, k, size]
    """

    layer: th.nn.Module
    output: th.Tensor
    inputs: th.Tensor
    slopes: th.Tensor

    def tangent(self, change: dict[str, th.Tensor]) -> th.Tensor:
        """The change of the policy's outputs with that of the layer's parameters, [n, k]."""
        moved = th.func.functional_call(self.layer, change, (self.inputs,))
        return th.bmm(self.slopes, _rows(moved).unsqueeze(-1)).squeeze(-1)

    def pull_back(self, cotangent: th.Tensor, parameters: list[th.nn.Parameter]) -> tuple[th.Tensor, ...]:
        """The gradients of the layer's parameters, given those of the policy's outputs, [n, k]."""
        slopes = _unrows(th.bmm(cotangent.unsqueeze(1), self.slopes).squeeze(1), self.output)
        return th.autograd.grad(self.output, parameters, slopes, retain_graph=True)


def _rows(x: th.Tensor) -> th.Tensor:
    """
    [n, ...] as [n, size], images with their channels last, as the fastest convolutions leave them.
    """
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).reshape(len(x), -1)


def _unrows(rows: th.Tensor, like: th.Tensor) -> th.Tensor:
    """The inverse of :func:`_rows`, to the shape of ``like``."""
    if like.dim() != 4:
        return rows.view(like.shape)
    n, channels, height, width = like.shape
    return rows.view(n, height, width, channels).permute(0, 3, 1, 2)


class LayerwiseJacobian:
    """
    The Jacobian J of the distribution's flat parameters with respect to the policy's, at some states, as each
    layer's input and the gradient of each output with respect to each layer's output. ``J v`` and ``J^T u``
    then cost a layer half a forward and half a backward pass, with nothing to be propagated between layers.

    :param parameters: the policy's trainable parameters
    :raises NotLayerwise: where the distribution depends on a parameter otherwise than through plain layers
        and a plain Gaussian's ``log_std``
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        family: DistributionFamily,
        observations: Observations,
        parameters: list[th.nn.Parameter],
    ) -> None:
        self._parameters = parameters
        self._names = _owners(policy, parameters)
        self._log_std = _free_log_std(policy, parameters)
        calls: list[tuple[th.nn.Module, th.Tensor, th.Tensor]] = []
        with ExitStack() as hooks:
            for layer in self._names:
                hooks.callback(layer.register_forward_hook(_recorder(calls)).remove)
            outputs = family.of(policy.get_distribution(observations))  # type: ignore[arg-type]
        self.outputs = outputs.detach()
        n, n_outputs = outputs.shape
        if any(len(output) != n for _, _, output in calls) or not calls:
            raise NotLayerwise("a layer takes something else than one entry a sample")
        # a plain Gaussian's log_std is the second half of its parameters
        self._n_columns = n_outputs if self._log_std is None else n_outputs // 2
        slopes = _slopes(outputs[:, : self._n_columns], [output for _, _, output in calls])
        self._factors = [
            _Factor(layer, output, inputs, slope)
            for (layer, inputs, output), slope in zip(calls, slopes, strict=True)
        ]

    @property
    def entries_per_sample(self) -> int:
        """How many numbers the factors hold for each state."""
        return sum(factor.inputs[0].numel() + factor.slopes[0].numel() for factor in self._factors)

    @th.no_grad()
    def tangent(self, change: list[th.Tensor]) -> th.Tensor:
        """``J v``: the change of the outputs with that of the parameters. [n, n_outputs]."""
        by_id = {id(p): v for p, v in zip(self._parameters, change, strict=True)}
        columns = sum(
            factor.tangent(
                {name: by_id.get(id(p), th.zeros_like(p)) for name, p in factor.layer.named_parameters()}
            )
            for factor in self._factors
        )
        assert isinstance(columns, th.Tensor)
        if self._log_std is None:
            return columns
        return th.cat([columns, by_id[id(self._log_std)].expand_as(columns)], -1)

    def pull_back(self, cotangent: th.Tensor) -> list[th.Tensor]:
        """``J^T u``: the gradients of the parameters, given those of the outputs, [n, n_outputs]."""
        totals: dict[int, th.Tensor] = {}
        columns = cotangent[:, : self._n_columns].contiguous()
        for factor in self._factors:
            members = self._names[factor.layer]
            for parameter, gradient in zip(members, factor.pull_back(columns, members), strict=True):
                known = totals.get(id(parameter))
                totals[id(parameter)] = gradient if known is None else known + gradient
        if self._log_std is not None:
            totals[id(self._log_std)] = cotangent[:, self._n_columns :].sum(0)
        return [totals[id(p)] if id(p) in totals else th.zeros_like(p) for p in self._parameters]


def _owners(
    policy: ActorCriticPolicy, parameters: list[th.nn.Parameter]
) -> dict[th.nn.Module, list[th.nn.Parameter]]:
    """The plain layers that hold some of the parameters, with those."""
    wanted = {id(p) for p in parameters}
    owners = {}
    for module in policy.modules():
        members = [p for p in module.parameters(recurse=False) if id(p) in wanted]
        if members and module is not policy:
            hooked = module._forward_hooks or module._forward_pre_hooks  # a hook would see tangents
            if type(module) not in LAYERS or hooked or th.nn.utils.parametrize.is_parametrized(module):
                raise NotLayerwise(f"{type(module).__name__} is not a plain layer")
            owners[module] = members
    return owners


def _free_log_std(policy: ActorCriticPolicy, parameters: list[th.nn.Parameter]) -> th.nn.Parameter | None:
    """A plain Gaussian's ``log_std``, where it is trained."""
    own = [p for p in policy.parameters(recurse=False) if any(p is q for q in parameters)]
    if not own:
        return None
    if len(own) > 1 or not isinstance(policy.action_dist, DiagGaussianDistribution):
        raise NotLayerwise("parameters of the policy itself that are not a Gaussian's log_std")
    return own[0]


def _recorder(calls: list[tuple[th.nn.Module, th.Tensor, th.Tensor]]) -> Callable[..., None]:
    def record(layer: th.nn.Module, inputs: tuple[Any, ...], output: th.Tensor) -> None:
        if not output.requires_grad:
            return  # under no_grad: no way to the outputs
        if len(inputs) != 1:
            raise NotLayerwise("a layer is called by keyword")
        calls.append((layer, inputs[0].detach(), output))

    return record


def _slopes(columns: th.Tensor, layer_outputs: list[th.Tensor]) -> list[th.Tensor]:
    """The gradient of each column with respect to each layer's output, [n, k, size] each."""
    n, k = columns.shape
    slopes = [output.new_empty(n, k, output[0].numel()) for output in layer_outputs]
    for index in range(k):
        gradients = th.autograd.grad(
            columns[:, index].sum(), layer_outputs, retain_graph=True, allow_unused=True
        )
        for slope, gradient in zip(slopes, gradients, strict=True):
            slope[:, index] = 0.0 if gradient is None else _rows(gradient)
    return slopes


def check_layerwise(
    policy: ActorCriticPolicy,
    family: DistributionFamily,
    observations: Observations,
    parameters: list[th.nn.Parameter],
) -> int:
    """
    Compare ``J^T u`` with autograd's on a few states, and ``u^T J v`` with that.

    :return: how many numbers the factors hold for each state
    :raises NotLayerwise: if they differ: a weight has another way to the outputs, samples have one to each
        other, or a layer's output is changed in place
    """
    jacobian = LayerwiseJacobian(policy, family, observations, parameters)
    outputs = family.of(policy.get_distribution(observations))  # type: ignore[arg-type]
    generator = th.Generator().manual_seed(0)
    cotangent, *change = (
        th.randn(x.shape, generator=generator).to(x.detach()) for x in (outputs, *parameters)
    )
    pulled = jacobian.pull_back(cotangent)
    expected = th.autograd.grad(outputs, parameters, cotangent, allow_unused=True, materialize_grads=True)
    for found, gradient in zip(pulled, expected, strict=True):
        if (found - gradient).norm() > TOLERANCE * gradient.norm() + 1e-12:
            raise NotLayerwise("autograd finds another gradient")
    products = [(v * gradient).sum() for v, gradient in zip(change, expected, strict=True)]
    tangent = jacobian.tangent(change)
    scale = tangent.norm() * cotangent.norm()
    if ((tangent * cotangent).sum() - sum(products)).abs() > TOLERANCE * scale:
        raise NotLayerwise("the tangent is not the gradient's adjoint")
    return jacobian.entries_per_sample
