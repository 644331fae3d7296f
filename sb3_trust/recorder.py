"""A record of every update."""

from __future__ import annotations

import csv
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

from stable_baselines3.common.callbacks import BaseCallback

UPDATES_FILE = "updates.csv"


class UpdateRecorder(BaseCallback):
    """
    Write ``model.last_update`` to ``updates.csv`` after each update: a row for each, with the columns
    ``update``, ``num_timesteps`` and one for each statistic but those of an objective of your own. The file
    is new for each ``learn()`` that resets the time steps, and goes on in one that does not. Rows are there
    as soon as they are written.

    :param folder: where the file goes; it is made if it does not exist
    :param verbose: as for any callback
    """

    def __init__(self, folder: str | Path, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.path = Path(folder) / UPDATES_FILE
        self._file: TextIO | None = None
        self._recorded: Any = None
        self._n_rows = 0

    def _on_training_start(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._recorded = getattr(self.model, "last_update", None)
        goes_on = self.model._num_timesteps_at_start > 0 and self.path.exists()
        self._n_rows = 0
        if goes_on:
            with self.path.open(newline="") as existing:
                self._n_rows = max(sum(1 for _ in csv.reader(existing)) - 1, 0)
        self._file = self.path.open("a" if goes_on else "w", newline="")

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._record()

    def _on_training_end(self) -> None:
        self._record()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _record(self) -> None:
        statistics = getattr(self.model, "last_update", None)
        if statistics is None or statistics is self._recorded or self._file is None:
            return
        # the statistics of a user's own objective have no columns of their own: an undone update has none
        names = [field.name for field in fields(statistics) if field.name != "of_objective"]
        writer = csv.writer(self._file)
        if self._n_rows == 0:
            writer.writerow(["update", "num_timesteps", *names])
        self._n_rows += 1
        writer.writerow([self._n_rows, self.num_timesteps, *(getattr(statistics, name) for name in names)])
        self._file.flush()
        self._recorded = statistics
