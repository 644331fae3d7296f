"""Epochs of minibatch gradient steps on an objective: what PPO and PPOPenalty share."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch as th

from sb3_trust.algorithms.arguments import check_minibatch
from sb3_trust.algorithms.base import TrustRegionAlgorithm
from sb3_trust.algorithms.statistics import MinibatchStatistics
from sb3_trust.engines.batch import Batch, minibatches
from sb3_trust.errors import check_integer, check_number
from sb3_trust.numerics.objectives import Objective, normalize_advantages

Statistics = dict[str, th.Tensor]


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

    def _stops(self, statistics: Statistics, epoch: int) -> bool:
        """Whether to end the update before the step of a minibatch with these statistics."""
        return False

    def _update(self, batch: Batch) -> MinibatchStatistics:
        objective = self._objective()
        self.policy.set_training_mode(True)
        history: list[Statistics] = []
        last_epoch = 0
        stopped = False
        for epoch in range(self.n_epochs):
            last_epoch = len(history)
            for indices in minibatches(batch, self.batch_size):
                statistics, stopped = self._minibatch_step(objective, batch[indices], epoch)
                history.append(statistics)
                if stopped:
                    break
            self._n_updates += 1
            if stopped:
                break
        return self._summarize(history, last_epoch)

    def _minibatch_step(self, objective: Objective, minibatch: Batch, epoch: int) -> tuple[Statistics, bool]:
        """One optimizer step, and whether it was refused."""
        if self.normalize_advantage:
            minibatch = minibatch.with_advantages(normalize_advantages(minibatch.advantages))
        evaluation = self._policy_engine().evaluate(minibatch, objective.needs)
        result = objective(evaluation.terms, minibatch)
        statistics = result.statistics
        if self._stops(statistics, epoch):
            return statistics, True
        optimizer = self.policy.optimizer
        optimizer.zero_grad()
        evaluation.backward(result.derivatives)
        statistics["gradient_norm"] = th.nn.utils.clip_grad_norm_(
            self.policy.parameters(), self.max_grad_norm
        )
        optimizer.step()
        return statistics, False

    def _summarize(self, history: list[Statistics], last_epoch: int) -> MinibatchStatistics:
        """Means over minibatches, read from the device once. The loss is the last one's, as SB3 logs it."""
        names = list(history[0])
        rows = th.stack(
            [th.stack([row.get(name, _NAN).to(self.device) for name in names]) for row in history]
        )
        table = dict(zip(names, rows.double().cpu().numpy().T, strict=True))
        means = {name: float(np.nanmean(column)) for name, column in table.items()}
        means["approx_kl"] = float(np.mean(table["approx_kl"][last_epoch:]))
        means["loss"] = float(table["loss"][-1])
        return self.statistics_class(**means)  # type: ignore[arg-type]


_NAN = th.tensor(float("nan"))
