"""Epochs of minibatch gradient steps on an objective: what PPO and PPOPenalty share."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch as th

from sb3_trust.algorithms.arguments import check_minibatch
from sb3_trust.algorithms.base import TrustRegionAlgorithm
from sb3_trust.algorithms.epochs import Epoch, Refusal, run_epoch
from sb3_trust.algorithms.statistics import MinibatchStatistics
from sb3_trust.engines.batch import Batch
from sb3_trust.errors import check_integer, check_number
from sb3_trust.numerics.objectives import Objective


class MinibatchAlgorithm(TrustRegionAlgorithm):
    """
    Several epochs of optimizer steps over shuffled minibatches of a rollout.

    A subclass says which objective a rollout has, and may stop the epochs early.
    """

    batch_size: int
    n_epochs: int
    normalize_advantage: bool
    statistics_class: ClassVar[type[MinibatchStatistics]]

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_minibatch(self, self.batch_size, self.normalize_advantage, per_minibatch=True)
        check_integer("n_epochs", self.n_epochs, 1)
        check_number("vf_coef", self.vf_coef)
        check_number("max_grad_norm", self.max_grad_norm, open_minimum=True, allow_infinity=True)

    @abstractmethod
    def _objective(self) -> Objective:
        """The loss of this rollout's minibatches."""

    def _refusal(self, epoch: int) -> Refusal | None:
        """What may end the update before a minibatch's step in this epoch."""
        return None

    def _update(self, batch: Batch) -> MinibatchStatistics:
        objective = self._objective()
        self.policy.set_training_mode(True)
        epochs: list[Epoch] = []
        with self._policy_engine().descent(max_grad_norm=self.max_grad_norm) as descent:
            for number in range(self.n_epochs):
                refusal = self._refusal(number)
                epoch = run_epoch(
                    descent, objective, batch, self.batch_size, self.normalize_advantage, refusal
                )
                epochs.append(epoch)
                self._n_updates += 1
                if epoch.stopped:
                    break
        return self._summarize(epochs)

    def _summarize(self, epochs: list[Epoch]) -> MinibatchStatistics:
        """
        Means over minibatches, read from the device once. The approximate KL divergence is the last epoch's
        and the loss the last minibatch's, as SB3 logs them.
        """
        table = {}
        for name in epochs[0].statistics[0]:
            pieces = [[piece[name] for piece in epoch.statistics] for epoch in epochs]
            if name == "approx_kl":
                pieces = pieces[-1:]
            column = th.cat([piece for epoch in pieces for piece in epoch])
            table[name] = column[-1].double() if name == "loss" else column.mean(dtype=th.float64)
        norms = [th.as_tensor(norm, device=self.device) for epoch in epochs for norm in epoch.gradient_norms]
        table["gradient_norm"] = th.stack(norms).mean(dtype=th.float64) if norms else th.tensor(math.nan)
        values = th.stack([value.to(self.device) for value in table.values()]).cpu().tolist()
        return self.statistics_class(**dict(zip(table, values, strict=True)))
