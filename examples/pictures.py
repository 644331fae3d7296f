"""
Train for a moment and draw one picture of each kind from what the runs recorded.

    python examples/pictures.py --timesteps 30000 --pictures docs/images
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env

from sb3_trust import PPO, TRPO, PPOPenalty, TrustRegionRecorder, UpdateRecorder
from sb3_trust.algorithms.base import TrustRegionAlgorithm
from sb3_trust.plots import (
    clipped_surrogate,
    kl_per_action_dimension,
    kl_per_update,
    learning_curves,
    line_search_trace,
    read_trust_region,
    surrogate_landscape,
    training_figure,
)
from sb3_trust.trust_region import RecordedUpdate

ALGORITHMS = (TRPO, PPO, PPOPenalty)


def train(
    kind: type[TrustRegionAlgorithm], env_id: str, seed: int, timesteps: int, folder: Path, **kwargs: Any
) -> None:
    """One run, with its monitor files, ``updates.csv`` and ``trust_region.npz`` in the folder."""
    env = make_vec_env(env_id, n_envs=8, seed=seed, monitor_dir=str(folder))
    model = kind("MlpPolicy", env, n_steps=128, batch_size=128, seed=seed, device="cpu", **kwargs)
    recorders = CallbackList([UpdateRecorder(folder), TrustRegionRecorder(folder)])
    model.learn(timesteps, callback=recorders)


def longest_search(folder: Path) -> RecordedUpdate:
    """The update whose line search tried the most points before it accepted one."""

    def length(update: RecordedUpdate) -> int:
        search = update.line_search
        return len(search.fractions) if search is not None and search.accepted.any() else 0

    return max(read_trust_region(folder).updates, key=length)


def main() -> None:
    """Train and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--continuous-env", default="HalfCheetah-v5", help="for the KL of action dimensions")
    parser.add_argument("--timesteps", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/pictures"), help="of the runs")
    parser.add_argument("--pictures", type=Path, default=Path("runs/pictures"), help="of the pictures")
    args = parser.parse_args()

    seeds = range(args.seeds)
    runs = {kind.__name__: [args.folder / kind.__name__ / str(seed) for seed in seeds] for kind in ALGORITHMS}
    for kind in ALGORITHMS:
        for seed, folder in enumerate(runs[kind.__name__]):
            train(kind, args.env, seed, args.timesteps, folder)
    continuous, wide = args.folder / "continuous", args.folder / "wide"
    train(TRPO, args.continuous_env, 0, args.timesteps, continuous)
    # so wide a trust region that the linear and the quadratic model and what they model part within it
    train(TRPO, args.env, 0, args.timesteps, wide, target_kl=0.1)

    first = {name: folders[0] for name, folders in runs.items()}
    step, last = longest_search(wide), read_trust_region(first["PPO"]).updates[-1]
    title = f"TRPO on {args.env}, target_kl 0.1, update {step.update}"
    pictures = {
        "learning_curves": learning_curves(runs, title=args.env),
        "training": training_figure(first["TRPO"], title=f"TRPO on {args.env}"),
        "kl_per_update": kl_per_update(first, title=args.env),
        "kl_per_action_dimension": kl_per_action_dimension(continuous, title=f"TRPO, {args.continuous_env}"),
        "clipped_surrogate": clipped_surrogate(last, title=f"PPO on {args.env}, update {last.update}"),
        "surrogate_landscape": surrogate_landscape(step, title=title),
        "line_search_trace": line_search_trace(step, title=title),
    }
    args.pictures.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.items():
        path = args.pictures / f"{name}.png"
        figure.savefig(path, dpi=80)
        print(f"{path} ({path.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
