"""What a policy's own modules say about a batch, and the way back through autograd."""

from __future__ import annotations

import torch as th

from sb3_trust.engines.base import Evaluation
from sb3_trust.numerics.objectives import PolicyTerms


def _detached(terms: PolicyTerms) -> PolicyTerms:
    return PolicyTerms(
        **{name: None if term is None else term.detach() for name, term in vars(terms).items()}
    )


class AutogradEvaluation(Evaluation):
    """Keeps the graph of the terms."""

    def __init__(self, outputs: PolicyTerms) -> None:
        self._outputs = outputs
        self.terms = _detached(outputs)

    def backward(self, derivatives: PolicyTerms) -> None:
        """Add the gradient of what ``derivatives`` belongs to to each parameter's ``.grad``."""
        outputs, slopes = _pairs(self._outputs, derivatives)
        if outputs:
            th.autograd.backward(outputs, slopes)

    def gradient(self, derivatives: PolicyTerms, parameters: list[th.nn.Parameter]) -> list[th.Tensor]:
        outputs, slopes = _pairs(self._outputs, derivatives)
        if not outputs:
            return [th.zeros_like(p) for p in parameters]
        gradients = th.autograd.grad(outputs, parameters, slopes, allow_unused=True)
        return [th.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]


def _pairs(outputs: PolicyTerms, derivatives: PolicyTerms) -> tuple[list[th.Tensor], list[th.Tensor]]:
    """
    The outputs that have a derivative and depend on anything trainable, and these derivatives, in order.
    """
    fields = ("log_prob", "entropy", "kl", "values")
    named = [(getattr(outputs, name), getattr(derivatives, name)) for name in fields]
    chosen = [(output, slope) for output, slope in named if slope is not None and output.requires_grad]
    return [output for output, _ in chosen], [slope for _, slope in chosen]
