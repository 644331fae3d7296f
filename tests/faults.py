"""Things that go wrong, each told apart by where it enters: environment, policy, rollout or gradient."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_trust.numerics.losses import ClippedSurrogateLoss, PenalizedSurrogateLoss
from sb3_trust.numerics.objectives import PolicyTerms, SurrogateObjective
from tests.worlds import ACTION_SPACES, VECTOR, World

N_STEPS = 32
LOSSES = (ClippedSurrogateLoss, PenalizedSurrogateLoss, SurrogateObjective)


class Faulty(gym.Wrapper):
    """
    A world with a fault that can be switched on and off.

    :param at: the first step after the switch that is spoiled
    :param lasting: all further steps are spoiled too
    """

    def __init__(self, env: gym.Env, spoil: Callable[..., Any], at: int = 20, lasting: bool = False) -> None:
        super().__init__(env)
        self._spoil, self._at, self._lasting, self._on, self._count = spoil, at, lasting, False, 0

    def switch(self, on: bool) -> None:
        """Begin or end the fault."""
        self._on, self._count = on, 0

    def step(self, action: Any) -> Any:
        """A step of the world, or of the fault."""
        step = self.env.step(action)
        self._count += 1
        if self._on and (self._count == self._at or (self._lasting and self._count > self._at)):
            return self._spoil(*step)
        return step


class Mixed(VecEnvWrapper):
    """Batches of observations that come as float32 and float64 in turn."""

    on = False

    def _turned(self, observations: np.ndarray) -> np.ndarray:
        self._double = self.on and not getattr(self, "_double", False)
        return observations.astype(np.float64 if self._double else np.float32)

    def reset(self) -> np.ndarray:
        """As the vector's, in the type whose turn it is."""
        return self._turned(self.venv.reset())

    def step_wait(self) -> Any:
        """As the vector's, in the type whose turn it is."""
        observations, *rest = self.venv.step_wait()
        return self._turned(observations), *rest


def with_reward(of: Callable[[float], float]) -> Callable[..., Any]:
    """A step with another reward."""
    return lambda observation, reward, *rest: (observation, of(reward), *rest)


def with_observation(bad: float) -> Callable[..., Any]:
    """A step with one entry of the observation replaced."""

    def spoil(observation: np.ndarray, *rest: Any) -> Any:
        observation = observation.copy()
        observation[1] = bad
        return observation, *rest

    return spoil


def broken(*step: Any) -> Any:
    """A step that fails."""
    raise OSError("the simulator lost its licence")


def hung_up(*step: Any) -> Any:
    """A step in which the process of the environment ends."""
    os._exit(3)


def _unspoiled(*step: Any) -> Any:
    return step


@dataclass(frozen=True)
class Fault:
    """
    :param kind: the action space
    :param spoil: what a faulty environment makes of a step
    :param lasting: it does so with all steps
    :param vector: what makes a vector of environments
    :param policy: what is done to the policy before the rollout
    :param rollout: what is done to the buffer after the rollout
    :param slope: by what a sample's derivative of the loss is multiplied in the update
    """

    kind: str = "box"
    spoil: Callable[..., Any] | None = None
    lasting: bool = False
    vector: Callable[..., VecEnv] = DummyVecEnv
    policy: Callable[[Any], None] | None = None
    rollout: Callable[[Any], None] | None = None
    slope: float = 1.0

    def environment(self) -> VecEnv:
        """Two worlds; a fault that lasts is in both, a single one in the second."""

        def make(index: int) -> gym.Env:
            spoil = self.spoil if self.spoil is not None and (index or self.lasting) else _unspoiled
            at = 1 if self.lasting else 20
            return Monitor(Faulty(World(ACTION_SPACES[self.kind], VECTOR), spoil, at, self.lasting))

        env = self.vector([partial(make, index) for index in range(2)])
        env.seed(0)
        return env

    def model(self, algorithm: Any, engine: str) -> Any:
        """A model that can meet the fault."""
        model = algorithm(
            "MlpPolicy",
            self.environment(),
            n_steps=N_STEPS,
            batch_size=N_STEPS,
            policy_kwargs={"net_arch": [16, 16]},
            engine=engine,
            seed=3,
            device="cpu",
        )
        model.set_logger(Logger(folder=None, output_formats=[]))
        return model

    def switch(self, model: Any, on: bool) -> None:
        """Begin or end the fault in the environment."""
        if isinstance(model.env, Mixed):
            model.env.on = on
        model.env.env_method("switch", on)

    def patch(self, monkeypatch: Any) -> None:
        """Spoil the derivatives with respect to the log-probabilities, the first sample's in each call."""
        for loss in LOSSES if self.slope != 1.0 else ():
            monkeypatch.setattr(loss, "derivatives", self._spoiled(loss.derivatives))

    def _spoiled(self, derivatives: Callable[..., PolicyTerms]) -> Callable[..., PolicyTerms]:
        def spoiled(*args: Any) -> PolicyTerms:
            terms = derivatives(*args)
            terms.log_prob[..., 0] = self.slope  # type: ignore[index]
            return terms

        return spoiled


