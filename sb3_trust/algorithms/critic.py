"""The critic's own phase, for algorithms that fit it apart from the policy."""

from __future__ import annotations

import torch as th

from sb3_trust.algorithms.epochs import run_epoch
from sb3_trust.engines.base import DescentOptions, PolicyEngine
from sb3_trust.engines.batch import Batch
from sb3_trust.numerics.losses import ValueLoss


def fit_critic(
    engine: PolicyEngine, batch: Batch, n_epochs: int, batch_size: int, options: DescentOptions
) -> float:
    """
    Regress the value function on the returns by minibatches. Only what the policy does not depend on moves.

    :return: the mean value loss over all minibatches; 0 where nothing was fitted
    """
    loss = ValueLoss()
    if not engine.partition(batch).critic_only or not n_epochs:
        return 0.0
    with engine.descent(batch, options, critic_only=True) as descent:
        batch = descent.prepared(batch)
        epochs = [run_epoch(descent, loss, batch, batch_size) for _ in range(n_epochs)]
    return th.cat([piece for epoch in epochs for piece in epoch.values]).mean(dtype=th.float64).item()
