"""The callback that keeps what single updates did."""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from sb3_trust.algorithms.base import TrustRegionAlgorithm
from sb3_trust.algorithms.listening import FinishedUpdate
from sb3_trust.errors import check_integer, reject
from sb3_trust.trust_region.measuring import StepMeasurement
from sb3_trust.trust_region.record import (
    TRUST_REGION_FILE,
    TrustRegionRecord,
    read_trust_region,
    write_trust_region,
)


class TrustRegionRecorder(BaseCallback):
    """
    Keep of some updates what pictures of them need, and write it to ``trust_region.npz``, which
    :func:`sb3_trust.trust_region.read_trust_region` reads: probability ratios and advantages, the KL
    divergence of each action dimension, surrogate and KL divergence along the step, and TRPO's line search.

    Each update that is kept costs about 30 evaluations of the policy on its rollout, a gradient and a Fisher
    product. Training is bit for bit what it is without the recorder. Updates that were rolled back are not
    kept. The file is written whole after each update that is; it is new for each ``learn()`` that resets the
    time steps, and goes on in one that does not.

    :param folder: where the file goes; it is made if it does not exist
    :param every: keep one in so many updates
    :param max_updates: keep at most so many: when there are more, every second one is dropped, and from then
        on one in twice as many is kept
    :param max_samples: samples of a rollout whose ratios and advantages are kept at most
    :param verbose: as for any callback
    :raises InvalidArgument: if an argument cannot work, or the model is none of sb3-trust's
    """

    def __init__(
        self,
        folder: str | Path,
        every: int = 1,
        max_updates: int = 64,
        max_samples: int = 2048,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        check_integer("every", every, 1)
        check_integer("max_updates", max_updates, 2)
        check_integer("max_samples", max_samples, 1)
        self.path = Path(folder) / TRUST_REGION_FILE
        self.every, self.max_updates, self.max_samples = every, max_updates, max_samples
        self.record = TrustRegionRecord()
        # rolled-back updates are counted too, so that an update has the number that it has in updates.csv
        self._rollbacks = 0

    def _on_training_start(self) -> None:
        model = self.model
        if not isinstance(model, TrustRegionAlgorithm):
            raise reject("model", type(model).__name__, "one of sb3-trust's algorithms")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if model._num_timesteps_at_start > 0 and self.path.exists():
            self.record = read_trust_region(self.path)
            self.record.stride = max(self.record.stride, self.every)
        else:
            names = type(model).__name__, type(model.action_space).__name__
            self.record = TrustRegionRecord(*names, stride=self.every)
            write_trust_region(self.path, self.record)
        self._rollbacks = model.n_rollbacks
        model.add_update_listener(self._on_update)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        assert isinstance(self.model, TrustRegionAlgorithm)
        self.model.remove_update_listener(self._on_update)
        self._count_rollbacks()
        write_trust_region(self.path, self.record)

    def _count_rollbacks(self) -> None:
        """Those since the last call."""
        assert isinstance(self.model, TrustRegionAlgorithm)
        self.record.n_updates += self.model.n_rollbacks - self._rollbacks
        self._rollbacks = self.model.n_rollbacks

    def _on_update(self, finished: FinishedUpdate) -> None:
        model, record = self.model, self.record
        assert isinstance(model, TrustRegionAlgorithm)
        self._count_rollbacks()
        record.n_updates += 1
        if (record.n_updates - 1) % record.stride:
            return
        update = StepMeasurement(model, finished).recorded(record.n_updates, self.max_samples)
        if update is None:
            return
        record.updates.append(update)
        while len(record.updates) > self.max_updates:
            record.stride *= 2
            record.updates = [kept for kept in record.updates if (kept.update - 1) % record.stride == 0]
        write_trust_region(self.path, record)
