"""A rollout as one flat batch of tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples

Observations = th.Tensor | dict[str, th.Tensor]


@dataclass
class Batch:
    """
    Samples of a rollout, as tensors on the policy's device.

    :param observations: [n, ...], or a dict of such
    :param actions: as ``policy.evaluate_actions`` takes them: [n] for Discrete, else [n, action_dim]
    :param advantages: [n]
    :param returns: [n]
    :param old_values: values when the rollout was made, [n]
    :param old_log_prob: log-probabilities when the rollout was made, [n]
    :param old_distribution: flat distribution parameters when the rollout was made, [n, n_parameters]
    """

    observations: Observations
    actions: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    old_distribution: th.Tensor | None = None

    def __len__(self) -> int:
        return len(self.advantages)

    def __getitem__(self, indices: th.Tensor | slice) -> Batch:
        observations: Observations
        if isinstance(self.observations, dict):
            observations = {key: value[indices] for key, value in self.observations.items()}
        else:
            observations = self.observations[indices]
        return Batch(
            observations,
            self.actions[indices],
            self.advantages[indices],
            self.returns[indices],
            self.old_values[indices],
            self.old_log_prob[indices],
            None if self.old_distribution is None else self.old_distribution[indices],
        )

    def chunks(self, size: int) -> list[Batch]:
        """The same samples in order, in batches of at most this size."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def with_advantages(self, advantages: th.Tensor) -> Batch:
        """The same samples with other advantages, shape [n]."""
        return replace(self, advantages=advantages)

    def non_finite(self) -> str | None:
        """The name of the first quantity that holds a NaN or an infinity, if any."""
        for name in ("advantages", "returns", "old_values", "old_log_prob", "actions"):
            tensor = getattr(self, name)
            if tensor.is_floating_point() and not bool(th.isfinite(tensor).all()):
                return name
        old = self.old_distribution
        # a logit of -inf is a forbidden action
        if old is not None and bool((old.isnan() | (old == th.inf)).any()):
            return "old_distribution"
        return None


def flat_batch(
    buffer: RolloutBuffer, action_space: spaces.Space, old_distribution: th.Tensor | None
) -> Batch:
    """
    The whole content of a full rollout buffer, env-major, as SB3's own minibatches draw from it.

    The buffer is left as its ``get()`` leaves it (flattened) and NumPy's random state as it was. A buffer
    class of the user's own is read through its ``get()``, in whatever order that yields.

    :param old_distribution: distribution parameters at each step, [n_steps, n_envs, n_parameters]; taken
        over only where the order of the samples is known
    """
    if order_is_known(buffer):
        random_state = np.random.get_state()
        next(iter(buffer.get(batch_size=1)))
        np.random.set_state(random_state)
        samples = buffer._get_samples(slice(None))  # type: ignore[arg-type]
    else:
        samples = next(iter(buffer.get(batch_size=None)))
        old_distribution = None
    if old_distribution is not None:
        if old_distribution.dim() == 3:
            old_distribution = old_distribution.transpose(0, 1).flatten(0, 1)
        old_distribution = old_distribution.to(buffer.device)
    return _as_batch(samples, action_space, old_distribution)


def order_is_known(buffer: RolloutBuffer) -> bool:
    """Whether a buffer hands out its samples as SB3's do."""
    stock = DictRolloutBuffer if isinstance(buffer, DictRolloutBuffer) else RolloutBuffer
    names = ("get", "_get_samples", "swap_and_flatten")
    return all(getattr(type(buffer), name) is getattr(stock, name) for name in names)


def _as_batch(
    samples: RolloutBufferSamples, action_space: spaces.Space, old_distribution: th.Tensor | None
) -> Batch:
    actions = samples.actions
    if isinstance(action_space, spaces.Discrete):
        actions = actions.long().flatten()
    return Batch(
        samples.observations,
        actions,
        samples.advantages,
        samples.returns,
        samples.old_values,
        samples.old_log_prob,
        old_distribution,
    )


def shuffled(batch: Batch) -> Batch:
    """The samples in the order of one permutation of NumPy's, as SB3 draws it once an epoch."""
    permutation = th.from_numpy(np.random.permutation(len(batch)))
    return batch[permutation.to(batch.advantages.device)]
