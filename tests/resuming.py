"""Saving a model with its environment, going on from there, and comparing what has come of it."""

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trust import NPG, PPO, REINFORCE, TRPO, PPOPenalty
from tests.worlds import KINDS, identical, model_of, state, world

ALGORITHMS = {kind.__name__: kind for kind in (REINFORCE, NPG, TRPO, PPO, PPOPenalty)}
ROOT = Path(__file__).parent.parent
STEPS = 128  # two rollouts of 32 steps in two environments
COUNTERS = ("num_timesteps", "_n_updates", "n_rollbacks", "_episode_num", "_total_timesteps")
ROLLOUT = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages")


def environment(kind, normalized=False):
    if kind == "cartpole":
        return make_vec_env("CartPole-v1", n_envs=2, seed=0)
    env = world(*KINDS[kind][:2])
    return VecNormalize(env) if normalized else env


def get_state(env):
    """The state of a vector of environments: the environments themselves, and what a normaliser has seen."""
    normaliser = {}
    if isinstance(env, VecNormalize):
        normaliser = {**env.__getstate__(), "returns": env.returns}
    return pickle.dumps((env.unwrapped.envs, normaliser))


def set_state(env, saved):
    env.unwrapped.envs, normaliser = pickle.loads(saved)
    env.__dict__.update(normaliser)


def make(kind, algorithm, normalized=False, **kwargs):
    kwargs = {"n_steps": 32, "batch_size": 16, "learning_rate": 3e-3, **kwargs}
    if algorithm in (PPO, PPOPenalty):
        kwargs.setdefault("n_epochs", 3)
    if kind == "cartpole":
        return algorithm("MlpPolicy", environment(kind), seed=3, device="cpu", **kwargs)
    model = model_of(kind, algorithm, **kwargs)
    if normalized:
        model.set_env(environment(kind, normalized))
    return model


def save(model, folder, **kwargs):
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model", **kwargs)
    (folder / "env.pkl").write_bytes(get_state(model.get_env()))


def scramble():
    random.seed(99)
    np.random.seed(99)
    th.manual_seed(99)


def load(algorithm, folder, kind, normalized=False, **kwargs):
    scramble()
    env = environment(kind, normalized)
    model = algorithm.load(folder / "model", env=env, device="cpu", force_reset=False, **kwargs)
    set_state(env, (folder / "env.pkl").read_bytes())
    scramble()
    return model


def everything(model):
    """All that training changes, as tensors and numbers."""
    buffer = model.rollout_buffer
    rollout = [th.from_numpy(np.asarray(getattr(buffer, name)).copy()) for name in ROLLOUT]
    last = [th.from_numpy(model._last_obs.copy()), th.from_numpy(model._last_episode_starts.copy())]
    numbers = [getattr(model, name) for name in COUNTERS]
    numbers += [getattr(model, "kl_coef", 0.0), model.policy.optimizer.param_groups[0]["lr"]]
    numbers += [(info["r"], info["l"]) for info in model.ep_info_buffer]
    drawn = [random.random(), np.random.random(), float(th.rand(()))]
    return [*state(model), *rollout, *last], [*numbers, *drawn]


def same(first, second):
    return first[1] == second[1] and identical(first[0], second[0])


def go_on(model, **kwargs):
    return everything(model.learn(STEPS, reset_num_timesteps=False, **kwargs))


def go_on_elsewhere(name, folder, kind):
    """In another process: go on from a folder, and leave there what has come of it."""
    th.set_num_threads(1)
    model = load(ALGORITHMS[name], Path(folder), kind)
    th.save(go_on(model), Path(folder) / "result.pt")


def python(arguments, code=0, **kwargs):
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environ, check=False, timeout=120, **kwargs
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout
