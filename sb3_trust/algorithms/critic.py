"""The critic's own phase, for algorithms that fit it apart from the policy."""

from __future__ import annotations

import torch as th

from sb3_trust.engines.base import PolicyEngine
from sb3_trust.engines.batch import Batch, minibatches
from sb3_trust.numerics.objectives import ValueLoss


def fit_critic(
    engine: PolicyEngine, optimizer: th.optim.Optimizer, batch: Batch, n_epochs: int, batch_size: int
) -> float:
    """
    Regress the value function on the returns by minibatches. Only what the policy does not depend on moves.

    :return: the mean value loss over all minibatches; 0 where nothing was fitted
    """
    loss = ValueLoss()
    parameters = engine.partition(batch).critic_only
    losses: list[th.Tensor] = []
    for _ in range(n_epochs if parameters else 0):
        for indices in minibatches(batch, batch_size):
            minibatch = batch[indices]
            evaluation = engine.evaluate(minibatch, loss.needs)
            result = loss(evaluation.terms, minibatch)
            # no gradient at all for the others: to an optimizer with momentum a zero gradient is a step
            optimizer.zero_grad(set_to_none=True)
            gradients = evaluation.gradient(result.derivatives, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            losses.append(result.value)
    return th.stack(losses).mean(dtype=th.float64).item() if losses else 0.0
