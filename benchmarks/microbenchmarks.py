"""
The parts of the work, ours and the peers' in alternation: a minibatch step of PPO and a Fisher-vector product
of TRPO, and how they grow with batch size and width; a step of a rollout, and how it grows with the number of
environments. Shapes of HalfCheetah (17 observations, 6 actions); observations are noise.

    python benchmarks/microbenchmarks.py     # prints, writes results/microbenchmarks.csv and scaling.png
    python benchmarks/microbenchmarks.py --part "Fisher-vector product"      # prints that sweep alone
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import sb3_contrib
import stable_baselines3
import torch as th
from gymnasium import spaces
from matplotlib.figure import Figure
from sides import cpu_name, use_threads
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger

import sb3_trust

HERE = Path(__file__).parent
COLUMNS = ("part", "x", "width", "ours_us", "peer_us", "ratio", "ratio_min", "ratio_max", "threads", "cpu")
# a part, what it is plotted against, and the points
SWEEPS = {
    "minibatch step": ("samples in a minibatch", [(n, 64) for n in (32, 64, 256, 1024)]),
    "minibatch step by width": ("width", [(64, w) for w in (32, 64, 128, 256)]),
    "Fisher-vector product": ("samples", [(n, 64) for n in (512, 2048, 8192, 16384)]),
    "Fisher-vector product by width": ("width", [(2048, w) for w in (32, 64, 128, 256)]),
    "rollout step": ("environments", [(n, 64) for n in (1, 2, 4, 8, 16, 32)]),
}


class Noise(gym.Env):
    """Observations that nobody has to compute; episodes of 100 steps."""

    observation_space = spaces.Box(-5.0, 5.0, (17,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (6,), np.float32)
    _table = np.random.default_rng(0).normal(size=(100, 17)).astype(np.float32)
    _step = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start an episode."""
        super().reset(seed=seed)
        self._step = 0
        return self._table[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """The next row of the table."""
        self._step += 1
        return self._table[self._step % 100], float(action[0]), False, self._step >= 100, {}


def model(kind: Any, n_envs: int, n_steps: int, width: int, **kwargs: Any) -> Any:
    """A model with one rollout in its buffer."""
    env = make_vec_env(Noise, n_envs, seed=0)
    policy_kwargs = {"net_arch": [width, width]}
    made = kind(
        "MlpPolicy", env, n_steps=n_steps, policy_kwargs=policy_kwargs, device="cpu", seed=0, **kwargs
    )
    made.set_logger(Logger(None, []))
    _, callback = made._setup_learn(10**9)
    made._fill = lambda: made.collect_rollouts(made.env, callback, made.rollout_buffer, made.n_steps)
    made._fill()
    return made


def minibatch_step(size: int, width: int) -> tuple[Callable[[], float], ...]:
    """Seconds of a minibatch step, on either side: a whole update of 2048 samples over its steps."""

    def side(kind: Any) -> Callable[[], float]:
        made = model(kind, 8, 256, width, batch_size=size, n_epochs=4)

        def seconds() -> float:
            start = time.perf_counter()
            made.train()
            return (time.perf_counter() - start) / (4 * 2048 / size)

        return seconds

    return side(sb3_trust.PPO), side(stable_baselines3.PPO)


def fisher_product(size: int, width: int) -> tuple[Callable[[], float], ...]:
    """Seconds of a Fisher-vector product, on either side."""
    ours = model(sb3_trust.TRPO, 8, size // 8, width)
    batch = ours._make_batch()
    engine = ours._policy_engine()
    product = engine.fisher_vector_product(batch)
    vector = th.randn(sum(p.numel() for p in engine.partition(batch).policy))

    peer = model(sb3_contrib.TRPO, 8, size // 8, width)
    with th.no_grad():
        old = copy.copy(peer.policy.get_distribution(batch.observations))
    new = peer.policy.get_distribution(batch.observations)
    objective = (th.exp(new.log_prob(batch.actions) - batch.old_log_prob) * batch.advantages).mean()
    parameters, _, gradient, _ = peer._compute_actor_grad(kl_divergence(new, old).mean(), objective)

    def timed(call: Callable[[], object]) -> Callable[[], float]:
        def seconds() -> float:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start

        return seconds

    theirs = timed(lambda: peer.hessian_vector_product(parameters, gradient, vector, retain_graph=True))
    return timed(lambda: product(vector)), theirs


def rollout_step(n_envs: int, width: int) -> tuple[Callable[[], float], ...]:
    """Seconds of a rollout's step of one environment, on either side."""

    def side(kind: Any) -> Callable[[], float]:
        made = model(kind, n_envs, 2048 // n_envs, width)

        def seconds() -> float:
            start = time.perf_counter()
            made._fill()
            return (time.perf_counter() - start) / 2048

        return seconds

    return side(sb3_trust.PPO), side(stable_baselines3.PPO)


PARTS = {"minibatch": minibatch_step, "Fisher": fisher_product, "rollout": rollout_step}


def measure(part: str, x: int, width: int, repeats: int, threads: int) -> dict[str, object]:
    """One row of the results."""
    ours, theirs = PARTS[part.split()[0].split("-")[0]](x, width)
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(repeats)]
    ratios = [b / a for a, b in pairs]
    medians = np.median(pairs, axis=0) * 1e6
    return {
        "part": part,
        "x": width if part.endswith("by width") else x,
        "width": width,
        "ours_us": round(float(medians[0]), 1),
        "peer_us": round(float(medians[1]), 1),
        "ratio": round(float(np.median(ratios)), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "threads": threads,
        "cpu": cpu_name(),
    }


def figure(rows: list[dict[str, Any]]) -> Figure:
    """A panel for each sweep: time against size, ours and the peer's."""
    result = Figure(figsize=(4 * len(SWEEPS), 3.4), layout="constrained")
    for axes, (part, (label, _)) in zip(result.subplots(1, len(SWEEPS)), SWEEPS.items(), strict=True):
        points = [row for row in rows if row["part"] == part]
        peer = "sb3_contrib.TRPO" if part.startswith("Fisher") else "stable_baselines3.PPO"
        for name, key in ((peer, "peer_us"), ("sb3_trust", "ours_us")):
            axes.loglog([row["x"] for row in points], [row[key] for row in points], "o-", label=name)
        for row in points:
            at = (row["x"], row["ours_us"])
            axes.annotate(f"{row['ratio']:.1f}x", at, (0, -14), textcoords="offset points", ha="center")
        axes.set(title=part.removesuffix(" by width"), xlabel=label, ylabel="microseconds")
        axes.set_xticks([row["x"] for row in points], [str(row["x"]) for row in points])
        axes.minorticks_off()
        axes.margins(y=0.2)
        axes.grid(alpha=0.3)
        axes.legend()
    return result


def main() -> None:
    """Measure, store and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=SWEEPS, help="measure this one alone, and write nothing")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "microbenchmarks.csv")
    args = parser.parse_args()
    use_threads(args.threads)
    rows = []
    for part in [args.part] if args.part else SWEEPS:
        for x, width in SWEEPS[part][1]:
            row = measure(part, x, width, args.repeats, args.threads)
            rows.append(row)
            print(f"{part:32} {row['x']:>6}: {row['ours_us']:>9} us against {row['peer_us']:>9} us, "
                  f"{row['ratio']}x ({row['ratio_min']} to {row['ratio_max']})", flush=True)  # fmt: skip
    if args.part:
        return
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with args.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    figure(rows).savefig(args.results.with_name("scaling.png"), dpi=100)


if __name__ == "__main__":
    main()
