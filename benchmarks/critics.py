"""
TRPO's critic fitted by Adam on minibatches, as it is, and by L-BFGS on whole rollouts, as modular_rl had it.

With the settings in ``hyperparams/trpo.yml``. The return is that of the last 100 episodes of training.

    python benchmarks/critics.py
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import torch as th
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trust import TRPO
from sb3_trust.engines.batch import Batch

HERE = Path(__file__).parent
COLUMNS = ("critic", "env", "seed", "return", "explained_variance", "critic_seconds", "seconds")


class Timed(TRPO):
    """With a clock on the critic's phase, and the explained variance of each rollout."""

    def _fit_critic(self, *args, **kwargs) -> float:
        start = time.perf_counter()
        loss = self._fit(*args, **kwargs)
        self.critic_seconds = getattr(self, "critic_seconds", 0.0) + time.perf_counter() - start
        return loss

    def _fit(self, *args, **kwargs) -> float:
        return super()._fit_critic(*args, **kwargs)

    def train(self) -> None:
        """Update, and remember how well the values of the rollout were predicted before it."""
        super().train()
        self.explained = [*getattr(self, "explained", []), self.last_update.explained_variance]


class TRPOWithLBFGS(Timed):
    """At most 25 iterations on all samples of a rollout."""

    def _fit(self, batch: Batch, *args, **kwargs) -> float:
        parameters = self._policy_engine().partition(batch).critic_only
        optimizer = th.optim.LBFGS(parameters, max_iter=25, line_search_fn="strong_wolfe")
        losses = []

        def closure() -> th.Tensor:
            optimizer.zero_grad()
            loss = th.nn.functional.mse_loss(
                self.policy.predict_values(batch.observations).flatten(), batch.returns
            )
            loss.backward()
            losses.append(loss.item())
            return loss

        optimizer.step(closure)
        optimizer.zero_grad()
        return losses[-1]


CRITICS = {"Adam": Timed, "L-BFGS": TRPOWithLBFGS}
NOT_ARGUMENTS = ("policy", "n_timesteps", "n_envs", "normalize")


def run(job: tuple[str, str, int, int]) -> dict[str, object]:
    """Train once."""
    critic, env_id, seed, timesteps = job
    th.set_num_threads(1)
    settings = yaml.safe_load((HERE.parent / "hyperparams" / "trpo.yml").read_text())[env_id]
    env = make_vec_env(env_id, settings["n_envs"], seed=seed)
    if settings.get("normalize"):
        env = VecNormalize(env, gamma=settings["gamma"])
    arguments = {name: value for name, value in settings.items() if name not in NOT_ARGUMENTS}
    start = time.perf_counter()
    model = CRITICS[critic]("MlpPolicy", env, seed=seed, device="cpu", **arguments).learn(timesteps)
    seconds = time.perf_counter() - start
    mean = np.mean([episode["r"] for episode in model.ep_info_buffer])
    explained = float(np.mean(model.explained[-20:]))
    values = (critic, env_id, seed, round(float(mean), 1), round(explained, 3))
    return dict(zip(COLUMNS, (*values, round(model.critic_seconds, 1), round(seconds, 1)), strict=True))


def table(rows: list[dict]) -> str:
    """Means over seeds, in Markdown."""
    lines = ["| environment | critic | return of each seed | explained variance | its share of the time |",
             "|---|---|---|---|---|"]  # fmt: skip
    for env, critic in product(dict.fromkeys(row["env"] for row in rows), CRITICS):
        cell = [row for row in rows if (row["env"], row["critic"]) == (env, critic)]
        returns = ", ".join(f"{row['return']:.0f}" for row in cell)
        explained = np.mean([row["explained_variance"] for row in cell])
        share = sum(row["critic_seconds"] for row in cell) / sum(row["seconds"] for row in cell)
        lines.append(f"| {env} | {critic} | {returns} | {explained:.2f} | {share:.0%} |")
    return "\n".join(lines)


def main() -> None:
    """Run the grid and store it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--envs", nargs="+", default=["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--timesteps", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=HERE / "results" / "critics.csv")
    args = parser.parse_args()
    jobs = [(c, e, s, args.timesteps) for e, s, c in product(args.envs, args.seeds, CRITICS)]
    rows = []
    with ProcessPoolExecutor(args.processes) as pool, args.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in pool.map(run, jobs):
            writer.writerow(row)
            file.flush()
            rows.append(row)
            print(row, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
