"""What keeps NaN and infinities of an environment away from the policy."""

from __future__ import annotations

import math

import numpy as np
from stable_baselines3.common.vec_env import VecNormalize


class FiniteGuard:
    """
    Stops a rollout at the first observation that is NaN or infinite.

    Nothing can be learned from it, and no later rollout would be better: a running normaliser carries it on
    for ever. For the same reason rewards are checked here only under a reward normaliser; without one, a bad
    reward spoils one rollout, and the update guards against that.
    """

    def __init__(self, normalizer: VecNormalize | None) -> None:
        self._normalizer = normalizer

    def check_observations(self, observations: np.ndarray | dict[str, np.ndarray]) -> None:
        if self._normalizer is not None and self._normalizer.norm_obs:
            # normalising clips infinities and spreads NaN over all environments: the raw ones tell
            _check_batch(self._normalizer.old_obs, "observation")
        _check_batch(observations, "observation")

    def check_terminal_observation(self, observation: np.ndarray | dict[str, np.ndarray], index: int) -> None:
        parts = observation if isinstance(observation, dict) else {"": observation}
        for key, part in parts.items():
            if not np.isfinite(np.asarray(part)).all():
                raise _not_finite("terminal observation", key, index)

    def check_rewards(self) -> None:
        if self._normalizer is not None and self._normalizer.norm_reward:
            _check_batch(self._normalizer.old_reward, "reward under VecNormalize")


def _check_batch(values: np.ndarray | dict[str, np.ndarray], quantity: str) -> None:
    if isinstance(values, np.ndarray) and values.dtype.kind == "f" and math.isfinite(np.vdot(values, values)):
        return  # the common case at the price of one call; where a square overflows, each entry is looked at
    parts = values if isinstance(values, dict) else {"": values}
    for key, part in parts.items():
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            bad = np.flatnonzero(~np.isfinite(part.reshape(len(part), -1)).all(axis=1))
            raise _not_finite(quantity, key, int(bad[0]))


def _not_finite(quantity: str, key: str, index: int) -> ValueError:
    where = f" (entry {key!r})" if key else ""
    return ValueError(
        f"environment {index} returned a NaN or infinite {quantity}{where}; "
        "training stopped before the policy could be changed by it"
    )
