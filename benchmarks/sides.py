"""What is measured: a case, the two sides that train on it, and the clocks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

TRANSITIONS = 2048  # of a rollout


@dataclass(frozen=True)
class Case:
    """
    One comparison.

    :param algorithm: "ppo" or "trpo"
    :param env: id of the environment
    :param n_envs: environments at once
    :param width: of both hidden layers
    :param normalize: under ``VecNormalize``
    :param engine: of our side
    :param transitions: in a rollout
    :param kwargs: arguments for both sides, instead of the peer's defaults
    :param rollouts: at most so many in each repeat: of a peer that takes minutes for one, one must do
    """

    algorithm: str
    env: str
    n_envs: int
    width: int = 64
    normalize: bool = False
    engine: str = "auto"
    transitions: int = TRANSITIONS
    kwargs: dict[str, Any] = field(default_factory=dict)
    rollouts: int = 1000

    @property
    def is_atari(self) -> bool:
        """Whether observations are images."""
        return "ALE/" in self.env or "NoFrameskip" in self.env

    def make_env(self, seed: int) -> VecEnv:
        """Its vector of environments, under ``Monitor``."""
        if self.is_atari:
            import ale_py
            import gymnasium

            gymnasium.register_envs(ale_py)
            return VecFrameStack(make_atari_env(self.env, self.n_envs, seed=seed), 4)
        env = make_vec_env(self.env, self.n_envs, seed=seed)
        return VecNormalize(env) if self.normalize else env

    def make_model(self, kind: type[OnPolicyAlgorithm], seed: int) -> OnPolicyAlgorithm:
        """A model of one side."""
        kwargs = dict(self.kwargs)
        if kind.__module__.startswith("sb3_trust"):
            kwargs["engine"] = self.engine
        if self.width != 64:
            kwargs["policy_kwargs"] = {"net_arch": [self.width, self.width]}
        policy = "CnnPolicy" if self.is_atari else "MlpPolicy"
        n_steps = self.transitions // self.n_envs
        return kind(policy, self.make_env(seed), n_steps=n_steps, device="cpu", seed=seed, **kwargs)  # type: ignore


ATARI = {"batch_size": 256}
CASES: dict[str, Case] = {
    **{
        f"{algorithm}/{env}/{n}": Case(algorithm, env, n)
        for algorithm in ("ppo", "trpo")
        for env in ("CartPole-v1", "HalfCheetah-v5", "Hopper-v5")
        for n in (1, 8)
    },
    "ppo/HalfCheetah-v5/8/VecNormalize": Case("ppo", "HalfCheetah-v5", 8, normalize=True),
    "ppo/HalfCheetah-v5/8/256-256": Case("ppo", "HalfCheetah-v5", 8, width=256),
    "trpo/HalfCheetah-v5/8/256-256": Case("trpo", "HalfCheetah-v5", 8, width=256),
    "ppo/Humanoid-v5/8": Case("ppo", "Humanoid-v5", 8),
    "trpo/Humanoid-v5/8": Case("trpo", "Humanoid-v5", 8),
    "ppo/CartPole-v1/8/autograd": Case("ppo", "CartPole-v1", 8, engine="autograd"),
    "ppo/HalfCheetah-v5/8/autograd": Case("ppo", "HalfCheetah-v5", 8, engine="autograd"),
    "trpo/HalfCheetah-v5/8/autograd": Case("trpo", "HalfCheetah-v5", 8, engine="autograd"),
    "ppo/PongNoFrameskip-v4/8": Case(
        "ppo", "PongNoFrameskip-v4", 8, transitions=1024, kwargs={**ATARI, "n_epochs": 4}
    ),
    "trpo/PongNoFrameskip-v4/8": Case(
        "trpo", "PongNoFrameskip-v4", 8, transitions=1024, kwargs=ATARI, rollouts=1
    ),
}


@dataclass(frozen=True)
class Timing:
    """Steps per second over all, of the rollouts alone and of the updates alone."""

    total: float
    collect: float
    update: float


def timed(model: Any, transitions: int, rollouts: int) -> Timing:
    """Train for some rollouts with a clock on ``collect_rollouts`` and one on ``train``."""
    seconds = {"collect_rollouts": 0.0, "train": 0.0}

    def clocked(name: str) -> Callable[..., Any]:
        method = getattr(type(model), name)

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = method(model, *args, **kwargs)
            seconds[name] += time.perf_counter() - start
            return result

        return call

    for name in seconds:
        setattr(model, name, clocked(name))
    steps = rollouts * transitions
    start = time.perf_counter()
    model.learn(steps)
    total = time.perf_counter() - start
    return Timing(steps / total, steps / seconds["collect_rollouts"], steps / seconds["train"])


def environment_alone(env: VecEnv, seconds: float = 2.0) -> float:
    """Steps per second of ``env.step`` with one fixed batch of random actions."""
    env.reset()
    actions = np.array([env.action_space.sample() for _ in range(env.num_envs)])
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        env.step(actions)
        steps += env.num_envs
    return steps / (time.perf_counter() - start)


def cpu_name() -> str:
    """The processor's model, as far as it is known."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith("model name")]
        return f"{lines[0].split(':')[1].strip()} x {len(lines)}"
    except (OSError, IndexError):
        import platform

        return platform.processor() or platform.machine()


def peak_mb() -> int:
    """Peak resident memory of this process in MB; ``getrusage`` would count its parent's too."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024


def use_threads(threads: int) -> None:
    """The threads of torch and of NumPy's BLAS."""
    from threadpoolctl import threadpool_limits

    os.environ["OMP_NUM_THREADS"] = str(threads)  # or ours would choose for itself
    th.set_num_threads(threads)
    threadpool_limits(threads)
