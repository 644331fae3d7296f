"""Small environments and models that many tests use."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_trust.algorithms.base import TrustRegionAlgorithm

ACTION_SPACES: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "multi_discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi_binary": spaces.MultiBinary(4),
}
VECTOR = spaces.Box(-5.0, 5.0, (4,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
DICT = spaces.Dict({"vector": VECTOR, "phase": spaces.Discrete(3)})

# name -> (action space, observation space, policy, policy_kwargs, use_sde)
KINDS: dict[str, tuple[spaces.Space, spaces.Space, str, dict[str, Any], bool]] = {
    **{name: (space, VECTOR, "MlpPolicy", {}, False) for name, space in ACTION_SPACES.items()},
    "gsde": (ACTION_SPACES["box"], VECTOR, "MlpPolicy", {}, True),
    "gsde_expln": (ACTION_SPACES["box"], VECTOR, "MlpPolicy", {"use_expln": True, "full_std": False}, True),
    "gsde_squashed": (ACTION_SPACES["box"], VECTOR, "MlpPolicy", {"squash_output": True}, True),
    "cnn": (ACTION_SPACES["discrete"], IMAGE, "CnnPolicy", {}, False),
    "discrete_observation": (ACTION_SPACES["multi_discrete"], spaces.Discrete(5), "MlpPolicy", {}, False),
    "float64_observation": (
        ACTION_SPACES["box"],
        spaces.Box(-5.0, 5.0, (4,), np.float64),
        "MlpPolicy",
        {},
        False,
    ),
    "dict": (ACTION_SPACES["box"], DICT, "MultiInputPolicy", {}, False),
}

# those that the closed-form engine serves
CLOSED_FORM_KINDS = [*ACTION_SPACES, "discrete_observation", "float64_observation"]
# more of those, for the tests of that engine
SMALL_IMAGE = spaces.Box(0, 255, (3, 6, 6), np.uint8)
PERCEPTRONS: dict[str, tuple[spaces.Space, spaces.Space, str, dict[str, Any], bool]] = {
    **{kind: KINDS[kind] for kind in CLOSED_FORM_KINDS},
    "multi_discrete_observation": (
        ACTION_SPACES["discrete"],
        spaces.MultiDiscrete([3, 5, 2]),
        "MlpPolicy",
        {},
        False,
    ),
    "multi_binary_observation": (ACTION_SPACES["box"], spaces.MultiBinary(5), "MlpPolicy", {}, False),
    "image": (ACTION_SPACES["box"], SMALL_IMAGE, "MlpPolicy", {}, False),
    "unscaled_image": (
        ACTION_SPACES["discrete"],
        SMALL_IMAGE,
        "MlpPolicy",
        # a hyperbolic tangent would be saturated, its slope all rounding
        {"normalize_images": False, "activation_fn": th.nn.ReLU},
        False,
    ),
    "float_image": (
        ACTION_SPACES["discrete"],
        spaces.Box(-5.0, 5.0, (3, 4, 4), np.float32),
        "MlpPolicy",
        {},
        False,
    ),
    "matrix_action": (spaces.Box(-1.0, 2.0, (2, 2), np.float32), VECTOR, "MlpPolicy", {}, False),
}

# logits in the hundreds would be all rounding
WORLD_KWARGS = {"unscaled_image": {"brightest": 15}}


class World(gym.Env):
    """
    Random observations; the reward is higher the closer the action is to one that the observation names.

    :param length: steps of an episode; every second episode is truncated, the others terminate
    :param brightest: largest value of a pixel
    """

    def __init__(
        self,
        action_space: spaces.Space,
        observation_space: spaces.Space = VECTOR,
        length: int = 7,
        brightest: int = 255,
    ):
        self.brightest = brightest
        self.action_space, self.observation_space, self.length = action_space, observation_space, length
        self._episode = self._step = 0

    def _observe(self) -> Any:
        def draw(space: spaces.Space) -> Any:
            if isinstance(space, spaces.Discrete):
                return int(self.np_random.integers(space.n))
            if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
                choices = space.nvec if isinstance(space, spaces.MultiDiscrete) else np.full(space.shape, 2)
                return self.np_random.integers(choices).astype(space.dtype)
            if space.dtype == np.uint8:
                return self.np_random.integers(0, self.brightest + 1, space.shape, dtype=np.uint8)
            return self.np_random.normal(size=space.shape).astype(space.dtype)

        if isinstance(self.observation_space, spaces.Dict):
            return {key: draw(space) for key, space in self.observation_space.spaces.items()}
        return draw(self.observation_space)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self._step, self._episode = 0, self._episode + 1
        self.observation = self._observe()
        return self.observation, {}

    def _reward(self, action: Any) -> float:
        first = self.observation["vector"] if isinstance(self.observation, dict) else self.observation
        wanted = float(np.asarray(first, dtype=np.float64).reshape(-1)[0])
        return -abs(float(np.mean(np.asarray(action, dtype=np.float64))) - wanted)

    def step(self, action: Any):
        reward = self._reward(action)
        self._step += 1
        self.observation = self._observe()
        ended = self._step >= self.length
        truncated = ended and self._episode % 2 == 0
        return self.observation, reward, ended and not truncated, truncated, {}


def world(
    action_space: spaces.Space, observation_space: spaces.Space = VECTOR, n_envs: int = 2, **kwargs
) -> VecEnv:
    """A seeded vector of worlds."""
    return make_vec_env(lambda: World(action_space, observation_space, **kwargs), n_envs=n_envs, seed=0)


def model_of(
    kind: str, algorithm: type[OnPolicyAlgorithm], n_envs: int = 2, n_steps: int = 64, **kwargs
) -> OnPolicyAlgorithm:
    """A model on the world of one of ``KINDS`` or ``PERCEPTRONS``, with a logger, ready for ``train()``."""
    action_space, observation_space, policy, policy_kwargs, use_sde = {**KINDS, **PERCEPTRONS}[kind]
    if kind != "cnn":
        policy_kwargs = {"net_arch": {"pi": [16, 16], "vf": [16, 16]}, **policy_kwargs}
    else:
        policy_kwargs = {"features_extractor_kwargs": {"features_dim": 32}, **policy_kwargs}
    policy_kwargs = {**policy_kwargs, **kwargs.pop("policy_kwargs", {})}
    model = algorithm(
        policy,
        world(action_space, observation_space, n_envs, **WORLD_KWARGS.get(kind, {})),
        n_steps=n_steps,
        use_sde=use_sde,
        policy_kwargs=policy_kwargs,
        seed=kwargs.pop("seed", 3),
        device="cpu",
        **kwargs,
    )
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def fill(model: OnPolicyAlgorithm) -> OnPolicyAlgorithm:
    """Let a model collect one rollout, and not train on it."""
    _, callback = model._setup_learn(10_000)
    callback.on_training_start({}, {})
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def on_reference(algorithm: type[OnPolicyAlgorithm]) -> dict[str, Any]:
    """Arguments that put our algorithms on the reference engine, which draws random numbers as SB3 does."""
    return {"engine": "autograd"} if issubclass(algorithm, TrustRegionAlgorithm) else {}


# Adam's loop over the parameters, which rounds otherwise than its one call for all
LOOP = {"optimizer_kwargs": {"foreach": False}}


def hand_over(source: OnPolicyAlgorithm, target: OnPolicyAlgorithm) -> None:
    """Give the target model a copy of the rollout that the source model collected."""
    names = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages")
    for name in (*names, "returns", "pos", "full", "generator_ready"):
        setattr(target.rollout_buffer, name, copy.deepcopy(getattr(source.rollout_buffer, name)))


def parameters(model: OnPolicyAlgorithm) -> th.Tensor:
    """All parameters of the policy as one float64 vector."""
    return th.cat([p.detach().double().reshape(-1) for p in model.policy.parameters()])


def state(model: OnPolicyAlgorithm) -> list[th.Tensor]:
    """Copies of parameters, buffers and optimizer state."""
    policy = model.policy
    optimizer = [v for s in policy.optimizer.state.values() for v in s.values() if isinstance(v, th.Tensor)]
    return [t.detach().clone() for t in (*policy.parameters(), *policy.buffers(), *optimizer)]


def identical(before: list[th.Tensor], after: list[th.Tensor]) -> bool:
    """Whether two states are the same bit for bit."""
    return len(before) == len(after) and all(map(th.equal, before, after))


def policy_parameters(model: OnPolicyAlgorithm) -> list[th.Tensor]:
    """Copies of what the action distribution depends on, by name: the worlds' policies are SB3's own."""
    names = ("value_net", "policy_net_vf", "mlp_extractor.value_net")
    return [p.detach().clone() for name, p in model.policy.named_parameters() if not name.startswith(names)]
