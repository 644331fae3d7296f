"""An epoch of minibatch steps, and what it amounted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch as th

from sb3_trust.engines.base import Descent
from sb3_trust.engines.batch import Batch, shuffled
from sb3_trust.numerics.arrays import Array
from sb3_trust.numerics.objectives import (
    Objective,
    ObjectiveValue,
    PolicyTerms,
    RolloutArrays,
    RolloutTerms,
    joined,
    normalize_advantages,
)

# refuses the step of a minibatch: ends the epoch before it
Refusal = Callable[[PolicyTerms, RolloutTerms], bool]


@dataclass
class Epoch:
    """
    :param values: the objective at each minibatch before its step, pieces of shape [...]
    :param statistics: its statistics at each minibatch, pieces of shape [...]
    :param gradient_norms: of each step
    :param stopped: whether a step was refused
    """

    values: list[th.Tensor] = field(default_factory=list)
    statistics: list[dict[str, th.Tensor]] = field(default_factory=list)
    gradient_norms: list[th.Tensor | float] = field(default_factory=list)
    stopped: bool = False


def run_epoch(
    descent: Descent,
    objective: Objective,
    batch: Batch,
    size: int,
    normalize_advantage: bool = False,
    refuse: Refusal | None = None,
) -> Epoch:
    """
    Take a step on each minibatch of a shuffled batch.

    The objective's value and statistics are taken afterwards, for all minibatches at once.

    :param size: samples in a minibatch
    :param normalize_advantage: normalise the advantages of each minibatch
    """
    batch = shuffled(batch)
    if normalize_advantage:
        batch = batch.with_advantages(_normalized(batch.advantages, size))
    epoch = Epoch()
    seen: list[PolicyTerms] = []
    for minibatch in descent.minibatches(batch, size, objective.needs):
        terms = descent.evaluate(minibatch)
        seen.append(terms)
        if refuse is not None and refuse(terms, minibatch):
            epoch.stopped = True
            break
        epoch.gradient_norms.append(descent.step(objective.derivatives(terms, minibatch)))
    full = min(len(seen), len(batch) // size)
    for start, stop in ((0, full), (full, len(seen))):
        if stop > start:
            result = _evaluated(objective, batch, size, seen, start, stop)
            epoch.values.append(result.value)
            epoch.statistics.append(result.statistics)
    return epoch


def _normalized(advantages: th.Tensor, size: int) -> th.Tensor:
    whole = len(advantages) // size * size
    if not whole:
        return normalize_advantages(advantages)
    full = normalize_advantages(advantages[:whole].view(-1, size)).flatten()
    return th.cat([full, normalize_advantages(advantages[whole:])])


def _stack(rows: list[Array]) -> th.Tensor:
    return th.from_numpy(np.stack(rows)) if isinstance(rows[0], np.ndarray) else th.stack(rows)


def _evaluated(
    objective: Objective, batch: Batch, size: int, seen: list[PolicyTerms], start: int, stop: int
) -> ObjectiveValue:
    """The objective at minibatches ``start`` to ``stop``, which are of the same size."""
    rows = slice(start * size, min(stop * size, len(batch)))
    data = RolloutArrays(
        *(
            getattr(batch, name)[rows].view(stop - start, -1)
            for name in ("advantages", "returns", "old_values", "old_log_prob")
        )
    )
    result = objective(joined(seen[start:stop], _stack), data)
    for name, value in {"value": result.value, **result.statistics}.items():
        if not isinstance(value, th.Tensor) or value.shape != (stop - start,):
            found = tuple(value.shape) if isinstance(value, th.Tensor) else type(value).__name__
            raise ValueError(
                f"`objective` must give one {name} for each batch, of shape {(stop - start,)} for terms of "
                f"shape [{stop - start}, n], but gave {found}: take means over the last axis alone"
            )
    return result
