"""
Time steps until the evaluated return on CartPole-v1 reaches 475, with the settings in ``hyperparams/``: each
seed is trained on, and the deterministic policy is evaluated every 2,000 or so time steps.

    python benchmarks/sample_efficiency.py        # 3 algorithms x 10 seeds; results/sample_efficiency.csv

Rows are written as runs end; started again, only what is missing is run.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trust.zoo import ALGORITHMS, hyperparams_file

HERE = Path(__file__).parent
ENV, LEVEL, STEPS, EVERY, EPISODES = "CartPole-v1", 475.0, 50_000, 2_000, 20
COLUMNS = ("algo", "seed", "num_timesteps", "mean_return", "std_return")


def train(algo: str, seed: int) -> list[dict[str, Any]]:
    """The evaluations of a run."""
    th.set_num_threads(1)
    settings = dict(yaml.safe_load(hyperparams_file(algo).read_text())[ENV])
    n_envs, total = settings.pop("n_envs"), int(settings.pop("n_timesteps"))
    settings = ExperimentManager._preprocess_schedules(settings)
    env, evaluation = make_vec_env(ENV, n_envs, seed=seed), make_vec_env(ENV, EPISODES, seed=1000 + seed)
    model: Any = ALGORITHMS[algo](env=env, seed=seed, device="cpu", **settings)
    rollout = model.n_steps * n_envs
    rows: list[dict[str, Any]] = []

    def evaluate(_locals: dict[str, Any], _globals: dict[str, Any]) -> bool:
        """Between two rollouts: the schedules are those of the whole run."""
        if model.num_timesteps // EVERY > len(rows) and model.num_timesteps % rollout == n_envs % rollout:
            mean, std = evaluate_policy(model, evaluation, EPISODES)
            rows.append(
                {
                    "algo": algo,
                    "seed": seed,
                    "num_timesteps": model.num_timesteps - n_envs,
                    "mean_return": round(float(mean), 2),
                    "std_return": round(float(std), 2),
                }
            )
        return model.num_timesteps < STEPS

    model.learn(total, callback=evaluate, log_interval=None)
    return rows


def first(rows: list[dict[str, Any]]) -> float:
    """Time steps of a run's first evaluation that reaches the level; ``inf`` if none does."""
    reached = [int(row["num_timesteps"]) for row in rows if float(row["mean_return"]) >= LEVEL]
    return min(reached, default=float("inf"))


def main() -> None:
    """Run what has no rows yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algos", nargs="+", default=["trpo", "ppo", "ppopenalty"], choices=list(ALGORITHMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--results", type=Path, default=HERE / "results" / "sample_efficiency.csv")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"

    rows: list[dict[str, Any]] = []
    if args.results.exists():
        with args.results.open(newline="") as file:
            rows = list(csv.DictReader(file))
    done = {(row["algo"], int(row["seed"])) for row in rows}
    pending = [(algo, seed) for seed in args.seeds for algo in args.algos if (algo, seed) not in done]
    print(f"{len(pending)} runs to do")
    if not rows:
        args.results.write_text(",".join(COLUMNS) + "\n")
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
        for future in [pool.submit(train, *run) for run in pending]:
            with args.results.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(future.result())
            rows += future.result()
    print(f"| algorithm | seeds | time steps until {LEVEL:g}, median | range |\n|---|---|---|---|")
    for algo in args.algos:
        seeds = [s for s in args.seeds if any((r["algo"], int(r["seed"])) == (algo, s) for r in rows)]
        runs = [[r for r in rows if (r["algo"], int(r["seed"])) == (algo, s)] for s in seeds]
        steps = [first(run) for run in runs]
        print(f"| {algo} | {len(seeds)} | {np.median(steps):,.0f} | {min(steps):,.0f} to {max(steps):,.0f} |")


if __name__ == "__main__":
    main()
