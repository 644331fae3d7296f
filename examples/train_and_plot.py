"""
Train the three algorithms on one environment and compare how far each of their updates moved the policy.

    python examples/train_and_plot.py --env CartPole-v1 --timesteps 30000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trust import PPO, TRPO, PPOPenalty, UpdateRecorder
from sb3_trust.plots import read_updates, training_figure


def main() -> None:
    """Train, evaluate, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--timesteps", type=int, default=30_000)
    parser.add_argument("--folder", type=Path, default=Path("runs/train_and_plot"))
    args = parser.parse_args()

    for algorithm in (TRPO, PPO, PPOPenalty):
        folder = args.folder / algorithm.__name__
        env = make_vec_env(args.env, n_envs=4, seed=0, monitor_dir=str(folder))
        model = algorithm("MlpPolicy", env, n_steps=256, batch_size=128, seed=0, device="cpu")
        model.learn(args.timesteps, callback=UpdateRecorder(folder))
        model.save(folder / "model")
        mean, std = evaluate_policy(model, env, n_eval_episodes=20)
        kl = read_updates(folder)["kl"]
        training_figure(folder, title=f"{algorithm.__name__} on {args.env}").savefig(folder / "training.png")
        print(
            f"{algorithm.__name__:11} return {mean:.1f} +/- {std:.1f}   "
            f"KL of an update: median {np.median(kl):.4f}, largest {np.max(kl):.4f}   {folder}"
        )


if __name__ == "__main__":
    main()
