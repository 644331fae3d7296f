"""Fisher-vector products through autograd."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trust.engines.batch import Batch
from sb3_trust.engines.distributions import DistributionFamily
from sb3_trust.engines.layerwise import LayerwiseJacobian, NotLayerwise, check_layerwise
from sb3_trust.engines.vectors import flatten

Product = Callable[[th.Tensor], th.Tensor]

# states on which the factors of a Jacobian are compared with autograd
PROBE_SIZE = 4
# entries of the factors of all states, about a gigabyte
MAX_FACTOR_ENTRIES = 2**28
CONVOLUTIONS = (th.nn.Conv1d, th.nn.Conv2d, th.nn.Conv3d)


def fisher_product(
    policy: ActorCriticPolicy,
    family: DistributionFamily,
    batch: Batch,
    chunks: list[Batch],
    parameters: list[th.nn.Parameter],
    once: bool,
) -> Product:
    """
    The product with the Fisher matrix at the present parameters, averaged over a batch's states.

    Where convolutions are most of the work, the Jacobian is kept in factors of its layers, if it comes apart
    into them and they fit into memory; linear layers alone are faster by autograd.

    :param chunks: the batch in pieces that are evaluated at once
    :param once: a single product is made, which factors are not worth
    """
    if not once and any(isinstance(module, CONVOLUTIONS) for module in policy.modules()):
        with suppress(NotLayerwise):
            entries = check_layerwise(policy, family, batch[:PROBE_SIZE].observations, parameters)
            if entries * len(batch) < MAX_FACTOR_ENTRIES:
                return _layerwise_product(policy, family, chunks, parameters)
    return _twice_backward_product(policy, family, batch, parameters)


def _layerwise_product(
    policy: ActorCriticPolicy,
    family: DistributionFamily,
    chunks: list[Batch],
    parameters: list[th.nn.Parameter],
) -> Product:
    jacobians = [LayerwiseJacobian(policy, family, chunk.observations, parameters) for chunk in chunks]
    n = sum(map(len, chunks))

    def product(vector: th.Tensor) -> th.Tensor:
        change = _split(vector, parameters)
        total = th.zeros_like(vector)
        for jacobian in jacobians:
            metric_tangent = family.fisher(jacobian.outputs, jacobian.tangent(change)) / n
            total += flatten(jacobian.pull_back(metric_tangent))
        return total

    return product


def _twice_backward_product(
    policy: ActorCriticPolicy, family: DistributionFamily, batch: Batch, parameters: list[th.nn.Parameter]
) -> Product:
    """
    ``J v`` as the derivative of the vector-Jacobian product ``J^T u`` with respect to ``u``: reverse mode
    alone, which every module supports.
    """
    outputs = family.of(policy.get_distribution(batch.observations))  # type: ignore[arg-type]
    cotangent = th.zeros_like(outputs, requires_grad=True)
    # J^T u for u = 0, as a graph that is linear in u
    pulled_back = th.autograd.grad(outputs, parameters, cotangent, create_graph=True, materialize_grads=True)
    fixed = outputs.detach()

    def product(vector: th.Tensor) -> th.Tensor:
        pieces = _split(vector, parameters)
        (tangent,) = th.autograd.grad(pulled_back, cotangent, pieces, retain_graph=True)
        metric_tangent = family.fisher(fixed, tangent) / len(batch)
        pulled = th.autograd.grad(
            outputs, parameters, metric_tangent, retain_graph=True, materialize_grads=True
        )
        return flatten(pulled)

    return product


def _split(vector: th.Tensor, parameters: list[th.nn.Parameter]) -> list[th.Tensor]:
    sizes = [p.numel() for p in parameters]
    return [piece.view_as(p) for piece, p in zip(vector.split(sizes), parameters, strict=True)]
