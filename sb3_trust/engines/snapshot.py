"""The state of a policy before an update, to go back to."""

from __future__ import annotations

import copy
from typing import Any

import torch as th
from stable_baselines3.common.policies import BasePolicy


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, th.Tensor) else copy.deepcopy(value)
        for name, value in values.items()
    }


def _put_back(values: dict[str, Any], saved: dict[str, Any]) -> None:
    """Make a dict what it was, tensors in place."""
    for name in values.keys() - saved.keys():
        del values[name]
    for name, value in _copied(saved).items():
        current = values.get(name)
        if isinstance(current, th.Tensor) and isinstance(value, th.Tensor) and current.shape == value.shape:
            current.copy_(value)
        else:
            values[name] = value


def _options(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group without its parameters."""
    return {name: value for name, value in group.items() if name != "params"}


class Snapshot:
    """
    A copy of a policy's parameters, buffers and optimizer state.

    :param policy: the policy, at the moment of the copy
    :ivar parameters: copies of its parameters, in its order
    """

    def __init__(self, policy: BasePolicy) -> None:
        self._policy = policy
        self.parameters = [parameter.detach().clone() for parameter in policy.parameters()]
        self._buffers = [buffer.clone() for buffer in policy.buffers()]
        optimizer = policy.optimizer
        self._state: dict[Any, dict[str, Any]] = {p: _copied(state) for p, state in optimizer.state.items()}
        self._groups = [_copied(_options(group)) for group in optimizer.param_groups]

    @th.no_grad()
    def restore(self) -> None:
        """Put everything back, bit for bit, tensors in place."""
        for parameter, weights in zip(self._policy.parameters(), self.parameters, strict=True):
            parameter.copy_(weights)
        self.restore_buffers()
        optimizer = self._policy.optimizer
        for begun in [p for p in optimizer.state if p not in self._state]:
            del optimizer.state[begun]
        for owner, state in self._state.items():
            _put_back(optimizer.state[owner], state)
        for group, saved_group in zip(optimizer.param_groups, self._groups, strict=True):
            members = group.pop("params")
            _put_back(group, saved_group)
            group["params"] = members
        optimizer.zero_grad()

    @th.no_grad()
    def restore_buffers(self) -> None:
        """Put the buffers alone back."""
        for buffer, saved in zip(self._policy.buffers(), self._buffers, strict=True):
            buffer.copy_(saved)

    def still_finite(self) -> bool:
        """
        Whether parameters and optimizer state are finite, and the buffers wherever they were: a buffer may
        hold an infinity on purpose, as an attention mask does.
        """
        pairs = zip(self._policy.buffers(), self._buffers, strict=True)
        return all_finite(self._policy) and all(
            bool((th.isfinite(now) | ~th.isfinite(before)).all()) for now, before in pairs
        )


def all_finite(policy: BasePolicy) -> bool:
    """Whether parameters and optimizer state hold neither NaN nor infinity."""
    state = [value for values in policy.optimizer.state.values() for value in values.values()]
    tensors = [*policy.parameters(), *(value for value in state if isinstance(value, th.Tensor))]
    device = policy.device
    checks = [th.isfinite(t).all().to(device) for t in tensors if t.is_floating_point()]
    return bool(th.stack(checks).all())
