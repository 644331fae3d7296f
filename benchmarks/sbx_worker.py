"""SBX's PPO, timed by an interpreter that has it: a JSON line in for each job, a JSON line out."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

from sbx import PPO
from sides import timed, use_threads
from stable_baselines3.common.env_util import make_vec_env

models: dict[tuple[Any, ...], PPO] = {}


def run(job: dict[str, Any]) -> dict[str, float]:
    """Train for some rollouts; a model is kept with what was compiled for it."""
    key = (job["env"], job["n_envs"])
    if key not in models:
        env = make_vec_env(job["env"], job["n_envs"], seed=job["seed"])
        n_steps = job["transitions"] // job["n_envs"]
        models[key] = PPO("MlpPolicy", env, n_steps=n_steps, seed=job["seed"])
        models[key].learn(2 * job["transitions"])
    return asdict(timed(models[key], job["transitions"], job["rollouts"]))


def main() -> None:
    """Answer jobs until the input ends."""
    use_threads(1)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
