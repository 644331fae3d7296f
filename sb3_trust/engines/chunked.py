"""Gradients and Fisher-vector products in bounded memory: piece by piece, evaluated anew each time."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch as th

from sb3_trust.engines.base import Evaluation, PolicyEngine
from sb3_trust.engines.batch import Batch
from sb3_trust.numerics.objectives import PolicyTerms, joined


class ChunkedEvaluation(Evaluation):
    """
    As the engine's own evaluation of a batch, without what it keeps of more than one chunk.

    :param size: samples in a chunk
    """

    def __init__(self, engine: PolicyEngine, batch: Batch, needs: Collection[str], size: int) -> None:
        self._engine, self._needs, self._size = engine, needs, size
        self._chunks = batch.chunks(size)
        self.terms = joined([engine.evaluate(chunk, needs).terms for chunk in self._chunks], th.cat)

    def gradient(self, derivatives: PolicyTerms, parameters: list[th.nn.Parameter]) -> list[th.Tensor]:
        totals = [th.zeros_like(p) for p in parameters]
        for number, chunk in enumerate(self._chunks):
            rows = slice(number * self._size, number * self._size + len(chunk))
            slopes = PolicyTerms(
                **{name: None if slope is None else slope[rows] for name, slope in vars(derivatives).items()}
            )
            gradients = self._engine.evaluate(chunk, self._needs).gradient(slopes, parameters)
            for total, gradient in zip(totals, gradients, strict=True):
                total += gradient
        return totals


def fisher_in_chunks(engine: PolicyEngine, batch: Batch, size: int) -> Callable[[th.Tensor], th.Tensor]:
    """As ``engine.fisher_vector_product``, with no more than a chunk's Jacobian in memory."""
    chunks = batch.chunks(size)

    def product(vector: th.Tensor) -> th.Tensor:
        total = th.zeros_like(vector)
        for chunk in chunks:
            share = len(chunk) / len(batch)
            total += engine.fisher_vector_product(chunk, once=True)(vector) * share
        return total

    return product
