"""
REINFORCE, NPG, TRPO, PPO and PPOPenalty on CartPole-v1 with the settings of modular_rl, side by side: how
fast each one learns, how far each of its updates moves the policy, and what an iteration costs.

    python examples/cartpole_five_methods.py                     # 10 seeds: results.csv and chart.png
    python examples/cartpole_five_methods.py --quick             # 2 seeds, 12 batches: under two minutes
    python examples/cartpole_five_methods.py --env LunarLander-v3
    python examples/cartpole_five_methods.py --sweep clip_range  # one setting at several values: a figure
    python examples/cartpole_five_methods.py --animate           # the methods learning, as a GIF

Each run is a process with one thread. Rows are written as soon as a run has ended; started again, only what
is missing is run.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from study import Results, Tell, run_all

import sb3_trust
from sb3_trust import NPG, PPO, REINFORCE, TRPO, PPOPenalty

METHODS = {kind.__name__.lower(): kind for kind in (REINFORCE, NPG, TRPO, PPO, PPOPenalty)}
SETTINGS = Path(sb3_trust.__file__).parent / "hyperparams" / "modular_rl.yml"
BATCHES = {"reinforce": 90}  # the others' 40 are not enough for it
SWEEPS: dict[str, list[float]] = {
    "clip_range": [0.05, 0.1, 0.2, 0.3, 0.5],
    "target_kl": [0.001, 0.003, 0.01, 0.03, 0.1],
    "learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    "n_epochs": [1, 3, 10, 30],
    "gae_lambda": [0.9, 0.95, 0.98, 1.0],
    "cg_damping": [1e-4, 1e-3, 1e-2, 1e-1, 1.0],
    "n_steps": [64, 250, 1250, 2500],
}
TAKEN = {"ppo": {"target_kl"}}  # what a sweep leaves alone: PPO's target_kl ends epochs, and is off
SWEEP_STEPS = 400_000
KEY = ("method", "env", "setting", "seed")


@dataclass(frozen=True)
class Run:
    """
    One training run.

    :param setting: what differs from the settings' file, such as "clip_range=0.1"; "" for nothing
    """

    method: str
    env: str
    seed: int
    n_batches: int
    setting: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What tells the run from others in the results."""
        return self.method, self.env, self.setting, str(self.seed)

    @property
    def n_rows(self) -> int:
        """A row for each batch."""
        return self.n_batches

    @property
    def n_timesteps(self) -> int:
        """Time steps in all."""
        return self.n_batches * batch_steps(self)


@dataclass(frozen=True)
class Row:
    """One batch of a run: what the policy that collected it earned, and how far the update moved it."""

    method: str
    env: str
    setting: str
    seed: int
    batch: int
    num_timesteps: int
    mean_return: float
    episodes: int
    kl: float
    collect_seconds: float
    update_seconds: float


def make_model(run: Run) -> BaseAlgorithm:
    """The model of a run, with the settings of the YAML file."""
    settings = dict(yaml.safe_load(SETTINGS.read_text())[run.method][run.env])
    if run.setting:
        name, value = run.setting.split("=")
        settings[name] = int(value) if name.startswith("n_") else float(value)
        if name == "n_steps" and run.method not in ("ppo", "ppopenalty"):
            settings["batch_size"] = min(settings["batch_size"], settings[name] * settings["n_envs"])
    n_envs = settings.pop("n_envs")
    del settings["n_timesteps"]
    env = make_vec_env(run.env, n_envs, seed=run.seed)
    return METHODS[run.method](env=env, seed=run.seed, device="cpu", stats_window_size=10_000, **settings)


def iterations(model: Any, n: int) -> Iterator[dict[str, Any]]:
    """Train, and say of each batch what it was; a batch is a rollout with its update."""
    size = model.n_steps * model.n_envs
    for batch in range(1, n + 1):
        model.ep_info_buffer = None  # the episodes that end in this batch
        model.learn(size, reset_num_timesteps=False, log_interval=None)
        returns = [episode["r"] for episode in model.ep_info_buffer]
        times = model.logger.name_to_value
        yield {
            "batch": batch,
            "num_timesteps": model.num_timesteps,
            "mean_return": round(float(np.mean(returns)), 3) if returns else float("nan"),
            "episodes": len(returns),
            "kl": float(f"{model.last_update.kl:.6g}"),
            "collect_seconds": round(times["time/collect_seconds"], 4),
            "update_seconds": round(times["time/update_seconds"], 4),
        }


def train(run: Run, tell: Tell | None = None) -> list[Row]:
    """All batches of a run; tells the progress bar of each."""
    rows = []
    for iteration in iterations(make_model(run), run.n_batches):
        rows.append(Row(run.method, run.env, run.setting, run.seed, **iteration))
        if tell is not None:
            tell(iteration["num_timesteps"] // iteration["batch"])
    return rows


def batch_steps(run: Run) -> int:
    """Time steps of a batch."""
    settings = yaml.safe_load(SETTINGS.read_text())[run.method][run.env]
    name, _, value = run.setting.partition("=")
    return int(value if name == "n_steps" else settings["n_steps"]) * settings["n_envs"]


def runs_of(args: argparse.Namespace) -> list[Run]:
    """What the command line asks for, seed by seed: broken off, a study has something of everything."""
    if not args.sweep:
        n = {method: args.batches or BATCHES.get(method, 40) for method in args.methods}
        return [Run(m, args.env, seed, n[m]) for seed in range(args.seeds) for m in args.methods]
    settings = yaml.safe_load(SETTINGS.read_text())
    name, found = args.sweep, []
    for seed in range(args.seeds):
        for value in SWEEPS[name]:
            for method in args.methods:
                if name not in settings[method][args.env] or name in TAKEN.get(method, ()):
                    continue
                run = Run(method, args.env, seed, 1, f"{name}={value:g}")
                found.append(Run(method, args.env, seed, args.steps // batch_steps(run), run.setting))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="CartPole-v1", choices=["CartPole-v1", "LunarLander-v3"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, help="how many (10; 3 for a sweep, 2 with --quick)")
    parser.add_argument("--batches", type=int, help="of each run (40, REINFORCE 90; 12 with --quick)")
    parser.add_argument("--quick", action="store_true", help="2 seeds, 12 batches")
    parser.add_argument(
        "--sweep", choices=list(SWEEPS), help="vary one setting, for the methods that have it"
    )
    parser.add_argument("--animate", action="store_true", help="a GIF of the methods learning, with seed 0")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs") / "five_methods", help="for what comes out"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args(arguments)
    args.seeds = args.seeds or (2 if args.quick else 3 if args.sweep else 10)
    args.batches = args.batches or (12 if args.quick else None)
    args.steps = 120_000 if args.quick else SWEEP_STEPS

    import five_methods_figures as figures

    folder = args.folder / args.env
    if args.animate:
        print(f"Animation: {figures.animate(args.methods, args.env, folder / 'learning.gif')}")
        return
    name = f"sweep_{args.sweep}" if args.sweep else "results"
    results = Results(folder / f"{name}{'_quick' if args.quick else ''}.csv", Row, KEY)
    runs = runs_of(args)
    run_all(train, runs, results, args.processes)
    rows = results.of(runs)
    print(figures.table(rows))
    path = results.path.with_suffix(".png")
    (figures.sweep(rows, args.sweep) if args.sweep else figures.chart(rows)).savefig(path, dpi=110)
    print(f"Results: {results.path}\nFigure:  {path}")


if __name__ == "__main__":
    main()
