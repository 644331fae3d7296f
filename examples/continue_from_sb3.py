"""
Take a model that Stable-Baselines3 trained and go on with it: with PPO, and with a KL penalty for the clip.

    python examples/continue_from_sb3.py --timesteps 20000
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import stable_baselines3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trust import PPO, PPOPenalty


def main() -> None:
    """Train with SB3, save, load twice, train on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--timesteps", type=int, default=20_000, help="of each part")
    args = parser.parse_args()

    env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
    path = Path(tempfile.mkdtemp()) / "sb3_ppo"
    stable_baselines3.PPO("MlpPolicy", env, n_steps=256, seed=0, device="cpu").learn(args.timesteps).save(
        path
    )

    settings = {PPO: {}, PPOPenalty: {"target_kl": 0.02, "init_kl_coef": 0.5}}
    for algorithm, arguments in settings.items():
        model = algorithm.load(path, env=env, device="cpu", **arguments)
        model.learn(args.timesteps, reset_num_timesteps=False)
        mean, std = evaluate_policy(model, env, n_eval_episodes=20)
        kl = model.last_update.kl if model.last_update else 0.0
        print(f"{algorithm.__name__:11} return {mean:.1f} +/- {std:.1f}, last update's KL {kl:.4f}")


if __name__ == "__main__":
    main()
