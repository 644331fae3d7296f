"""
Three places where PPO is known to fail, each as a small experiment: what a bound on KL(old || new) changes
there, and what it cannot change.

    sparse      a reward that only a long row of right actions reaches
    dimensions  1 to 32 dimensions of the action, with one trust region for all of them
    flips       an environment whose goal jumps twice

    python examples/when_ppo_fails.py                       # all three: CSV files and figures
    python examples/when_ppo_fails.py --experiments flips
    python examples/when_ppo_fails.py --quick               # a few updates of each: seconds

Each run is a process with one thread. Rows are written as soon as a run has ended; started again, only what
is missing is run.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from stable_baselines3.common.callbacks import BaseCallback
from study import Results, Tell, run_all
from when_ppo_fails_experiments import EXPERIMENTS, ROLLOUT, Dimensions, Measured
from when_ppo_fails_worlds import BatchedEnv

from sb3_trust import TrustRegionRecorder
from sb3_trust.algorithms.base import TrustRegionAlgorithm
from sb3_trust.algorithms.listening import FinishedUpdate


@dataclass(frozen=True)
class Run:
    """
    One training run.

    :param x: the distance, the number of action dimensions, or the updates between two jumps
    :param ent_coef: weight of the entropy bonus
    """

    experiment: str
    method: str
    x: int
    ent_coef: float
    seed: int
    n_updates: int

    @property
    def key(self) -> tuple[str, ...]:
        """What tells the run from others in the results."""
        return self.method, str(self.x), str(self.ent_coef), str(self.seed)

    @property
    def n_rows(self) -> int:
        """As many as the experiment keeps of its updates."""
        return sum(map(EXPERIMENTS[self.experiment].keeps, range(1, self.n_updates + 1)))

    @property
    def n_timesteps(self) -> int:
        """Time steps in all."""
        return self.n_updates * ROLLOUT


class Watch(BaseCallback):
    """Makes the rows of a run."""

    def __init__(self, run: Run, env: BatchedEnv, recorder: TrustRegionRecorder, tell: Tell):
        super().__init__()
        self.run, self.env, self.recorder, self.tell = run, env, recorder, tell
        self.rows: list[Any] = []
        self._count = 0
        self._finished: list[FinishedUpdate] = []

    def _on_training_start(self) -> None:
        assert isinstance(self.model, TrustRegionAlgorithm)
        self.model.add_update_listener(self._on_update)

    def _on_step(self) -> bool:
        return True

    def _on_update(self, finished: FinishedUpdate) -> None:
        run, experiment = self.run, EXPERIMENTS[self.run.experiment]
        self._count += 1
        self._finished.append(finished)
        if experiment.keeps(self._count):
            of_run = {"method": run.method, experiment.x: run.x, "ent_coef": run.ent_coef, "seed": run.seed}
            updates = self.recorder.record.updates
            at = Measured(self.model, self.env, self._finished, updates[-1] if updates else None)
            self._finished = []
            self.rows.append(
                experiment.row_type(
                    **of_run, num_timesteps=self.model.num_timesteps, **experiment.measure(at)
                )
            )
        self.tell(ROLLOUT)


def train(run: Run, tell: Tell) -> list[Any]:
    """The rows of a run."""
    experiment = EXPERIMENTS[run.experiment]
    model = experiment.make_model(run.method, run.x, run.ent_coef, run.seed)
    env = model.get_env()
    assert isinstance(env, BatchedEnv)
    with tempfile.TemporaryDirectory() as folder:
        recorder = TrustRegionRecorder(folder, every=experiment.every)
        watch = Watch(run, env, recorder, tell)
        recorders = [recorder] if experiment is Dimensions else []
        model.learn(run.n_timesteps, callback=[*recorders, watch], log_interval=None)
    return watch.rows


def runs_of(name: str, n_seeds: int, quick: bool) -> list[Run]:
    """The runs of an experiment, seed by seed: broken off, there is something of everything."""
    experiment = EXPERIMENTS[name]
    return [
        Run(name, method, x, ent_coef, seed, experiment.n_updates(x, quick))
        for seed in range(n_seeds)
        for x, ent_coef in experiment.cases(quick)
        for method in experiment.methods
    ]


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of few colours, which is a third as large."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90)
    Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiments", nargs="+", default=list(EXPERIMENTS), choices=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, help="how many (10 of sparse, 5 of the others; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="1 seed, a few updates")
    parser.add_argument("--results", type=Path, default=Path("runs") / "when_ppo_fails", help="CSV files")
    parser.add_argument("--images", type=Path, help="figures; beside the CSV files by default")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args(arguments)

    import when_ppo_fails_figures as figures

    images = args.images or args.results
    images.mkdir(parents=True, exist_ok=True)
    for name in args.experiments:
        experiment = EXPERIMENTS[name]
        stem = f"when_ppo_fails_{name}{'_quick' if args.quick else ''}"
        key = ("method", experiment.x, "ent_coef", "seed")
        results = Results(args.results / f"{stem}.csv", experiment.row_type, key)
        runs = runs_of(name, args.seeds or (1 if args.quick else experiment.n_seeds), args.quick)
        run_all(train, runs, results, args.processes)
        table, figure = figures.FIGURES[name](results.of(runs))
        save(figure, images / f"{stem}.png")
        print(f"{table}\n\nResults: {results.path}\nFigure:  {images / stem}.png\n")


if __name__ == "__main__":
    main()
