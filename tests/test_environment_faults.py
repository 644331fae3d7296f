"""What an environment may do wrong: rewards and observations that are NaN or infinite."""

import math
import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import Wrapper
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trust import NPG, PPO, REINFORCE, TRPO, PPOPenalty
from sb3_trust.finite_guard import _check_batch
from tests.worlds import ACTION_SPACES, DICT, VECTOR, World, identical, state

ALGORITHMS = [REINFORCE, NPG, TRPO, PPO, PPOPenalty]


class Spoiled(Wrapper):
    """An environment whose quantity turns bad at one step."""

    def __init__(self, env, at, reward=None, observation=None, truncate=False):
        super().__init__(env)
        self.at, self.reward, self.observation, self.truncate, self.count = (
            at,
            reward,
            observation,
            truncate,
            0,
        )

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.count += 1
        if self.count == self.at:
            if self.reward is not None:
                reward = self.reward
            if self.observation is not None:
                part = obs["vector"] if isinstance(obs, dict) else obs
                part[0] = self.observation
                truncated = truncated or self.truncate
        return obs, reward, terminated, truncated, info


def spoiled_env(index, observation_space=VECTOR, **kwargs):
    """Three environments, the one with this index spoiled."""
    ids = iter(range(3))

    def make():
        env = World(ACTION_SPACES["box"], observation_space)
        return Spoiled(env, **kwargs) if next(ids) == index else env

    return make_vec_env(make, 3, seed=0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_reward_costs_one_rollout(algorithm, bad):
    model = algorithm("MlpPolicy", spoiled_env(1, at=50, reward=bad), n_steps=32, batch_size=32, seed=0)
    with pytest.warns(RuntimeWarning, match="rolled back: non-finite advantages"):
        model.learn(4 * 96)
    assert model.n_rollbacks == 1
    assert model.last_update.kl > 0
    assert all(bool(th.isfinite(t).all()) for t in state(model))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("observation_space", [VECTOR, DICT], ids=["vector", "dict"])
def test_a_bad_observation_is_an_error_that_names_its_environment(normalize, bad, observation_space):
    env = spoiled_env(1, observation_space, at=40, observation=bad)
    if normalize:
        env = VecNormalize(env, norm_obs_keys=["vector"] if observation_space is DICT else None)
    policy = "MlpPolicy" if observation_space is VECTOR else "MultiInputPolicy"
    model = PPO(policy, env, n_steps=32, batch_size=32, seed=0)
    weights = []
    model.train = lambda: (PPO.train(model), weights.append(state(model)))[0]
    with pytest.raises(ValueError, match=r"environment 1 .*NaN or infinite observation"):
        model.learn(1000)
    assert len(weights) == 1 and identical(weights[0], state(model))


def test_a_bad_observation_at_the_end_of_a_rollout_is_seen_before_the_update():
    model = TRPO("MlpPolicy", spoiled_env(2, at=32, observation=math.nan), n_steps=32, batch_size=32, seed=0)
    with pytest.raises(ValueError, match=r"environment 2 .*observation"):
        model.learn(1000)
    assert (model._n_updates, model.n_rollbacks) == (0, 0)


def test_a_bad_reward_under_a_normaliser_is_an_error_that_names_its_environment():
    model = TRPO(
        "MlpPolicy", VecNormalize(spoiled_env(2, at=40, reward=math.nan)), n_steps=32, batch_size=32, seed=0
    )
    with pytest.raises(ValueError, match=r"environment 2 .*reward under VecNormalize"):
        model.learn(1000)


def test_a_bad_terminal_observation_is_an_error_that_names_its_environment():
    env = spoiled_env(0, at=3, observation=math.nan, truncate=True)
    with pytest.raises(ValueError, match=r"environment 0 .*terminal observation"):
        PPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0).learn(1000)


def test_large_observations_are_not_taken_for_infinite_ones():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _check_batch(np.full((2, 4), 3e38, np.float32), "observation")
