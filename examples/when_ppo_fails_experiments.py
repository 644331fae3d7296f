"""The three experiments of ``when_ppo_fails.py``: methods, settings, and what is kept of their updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from stable_baselines3.common.utils import LinearSchedule
from when_ppo_fails_worlds import BatchedEnv, Lock, Steering, Targets

from sb3_trust import NPG, PPO, REINFORCE, TRPO, PPOPenalty
from sb3_trust.algorithms.base import TrustRegionAlgorithm
from sb3_trust.algorithms.listening import FinishedUpdate
from sb3_trust.trust_region.record import RecordedUpdate

ROLLOUT = 1024
TARGET_KL = 0.01
CLIP_RANGE = 0.2
# of PPO and PPOPenalty; the others' is their critic's, and REINFORCE's, and is 1e-3 by default
LEARNING_RATE = 1e-3
ADAM = {"learning_rate": LEARNING_RATE}

Method = tuple[type[TrustRegionAlgorithm], dict[str, Any]]


@dataclass(frozen=True)
class SparseRow:
    """
    Some updates in a row.

    :param episodes: that ended since the row before, and as many of them as ``successes`` reached the reward
    :param entropy: of the policy after the last of the updates, mean over the states of the rollout
    :param kl: mean KL(old || new) of the updates
    """

    method: str
    distance: int
    ent_coef: float
    seed: int
    num_timesteps: int
    episodes: int
    successes: int
    entropy: float
    kl: float


@dataclass(frozen=True)
class DimensionsRow:
    """
    One update.

    :param score: after it; 0: doing nothing, 1: the optimum
    :param kl: KL(old || new) of all dimensions together
    :param kl_per_dimension: of each, separated by spaces
    :param log_ratio_std: standard deviation of the samples' log probability ratio
    :param clip_fraction: share of samples whose ratio lies outside of PPO's clip range, whatever the method
    """

    method: str
    dimensions: int
    ent_coef: float
    seed: int
    num_timesteps: int
    score: float
    kl: float
    kl_per_dimension: str
    log_ratio_std: float
    clip_fraction: float


@dataclass(frozen=True)
class FlipsRow:
    """
    Some updates in a row.

    :param score: of the episodes of their rollouts; 0: staying, 1: straight to the goal
    :param kl: mean KL(old || new) of the updates
    :param kl_max: the largest one
    :param std: the policy's standard deviation after the last of them
    """

    method: str
    first_jump: int
    ent_coef: float
    seed: int
    num_timesteps: int
    score: float
    kl: float
    kl_max: float
    std: float


@dataclass(frozen=True)
class Measured:
    """
    What a row is made from.

    :param finished: the updates since the row before
    :param recorded: the last one that the trust region recorder kept, if there is one
    """

    model: Any
    env: BatchedEnv
    finished: Sequence[FinishedUpdate]
    recorded: RecordedUpdate | None


class Experiment(ABC):
    """
    One of the three.

    :cvar methods: names in figures; class and arguments
    :cvar x: the column of what is varied: the distance, the dimensions, or the update of the first jump
    :cvar every: a row for so many updates
    :cvar first: the first update that has one
    :cvar n_envs: copies of the environment; with ``ROLLOUT`` it gives the steps of each in a rollout
    """

    row_type: ClassVar[Any]
    methods: ClassVar[dict[str, Method]]
    x: ClassVar[str]
    every: ClassVar[int]
    first: ClassVar[int]
    n_envs: ClassVar[int]
    n_seeds: ClassVar[int] = 5
    arguments: ClassVar[dict[str, Any]] = {}

    @classmethod
    @abstractmethod
    def cases(cls, quick: bool) -> list[tuple[int, float]]:
        """Pairs of x and ``ent_coef``."""

    @classmethod
    @abstractmethod
    def n_updates(cls, x: int, quick: bool) -> int:
        """Of a run."""

    @classmethod
    @abstractmethod
    def make_env(cls, x: int) -> BatchedEnv:
        """The environment of a run."""

    @classmethod
    @abstractmethod
    def measure(cls, at: Measured) -> dict[str, Any]:
        """The columns of a row but those that say which run it is of."""

    @classmethod
    def keeps(cls, update: int) -> bool:
        """Whether there is a row for an update, counted from 1."""
        return (update - cls.first) % cls.every == 0

    @classmethod
    def make_model(cls, method: str, x: int, ent_coef: float, seed: int) -> TrustRegionAlgorithm:
        """The model of a run."""
        env = cls.make_env(x)
        env.seed(seed)
        kind, arguments = cls.methods[method]
        if arguments.get("target_kl") == "per dimension":
            arguments = arguments | {"target_kl": TARGET_KL * x}
        common: dict[str, Any] = {"n_steps": ROLLOUT // cls.n_envs, "batch_size": 128, "device": "cpu"}
        common |= {"seed": seed, "ent_coef": ent_coef}
        return kind("MlpPolicy", env, **common, **cls.arguments, **arguments)


class Sparse(Experiment):
    """None of the methods explores by itself."""

    row_type = SparseRow
    methods: ClassVar[dict[str, Method]] = {
        "REINFORCE": (REINFORCE, {}),
        "NPG": (NPG, {}),
        "TRPO": (TRPO, {}),
        "PPO": (PPO, ADAM),
        "PPOPenalty": (PPOPenalty, ADAM),
    }
    x, every, first, n_envs = "distance", 4, 4, Lock.HORIZON
    n_seeds = 10
    hard = 15  # a distance that random actions sometimes reach in the time of a run

    @classmethod
    def cases(cls, quick: bool) -> list[tuple[int, float]]:
        # the last one is found by no run: what its updates follow is the noise of the critic
        distances = (4, 30) if quick else (6, 9, 12, 15, 18, 30)
        return [*((n, 0.0) for n in distances), *((cls.hard, c) for c in ([0.01] if quick else [0.01, 0.1]))]

    @classmethod
    def n_updates(cls, x: int, quick: bool) -> int:
        return 4 if quick else 40

    @classmethod
    def make_env(cls, x: int) -> BatchedEnv:
        return Lock(cls.n_envs, x)

    @classmethod
    def measure(cls, at: Measured) -> dict[str, Any]:
        returns = at.env.take_returns()
        return {
            "episodes": len(returns),
            "successes": int(sum(returns)),
            "entropy": round(at.finished[-1].statistics.entropy, 4),
            "kl": float(f"{np.mean([update.statistics.kl for update in at.finished]):.4g}"),
        }


class Dimensions(Experiment):
    """The clip acts on the ratio, a product over dimensions."""

    row_type = DimensionsRow
    methods: ClassVar[dict[str, Method]] = {
        "PPO": (PPO, ADAM),
        "PPO, kl_stop": (PPO, {**ADAM, "target_kl": TARGET_KL, "kl_stop": "exact"}),
        "PPO, max_kl": (PPO, {**ADAM, "max_kl": TARGET_KL}),
        "PPOPenalty": (PPOPenalty, {**ADAM, "target_kl": TARGET_KL}),
        "TRPO": (TRPO, {"target_kl": TARGET_KL}),
        "TRPO, target x d": (TRPO, {"target_kl": "per dimension"}),
    }
    x, every, first, n_envs = "dimensions", 4, 1, 64  # those that the recorder keeps
    arguments: ClassVar[dict[str, Any]] = {"gamma": 0.0}  # a step does not influence the next one

    @classmethod
    def cases(cls, quick: bool) -> list[tuple[int, float]]:
        return [(n, 0.0) for n in ((1, 4) if quick else (1, 2, 4, 8, 16, 32))]

    @classmethod
    def n_updates(cls, x: int, quick: bool) -> int:
        return 5 if quick else 41

    @classmethod
    def make_env(cls, x: int) -> BatchedEnv:
        return Targets(cls.n_envs, x)

    @classmethod
    def measure(cls, at: Measured) -> dict[str, Any]:
        assert isinstance(at.env, Targets) and at.recorded is not None
        update = at.recorded
        log_ratio = np.log(update.ratios.astype(np.float64))
        return {
            "score": round(at.env.score(at.model), 4),
            "kl": float(f"{update.kl:.6g}"),
            "kl_per_dimension": " ".join(f"{kl:.4g}" for kl in update.kl_per_dimension),
            "log_ratio_std": float(f"{log_ratio.std():.4g}"),
            "clip_fraction": round(float((abs(update.ratios - 1) > CLIP_RANGE).mean()), 4),
        }


class Flips(Experiment):
    """What was learned has to be learned anew, by a policy that has become sure of itself."""

    row_type = FlipsRow
    methods: ClassVar[dict[str, Method]] = {
        "PPO": (PPO, ADAM),
        "PPO, falling rate": (PPO, {"learning_rate": LinearSchedule(LEARNING_RATE, 0.0, 1.0)}),
        "PPO, KL-steered rate": (PPO, {**ADAM, "learning_rate_kl_target": TARGET_KL}),
        "PPOPenalty": (PPOPenalty, {**ADAM, "target_kl": TARGET_KL}),
        "TRPO": (TRPO, {"target_kl": TARGET_KL}),
        "PPO, std above 0.37": (PPO, {**ADAM, "log_std_bounds": (-1.0, 1.0)}),
    }
    x, every, first, n_envs = "first_jump", 2, 2, 64

    @classmethod
    def cases(cls, quick: bool) -> list[tuple[int, float]]:
        return [(2 if quick else 40, 0.0)]

    @classmethod
    def n_updates(cls, x: int, quick: bool) -> int:
        return 5 * x

    @classmethod
    def jumps(cls, x: int) -> tuple[int, int]:
        """The updates after which the goal jumps."""
        return x, 3 * x

    @classmethod
    def make_env(cls, x: int) -> BatchedEnv:
        return Steering(cls.n_envs, [at * ROLLOUT for at in cls.jumps(x)])

    @classmethod
    def measure(cls, at: Measured) -> dict[str, Any]:
        divergences = [update.statistics.kl for update in at.finished]
        return {
            "score": round(Steering.score(at.env.take_returns()), 4),
            "kl": float(f"{np.mean(divergences):.4g}"),
            "kl_max": float(f"{np.max(divergences):.4g}"),
            "std": round(at.finished[-1].statistics.std, 4),
        }


EXPERIMENTS: dict[str, type[Experiment]] = {"sparse": Sparse, "dimensions": Dimensions, "flips": Flips}
