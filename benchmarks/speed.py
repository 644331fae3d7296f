"""
Steps per second of our algorithms and of their peers, in alternation in one process.

Each case trains for a number of rollouts on either side, several times in turn, with the same
hyperparameters (the peer's defaults) and one torch thread unless told otherwise. What is reported is the
median, and the smallest and the largest ratio of neighbouring pairs.

    python benchmarks/speed.py
    python benchmarks/speed.py --cases ppo/CartPole-v1/1 --repeats 5 --threads 2
"""

from __future__ import annotations

import argparse
import csv
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sb3_contrib
import stable_baselines3
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

import sb3_trust

TRANSITIONS = 2048  # of a rollout
COLUMNS = (
    "case", "n_envs", "threads", "repeats", "ours_total", "peer_total", "ratio", "ratio_min", "ratio_max",
    "ours_update", "peer_update", "update_ratio", "env_alone",
    "torch", "stable_baselines3", "sb3_contrib", "cpu",
)  # fmt: skip
PAIRS: dict[str, tuple[type[OnPolicyAlgorithm], type[OnPolicyAlgorithm]]] = {
    "ppo": (sb3_trust.PPO, stable_baselines3.PPO),
    "trpo": (sb3_trust.TRPO, sb3_contrib.TRPO),
}
CASES = [f"{key}/{env}/{n}" for env in ("CartPole-v1", "HalfCheetah-v5") for key in PAIRS for n in (1, 8)]


@dataclass(frozen=True)
class Timing:
    """Steps per second over all, and of the updates alone."""

    total: float
    update: float


def timed(model: OnPolicyAlgorithm, rollouts: int) -> Timing:
    """Train for some rollouts; the time of ``train`` is taken apart."""
    seconds = 0.0
    train = type(model).train

    def timed_train() -> None:
        nonlocal seconds
        start = time.perf_counter()
        train(model)
        seconds += time.perf_counter() - start

    model.train = timed_train  # type: ignore[method-assign]
    steps = rollouts * TRANSITIONS
    start = time.perf_counter()
    model.learn(steps)
    return Timing(steps / (time.perf_counter() - start), steps / seconds)


def environment_alone(env: VecEnv, seconds: float = 2.0) -> float:
    """Steps per second with one fixed batch of random actions."""
    env.reset()
    actions = np.array([env.action_space.sample() for _ in range(env.num_envs)])
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        env.step(actions)
        steps += env.num_envs
    return steps / (time.perf_counter() - start)


def measure(case: str, repeats: int, rollouts: int) -> dict[str, object]:
    """One row of the results."""
    key, env_id, n_envs = case.split("/")
    count = int(n_envs)
    alone = environment_alone(make_vec_env(env_id, count, seed=0))
    timings: tuple[list[Timing], list[Timing]] = ([], [])
    for repeat in range(repeats + 1):
        for side, kind in enumerate(PAIRS[key]):
            env = make_vec_env(env_id, count, seed=repeat)
            model = kind("MlpPolicy", env, n_steps=TRANSITIONS // count, device="cpu", seed=repeat)  # type: ignore
            timing = timed(model, rollouts)
            if repeat > 0:  # the first round warms up
                timings[side].append(timing)
    ours, peer = timings
    ratios = [a.total / b.total for a, b in zip(ours, peer, strict=True)]
    updates = [a.update / b.update for a, b in zip(ours, peer, strict=True)]
    values = {
        "ours_total": np.median([t.total for t in ours]),
        "peer_total": np.median([t.total for t in peer]),
        "ours_update": np.median([t.update for t in ours]),
        "peer_update": np.median([t.update for t in peer]),
        "env_alone": alone,
    }
    return {
        "case": case,
        "n_envs": count,
        "threads": th.get_num_threads(),
        "repeats": repeats,
        "ratio": round(float(np.median(ratios)), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "update_ratio": round(float(np.median(updates)), 2),
        "cpu": platform.processor() or platform.machine(),
        **{name: round(float(value)) for name, value in values.items()},
        **{name: version(name.replace("_", "-")) for name in ("torch", "stable_baselines3", "sb3_contrib")},
    }


def main() -> None:
    """Measure the cases and store them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=CASES, help="algorithm/environment/number of envs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=3, help="in each repeat")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "speed.csv")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with args.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for case in args.cases:
            row = measure(case, args.repeats, args.rollouts)
            writer.writerow(row)
            file.flush()
            print(
                f"{case:24} ours {row['ours_total']:>6} steps/s  peer {row['peer_total']:>6}  "
                f"ratio {row['ratio']} ({row['ratio_min']} to {row['ratio_max']})  "
                f"update {row['update_ratio']}  env alone {row['env_alone']}",
                flush=True,
            )
    print(f"written to {args.results}")


if __name__ == "__main__":
    main()
