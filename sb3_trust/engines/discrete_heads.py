"""Categorical and binary actions in closed form."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch as th
import torch.nn.functional as F

from sb3_trust.engines.heads import Evaluated, Head


class CategoricalHead(Head):
    """
    Independent categorical distributions whose logits the network puts out, one after another.

    :param sizes: number of choices of each
    :param flat: whether an action is a number (Discrete) and not a vector (MultiDiscrete)
    """

    action_dtype = np.int64

    def __init__(self, sizes: list[int], flat: bool) -> None:
        ends = np.cumsum(sizes).tolist()
        self._flat = flat
        self._sizes = sizes
        self.parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    def encode(self, actions: th.Tensor) -> np.ndarray:
        columns = actions.long().reshape(len(actions), -1).unbind(1)
        hot = [F.one_hot(column, size) for column, size in zip(columns, self._sizes, strict=True)]
        return th.cat(hot, dim=1).float().numpy()

    def encode_old(self, parameters: th.Tensor) -> np.ndarray:
        return th.cat([F.log_softmax(part, -1) for part in parameters.split(self._sizes, -1)], -1).numpy()

    def evaluate(
        self, outputs: np.ndarray, actions: np.ndarray, old: np.ndarray | None, needs: Collection[str]
    ) -> Evaluated:
        return _EvaluatedCategorical(self, outputs, actions, old, needs)

    def metric(self, outputs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        probs = np.exp(self.parameters(outputs.T)).T.copy()

        def product(tangent: np.ndarray) -> np.ndarray:
            weighted = probs * tangent
            for part in self.parts:
                weighted[part] -= probs[part] * np.add.reduce(weighted[part])
            return weighted

        return product

    def parameters(self, outputs: np.ndarray) -> np.ndarray:
        if len(self.parts) == 1:
            return th.log_softmax(th.from_numpy(outputs), -1).numpy()
        parts = [th.log_softmax(th.from_numpy(outputs[..., part]), -1) for part in self.parts]
        return th.cat(parts, -1).numpy()

    def noise(self, *shape: int) -> np.ndarray:
        # Gumbel noise: the largest of logits + noise is a sample
        exponential = th.empty(*shape, self.parts[-1].stop).exponential_()
        return exponential.clamp_(min=1e-30).log_().neg_().numpy()

    def sample(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        scores = outputs + noise
        if self._flat:
            return scores.argmax(axis=1)
        return np.stack([scores[:, part].argmax(axis=1) for part in self.parts], axis=1)


class _EvaluatedCategorical(Evaluated):
    def __init__(
        self,
        head: CategoricalHead,
        logits: np.ndarray,
        actions: np.ndarray,
        old: np.ndarray | None,
        needs: Collection[str],
    ) -> None:
        self._actions, self._parts = actions, head.parts
        self._probs = probs = np.empty_like(logits)
        self._log_probs = log_probs = np.empty_like(logits)
        for part in head.parts:
            z, p, log_p = logits[part], probs[part], log_probs[part]
            np.subtract(z, np.maximum.reduce(z), log_p)
            np.exp(log_p, p)
            total = np.add.reduce(p)
            np.divide(p, total, p)
            np.subtract(log_p, np.log(total), log_p)
        if "log_prob" in needs:
            self.log_prob = np.einsum("kn,kn->n", actions, log_probs)
        if "entropy" in needs:
            self.entropy = -np.einsum("kn,kn->n", probs, log_probs)
        if "kl" in needs and old is not None:
            self._old_probs = np.exp(old)
            self.kl = np.add.reduce(self._old_probs * (old - log_probs))

    def pull_back(
        self, log_prob: np.ndarray | None, entropy: np.ndarray | None, kl: np.ndarray | None
    ) -> np.ndarray:
        probs = self._probs
        slope = np.zeros_like(probs) if log_prob is None else (self._actions - probs) * log_prob
        if entropy is not None:
            for part in self._parts:
                p, log_p = probs[part], self._log_probs[part]
                weighted = p * log_p
                slope[part] -= (weighted - p * np.add.reduce(weighted)) * entropy
        if kl is not None:
            slope += (probs - self._old_probs) * kl
        return slope


class BernoulliHead(Head):
    """
    Independent binary actions whose logits the network puts out.

    :param size: number of them
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def evaluate(
        self, outputs: np.ndarray, actions: np.ndarray, old: np.ndarray | None, needs: Collection[str]
    ) -> Evaluated:
        return _EvaluatedBernoulli(outputs, actions, old, needs)

    def metric(self, outputs: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        probs = th.sigmoid(th.from_numpy(outputs)).numpy()
        variance = probs * (1.0 - probs)
        return lambda tangent: tangent * variance

    def parameters(self, outputs: np.ndarray) -> np.ndarray:
        return outputs.copy()

    def noise(self, *shape: int) -> np.ndarray:
        # logistic noise: an action is taken where logit + noise is positive
        return th.rand(*shape, self._size).clamp_(1e-7, 1 - 1e-7).logit_().numpy()

    def sample(self, outputs: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return (outputs + noise > 0.0).astype(np.float32)


class _EvaluatedBernoulli(Evaluated):
    def __init__(
        self, logits: np.ndarray, actions: np.ndarray, old: np.ndarray | None, needs: Collection[str]
    ) -> None:
        self._logits, self._actions = logits, actions
        tensor = th.from_numpy(np.ascontiguousarray(logits))
        self._probs = th.sigmoid(tensor).numpy()
        log_one = F.logsigmoid(tensor).numpy()
        log_zero = log_one - logits  # log sigmoid(-x) = log sigmoid(x) - x
        if "log_prob" in needs:
            self.log_prob = np.add.reduce(log_zero + actions * logits)
        if "entropy" in needs:
            self.entropy = -np.add.reduce(log_zero + self._probs * logits)
        if "kl" in needs and old is not None:
            old_tensor = th.from_numpy(np.ascontiguousarray(old))
            self._old_probs = th.sigmoid(old_tensor).numpy()
            change = F.logsigmoid(old_tensor).numpy() - log_one
            self.kl = np.add.reduce(
                self._old_probs * change + (1.0 - self._old_probs) * (change - old + logits)
            )

    def pull_back(
        self, log_prob: np.ndarray | None, entropy: np.ndarray | None, kl: np.ndarray | None
    ) -> np.ndarray:
        probs = self._probs
        slope = np.zeros_like(probs) if log_prob is None else (self._actions - probs) * log_prob
        if entropy is not None:
            slope -= self._logits * probs * (1.0 - probs) * entropy
        if kl is not None:
            slope += (probs - self._old_probs) * kl
        return slope