def set_log_std(value: float) -> Callable[[Any], None]:
    """All standard deviations are set to one."""

    def change(policy: Any) -> None:
        policy.log_std.fill_(value)

    return change


def cloned(policy: Any) -> None:
    """The means follow the best action, and hardly anything is explored, as after imitation."""
    observations = th.randn(512, *VECTOR.shape)
    latent = policy.mlp_extractor.forward_actor(observations)
    wanted = observations[:, :1].expand(-1, policy.action_net.out_features)
    policy.action_net.weight.copy_(th.linalg.lstsq(latent, wanted).solution.T)
    policy.action_net.bias.zero_()
    policy.log_std.fill_(-8.0)


def underflowing(policy: Any) -> None:
    """The logits of two actions lie so far below the third's that their probability is zero."""
    policy.action_net.bias.copy_(th.tensor([0.0, 1e4, 0.0]))


def set_entry(quantity: str, bad: float) -> Callable[[Any], None]:
    """One entry of an array of the buffer is bad."""

    def change(buffer: Any) -> None:
        getattr(buffer, quantity)[5, 1] = bad

    return change


def times(factor: float) -> Fault:
    """All rewards are scaled."""
    return Fault(spoil=with_reward(lambda reward: factor * reward), lasting=True)


FAULTS = {
    **{f"{name} reward": Fault(spoil=with_reward(lambda _, bad=bad: bad))
       for name, bad in (("NaN", math.nan), ("infinite", math.inf))},
    **{f"{name} observation": Fault(spoil=with_observation(bad))
       for name, bad in (("NaN", math.nan), ("infinite", math.inf))},
    **{f"{name} {quantity}": Fault(rollout=set_entry(array, bad))
       for quantity, array in (("advantage", "advantages"), ("log-prob", "log_probs"))
       for name, bad in (("NaN", math.nan), ("infinite", math.inf))},
    "NaN gradient": Fault(slope=math.nan),
    "infinite gradient": Fault(slope=math.inf),
    "probability underflow": Fault("discrete", policy=underflowing),
    "sigma of 1e-20": Fault(policy=set_log_std(math.log(1e-20))),
    "sigma of 1e20": Fault(policy=set_log_std(math.log(1e20))),
    "cloned policy": Fault(policy=cloned),
    "rewards all zero": times(0.0),
    "rewards of 1e8": times(1e8),
    "rewards of 1e25": times(1e25),
    "observation of 3e38": Fault(spoil=with_observation(3e38)),
    "environment raises": Fault(spoil=broken),
    "environment hangs up": Fault(spoil=hung_up, vector=partial(SubprocVecEnv, start_method="forkserver")),
    "mixed observation types": Fault(vector=lambda fns: Mixed(DummyVecEnv(fns))),
}  # fmt: skip
