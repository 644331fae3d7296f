"""The state of a policy before an update, to go back to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch as th
from stable_baselines3.common.policies import BasePolicy


def _tensors(policy: BasePolicy) -> Iterator[th.Tensor]:
    """Parameters, buffers and optimizer state."""
    yield from policy.parameters()
    yield from policy.buffers()
    for state in policy.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, th.Tensor))


class Snapshot:
    """
    A copy of a policy's parameters, buffers and optimizer state.

    :param policy: the policy, at the moment of the copy
    """

    def __init__(self, policy: BasePolicy) -> None:
        self._policy = policy
        self._module_state = [tensor.detach().clone() for tensor in (*policy.parameters(), *policy.buffers())]
        self._optimizer_state: dict[Any, dict[str, Any]] = {
            parameter: {
                name: value.clone() if isinstance(value, th.Tensor) else value
                for name, value in state.items()
            }
            for parameter, state in policy.optimizer.state.items()
        }

    @th.no_grad()
    def restore(self) -> None:
        """Put everything back, bit for bit, in place."""
        policy = self._policy
        for tensor, saved in zip((*policy.parameters(), *policy.buffers()), self._module_state, strict=True):
            tensor.copy_(saved)
        state = policy.optimizer.state
        for parameter in [p for p in state if p not in self._optimizer_state]:
            del state[parameter]
        for parameter, saved_state in self._optimizer_state.items():
            for name, saved in saved_state.items():
                if isinstance(saved, th.Tensor):
                    state[parameter][name].copy_(saved)
                else:
                    state[parameter][name] = saved
        policy.optimizer.zero_grad()


def all_finite(policy: BasePolicy) -> bool:
    """Whether parameters, buffers and optimizer state hold neither NaN nor infinity."""
    checks = [
        th.isfinite(tensor).all().to(policy.device)
        for tensor in _tensors(policy)
        if tensor.is_floating_point()
    ]
    return bool(th.stack(checks).all())
