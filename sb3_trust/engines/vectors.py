"""Parameters as one flat vector and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch as th


def flatten(tensors: Iterable[th.Tensor]) -> th.Tensor:
    """All entries of the tensors, in order, as one vector."""
    return th.cat([tensor.reshape(-1) for tensor in tensors])


@th.no_grad()
def assign(parameters: Sequence[th.nn.Parameter], vector: th.Tensor) -> None:
    """Write a flat vector into the parameters, in place; the inverse of :func:`flatten`."""
    for parameter, piece in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(piece.view_as(parameter))
