"""Telling those who ask of each update that was made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_trust.algorithms.statistics import UpdateStatistics
from sb3_trust.engines.batch import Batch
from sb3_trust.numerics.line_search import LineSearchResult


@dataclass(frozen=True)
class SearchedStep:
    """
    A step and the search for how much of it to take.

    :param step: the full step, [n_policy_parameters], in float64, in the order of ``engine.partition``
    :param slope: the surrogate's directional derivative along it
    :param scale: the fraction of the full step that the search began with
    :param shrinking_factor: ratio of each fraction that it tried to the one before
    :param result: what it found; its fractions are of ``scale`` times the step
    """

    step: th.Tensor
    slope: float
    scale: float
    shrinking_factor: float
    result: LineSearchResult


@dataclass(frozen=True)
class FinishedUpdate:
    """
    An update that stands.

    :param batch: the rollout that it was made from; advantages as they were estimated
    :param old_parameters: copies of all of the policy's parameters before it, in the policy's order
    :param statistics: what it did
    :param searched: the policy's step and the line search along it, where the algorithm makes one
    """

    batch: Batch
    old_parameters: list[th.Tensor]
    statistics: UpdateStatistics
    searched: SearchedStep | None


UpdateListener = Callable[[FinishedUpdate], None]


class ListenedTo(OnPolicyAlgorithm):
    """
    Calls listeners after each update that was not rolled back, when it has been logged. They are called in
    order, find the policy as the update left it, and must leave it so. ``learn`` forgets those of the
    ``learn`` before: a callback adds itself in ``_on_training_start``. They are neither saved nor copied.
    """

    _listeners: tuple[UpdateListener, ...] = ()
    _searched: tuple[UpdateStatistics, SearchedStep] | None = None
    _finished: FinishedUpdate | None = None

    def add_update_listener(self, listener: UpdateListener) -> None:
        """Call ``listener`` after each update from now on."""
        self._listeners = (*self._listeners, listener)

    def remove_update_listener(self, listener: UpdateListener) -> None:
        """Call ``listener`` no more; nothing happens where it was not called."""
        self._listeners = tuple(other for other in self._listeners if other != listener)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_listeners", "_searched", "_finished"]

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        self._listeners = ()
        return super()._setup_learn(*args, **kwargs)

    def _keep_search(self, statistics: UpdateStatistics, searched: SearchedStep) -> None:
        """For listeners: the last search of the update that ``statistics`` are of."""
        if self._listeners:
            self._searched = statistics, searched

    def _keep_update(
        self, batch: Batch, old_parameters: list[th.Tensor], statistics: UpdateStatistics
    ) -> None:
        """For listeners: an update that stands."""
        if self._listeners:
            # an update that raised may have left a search of its own
            own = self._searched is not None and self._searched[0] is statistics
            searched = self._searched[1] if own and self._searched is not None else None
            self._finished = FinishedUpdate(batch, old_parameters, statistics, searched)

    def _tell_listeners(self) -> None:
        finished, self._finished, self._searched = self._finished, None, None
        if finished is not None:
            for listener in self._listeners:
                listener(finished)
