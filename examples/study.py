"""
What studies of many training runs share: the runs in processes of their own with one progress bar, and their
rows in a CSV file, written as soon as a run has ended. Started again, only what is missing is run.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, get_type_hints

import torch as th
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from sb3_trust.atomic import replacing

RowT = TypeVar("RowT")
RunT = TypeVar("RunT", bound="StudyRun")

# tells the progress bar of so many time steps
Tell = Callable[[int], Any]


class StudyRun(Protocol):
    """
    One training run.

    :ivar n_rows: rows that it has in the results when it has ended
    :ivar n_timesteps: time steps that it trains for
    """

    @property
    def key(self) -> tuple[str, ...]:
        """What tells the run from others in the results."""

    @property
    def n_rows(self) -> int: ...

    @property
    def n_timesteps(self) -> int: ...


@dataclass
class Results(Generic[RowT]):
    """
    Rows in a CSV file.

    :param path: the file; what is there already is read
    :param row_type: the rows' dataclass, of strings and numbers
    :param key: names of the columns that a run's ``key`` is of
    """

    path: Path
    row_type: type[RowT]
    key: tuple[str, ...]
    rows: list[RowT] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path.exists():
            types = get_type_hints(self.row_type)
            with self.path.open(newline="") as file:
                for row in csv.DictReader(file):
                    self.rows.append(self.row_type(**{k: types[k](v) for k, v in row.items()}))

    def key_of(self, row: RowT) -> tuple[str, ...]:
        """The key of the run that a row is of."""
        return tuple(str(getattr(row, name)) for name in self.key)

    def of(self, runs: Sequence[StudyRun]) -> list[RowT]:
        """The rows of these runs."""
        keys = {run.key for run in runs}
        return [row for row in self.rows if self.key_of(row) in keys]

    def add(self, run: StudyRun, rows: Sequence[RowT]) -> None:
        """Replace what there is of a run; the file is whole at any time."""
        self.rows = [*(row for row in self.rows if self.key_of(row) != run.key), *rows]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            names = [item.name for item in fields(self.row_type)]  # type: ignore[arg-type]
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)  # type: ignore[call-overload]
            text.detach()


_progress: Any = None


def _start_worker(progress: Any) -> None:
    global _progress
    _progress = progress
    warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
    th.set_num_threads(1)
    threadpool_limits(1)


def _tell(timesteps: int) -> None:
    if _progress is not None:
        _progress.put(timesteps)


def run_all(
    train: Callable[[RunT, Tell], list[RowT]], runs: Sequence[RunT], results: Results[RowT], processes: int
) -> None:
    """
    Run what has no rows yet.

    :param train: trains a run and returns its rows; a function of a module
    :param processes: how many runs at once, each with one thread; 1: in this process
    """
    pending = [run for run in runs if len(results.of([run])) < run.n_rows]
    timesteps = sum(run.n_timesteps for run in pending)
    with tqdm(total=timesteps, unit=" steps", unit_scale=True, disable=not pending) as bar:
        if processes > 1:
            _run_in_pool(train, pending, results, processes, bar)
            return
        _start_worker(None)
        for run in pending:
            results.add(run, train(run, bar.update))


def _run_in_pool(
    train: Callable[[RunT, Tell], list[RowT]],
    pending: Sequence[RunT],
    results: Results[RowT],
    processes: int,
    bar: tqdm[Any],
) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes to come
    context = multiprocessing.get_context("spawn")
    progress = context.Queue()
    with ProcessPoolExecutor(processes, context, _start_worker, (progress,)) as pool:
        work = partial(_work, train)
        futures: dict[Future[list[RowT]], RunT] = {pool.submit(work, run): run for run in pending}
        while futures:
            done, _ = wait(futures, timeout=0.5, return_when=FIRST_COMPLETED)
            while not progress.empty():
                bar.update(progress.get())
            for future in done:
                run = futures.pop(future)
                results.add(run, future.result())


def _work(train: Callable[[RunT, Tell], list[RowT]], run: RunT) -> list[RowT]:
    return train(run, _tell)
