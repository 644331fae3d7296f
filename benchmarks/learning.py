"""
Train a grid of (algorithm, environment, seed) with the settings in ``hyperparams/`` and collect the scores.

Each run is one process with one thread, started through ``sb3-trust train``. A row is written as soon as its
run has ended; started again, only what has no row yet is run.

    python benchmarks/learning.py                                        # the grid of benchmarks/learning.yml
    python benchmarks/learning.py --algo trpo --env Pendulum-v1 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import yaml

from sb3_trust.plots import read_updates

HERE = Path(__file__).parent
EPISODES = 100  # of the final evaluation, unless the grid says otherwise
COLUMNS = (
    "algo", "env", "engine", "seed", "n_timesteps", "goal", "return_mean", "return_std", "episodes",
    "kl_mean", "kl_max_update", "target_kl", "rollbacks", "seconds",
    "sb3_trust", "stable_baselines3", "torch", "gymnasium",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training run; ``n_timesteps`` of 0 means what the settings say."""

    algo: str
    env: str
    seed: int
    engine: str = "auto"
    n_timesteps: int = 0
    goal: float | None = None
    episodes: int = EPISODES

    @property
    def key(self) -> tuple[str, ...]:
        """What tells the run from others in the results."""
        return self.algo, self.env, self.engine, str(self.seed)


def grid(path: Path, seeds: list[int] | None = None) -> list[Run]:
    """The runs of a YAML file, seed by seed, so that a broken-off study has something of everything."""
    spec = yaml.safe_load(path.read_text())
    common = {"episodes": spec.get("episodes", EPISODES)}
    return [Run(seed=seed, **common, **entry) for seed in (seeds or spec["seeds"]) for entry in spec["runs"]]


def execute(run: Run, folder: Path) -> dict[str, object]:
    """Train in a process of its own and read what it left."""
    log_folder = folder / f"{run.algo}-{run.env}-{run.seed}-{time.time_ns()}"
    command = [sys.executable, "-m", "sb3_trust", "train", "--algo", run.algo, "--env", run.env]
    command += ["--seed", str(run.seed), "-f", str(log_folder), "--eval-freq", "-1", "--num-threads", "1"]
    command += ["--log-interval", "-2", "--device", "cpu", "--eval-episodes", str(run.episodes)]
    if run.engine != "auto":
        command += ["--hyperparams", f"engine:'{run.engine}'"]
    if run.n_timesteps:
        command += ["-n", str(run.n_timesteps)]
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - start
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr[-3000:]}")
    saved = next((log_folder / run.algo).glob(f"{run.env}_*"))
    evaluation = json.loads((saved / "evaluation.json").read_text())
    updates = read_updates(saved)
    return {
        "algo": run.algo,
        "env": run.env,
        "engine": run.engine,
        "seed": run.seed,
        "n_timesteps": int(updates["num_timesteps"][-1]),
        "goal": run.goal,
        "return_mean": round(evaluation["mean"], 2),
        "return_std": round(evaluation["std"], 2),
        "episodes": len(evaluation["returns"]),
        "kl_mean": f"{np.mean(updates['kl']):.3g}",
        "kl_max_update": f"{np.max(updates['kl']):.3g}",
        "target_kl": f"{updates['target_kl'][-1]:.3g}",
        "rollbacks": int(updates["rollbacks"][-1]),
        "seconds": round(seconds),
        **{name: version(name.replace("_", "-")) for name in COLUMNS[-4:]},
    }


def interval(scores: list[float]) -> str:
    """95% bootstrap interval of the mean over seeds."""
    draws = np.random.default_rng(0).choice(scores, (10_000, len(scores))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{low:.0f} to {high:.0f}"


def table(rows: list[dict[str, str]]) -> str:
    """The results in Markdown, a line for each algorithm and environment."""
    lines = [
        "| algorithm | environment | engine | steps | to reach | mean return | 95% interval | of each seed "
        "| mean KL | largest KL |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell_of in dict.fromkeys((row["algo"], row["env"], row["engine"]) for row in rows):
        members = (row for row in rows if (row["algo"], row["env"], row["engine"]) == cell_of)
        cell = sorted(members, key=lambda row: int(row["seed"]))
        algo, env, engine = cell_of
        scores = [float(row["return_mean"]) for row in cell]
        error = sum(float(row["return_std"]) ** 2 / int(row["episodes"]) for row in cell) ** 0.5 / len(cell)
        kl = np.mean([float(row["kl_mean"]) for row in cell])
        largest = max(float(row["kl_max_update"]) for row in cell)
        lines.append(
            f"| {algo} | {env} | {engine} | {int(cell[0]['n_timesteps']):,} | {cell[0]['goal']} "
            f"| {np.mean(scores):.1f} +/- {error:.1f} | {interval(scores)} "
            f"| {', '.join(f'{score:.0f}' for score in scores)} "
            f"| {kl:.4f} | {largest:.4f} |"
        )
    return "\n".join(lines)


def selected(args: argparse.Namespace) -> list[Run]:
    """The grid's runs that the command line asks for; what is asked for and not in the grid is a run too."""
    runs = [
        run
        for run in grid(args.grid, args.seeds)
        if (not args.algo or run.algo in args.algo) and (not args.env or run.env in args.env)
    ]
    known = {run.key for run in runs}
    others = [
        Run(algo, env, seed)
        for seed in (args.seeds or [0, 1, 2])
        for env in (args.env or [])
        for algo in (args.algo or [])
    ]
    runs += [run for run in others if run.key not in known]
    return [replace(run, n_timesteps=args.n_timesteps) for run in runs] if args.n_timesteps else runs


def main() -> None:
    """Run what has no row yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", type=Path, default=HERE / "learning.yml", help="YAML file with the runs")
    parser.add_argument(
        "--algo", nargs="+", help="only these algorithms; with --env also what is not in the grid"
    )
    parser.add_argument("--env", nargs="+", help="only these environments")
    parser.add_argument("--seeds", nargs="+", type=int, help="other seeds than the grid's")
    parser.add_argument(
        "-n", "--n-timesteps", type=int, default=0, help="other time steps than the settings'"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results" / "learning.csv")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs") / "learning", help="where the runs are saved"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()

    runs = selected(args)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    if not args.results.exists():
        args.results.write_text(",".join(COLUMNS) + "\n")
    with args.results.open(newline="") as file:
        done = {(row["algo"], row["env"], row["engine"], row["seed"]) for row in csv.DictReader(file)}
    pending = [run for run in runs if run.key not in done]
    print(f"{len(pending)} of {len(runs)} runs to do")

    lock = threading.Lock()

    def run_and_record(run: Run) -> None:
        row = execute(run, args.folder)
        with lock, args.results.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        print(f"{run.algo:12} {run.env:16} seed {run.seed}: {row['return_mean']} +/- {row['return_std']}"
              f" ({row['seconds']} s)", flush=True)  # fmt: skip

    with ThreadPoolExecutor(args.processes) as pool:
        for future in [pool.submit(run_and_record, run) for run in pending]:
            future.result()
    with args.results.open(newline="") as file:
        print(table(list(csv.DictReader(file))))


if __name__ == "__main__":
    main()
