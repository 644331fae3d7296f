"""When and what is logged of an update."""

from __future__ import annotations

from typing import Any, TypeVar

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_trust.algorithms.statistics import UpdateStatistics
from sb3_trust.numerics.losses import OF_OBJECTIVE

SelfUpdateLogging = TypeVar("SelfUpdateLogging", bound="UpdateLogging")


class UpdateLogging(OnPolicyAlgorithm):
    """
    Logs a rollout together with the update that was made from it. SB3 writes its logs between the two: there
    each row has the update before, and the last update is never written.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # the iteration whose logs are to be written after its update
        self._waiting_iteration = 0
        # the last update's values, written, and kept in the logger to be read
        self._kept_values: dict[str, Any] = {}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_waiting_iteration", "_kept_values"]

    def dump_logs(self, iteration: int = 0) -> None:
        """
        Write the logs: those of an iteration of ``learn`` after its update, any others at once.

        :param iteration: of ``learn``, from 1 on; 0: called from elsewhere
        """
        self._write_waiting()
        if iteration > 0:
            self._waiting_iteration = iteration
        else:
            super().dump_logs()

    def _write_waiting(self) -> None:
        iteration, self._waiting_iteration = self._waiting_iteration, 0
        if iteration > 0:
            self._keep_values()
            super().dump_logs(iteration)

    def _log(self, statistics: UpdateStatistics, seconds: float) -> None:
        """Log an update; ends ``train``."""
        items = statistics.log_items()
        of_objective = {
            name.removeprefix("train/")
            for name in self.logger.name_to_value
            if name.startswith(f"train/{OF_OBJECTIVE}")
        }
        for name in (statistics.log_names() | of_objective) - items.keys():
            for values in (
                self.logger.name_to_value,
                self.logger.name_to_excluded,
                self.logger.name_to_count,
            ):
                values.pop(f"train/{name}", None)  # an earlier update's, not yet written
        for name, value in items.items():
            exclude = "tensorboard" if name in ("n_updates", "rollback_reason") else None
            self.logger.record(f"train/{name}", value, exclude=exclude)
        self.logger.record("time/update_seconds", seconds)
        self._write_waiting()

    def _keep_values(self) -> None:
        self._kept_values = {k: v for k, v in self.logger.name_to_value.items() if k.startswith("train/")}

    def learn(
        self: SelfUpdateLogging,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfUpdateLogging:
        """
        As in SB3, and the last update is logged too.

        :param log_interval: rollouts between two logs; ``None``: the logs are written by a callback or not
            at all
        :param tb_log_name: name of the run for TensorBoard; the algorithm's name by default
        """
        for name, value in self._kept_values.items():
            if self.logger.name_to_value.get(name) is value:
                del self.logger.name_to_value[name]
        self._kept_values, self._waiting_iteration = {}, 0
        super().learn(
            total_timesteps,
            callback,
            log_interval,  # type: ignore[arg-type]  # SB3's loop takes None
            tb_log_name or type(self).__name__,
            reset_num_timesteps,
            progress_bar,
        )
        self._write_waiting()
        if log_interval is not None:
            if any(name.startswith("train/") for name in self.logger.name_to_value):
                self._keep_values()
                self.logger.dump(step=self.num_timesteps)
            # as after SB3's learn, the last update's values can still be read
            self.logger.name_to_value.update(self._kept_values)
        return self
