"""Bad input is refused at construction, by name, with the value and what is allowed."""

import math
import re

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from sb3_trust import NPG, PPO, REINFORCE, TRPO, InvalidArgument, PPOPenalty
from sb3_trust.engines.base import ENGINES
from tests.worlds import ACTION_SPACES, VECTOR, World, world

COMMON = {
    "learning_rate": [-1e-3, math.nan, math.inf, "fast", None],
    "n_steps": [0, -1, 1.5, "8", True, None],
    "batch_size": [0, -4, 2.5, math.nan],
    "gamma": [-0.1, 1.1, math.nan, "0.99"],
    "gae_lambda": [-0.1, 1.1, math.nan],
    "ent_coef": [-0.1, math.nan, math.inf, "0"],
    "normalize_advantage": [1, "yes", None],
    "use_sde": [1, "yes"],
    "sde_sample_freq": [-2, 0.5],
    "stats_window_size": [0, -1, 2.5],
    "seed": [-1, 0.5],
    "critic_learning_rate": [0.0, -1e-3, math.nan, "fast"],
    "log_std_bounds": [(1.0,), (2.0, -5.0), (-5.0, math.inf), (-5.0, math.nan), 2.0, "wide", (0.5, 2.0)],
    "action_net_gain": [0.0, -0.1, math.nan, math.inf, "0.01"],
    "engine": ["closed-form", "Auto", None, 1],
}
MINIBATCH = {
    "n_epochs": [0, -1, 1.5],
    "vf_coef": [-0.5, math.nan],
    "max_grad_norm": [0.0, -1.0, math.nan],
    "max_kl": [0.0, -0.01, math.nan, math.inf, "lin_0.01"],
    "recompute_advantages": [1, "yes", None],
}
SEPARATE_CRITIC = {"n_critic_updates": [-1, 0.5], "critic_max_grad_norm": [0.0, -1.0, math.nan]}
NATURAL_GRADIENT = {
    **SEPARATE_CRITIC,
    "cg_max_steps": [0, 1.5],
    "cg_damping": [-0.1, math.nan, math.inf],
    "cg_tolerance": [-0.1, 1.1, math.nan],
    "target_kl": [0.0, -0.01, math.nan, None, "cos_0.1"],
    "sub_sampling_factor": [0, 1.5],
    "max_chunk": [0, -1, 1.5],
}
OWN = {
    REINFORCE: {
        **SEPARATE_CRITIC,
        "n_gradient_steps": [0, -1, 1.5, None],
        "max_grad_norm": [0.0, -1.0, math.nan],
    },
    NPG: {**NATURAL_GRADIENT, "step_size": [0.0, -0.1, math.nan, math.inf, "lin_0.1"]},
    PPO: {
        **MINIBATCH,
        "clip_range": [0.0, -0.2, math.nan, "0.2", None],
        "clip_range_vf": [0.0, -0.2, math.nan, "0.2"],
        "target_kl": [0.0, -0.01, math.nan, math.inf, "lin_0.01"],
        "value_clip": ["min", None, "max"],  # without a `clip_range_vf` there is no larger of two
        "dual_clip": [1.0, 0.5, math.nan, math.inf],
        "kl_stop": ["always", None, "exact"],  # without a `target_kl` there is nothing to stop at
        "learning_rate_kl_target": [0.0, -0.01, math.nan, math.inf, "lin_0.01"],
        "learning_rate_kl_interval": ["minibatch", None, "epoch"],  # without a target nothing adapts
        "objective": [1, "spo", math.sqrt],
    },
    PPOPenalty: {
        **MINIBATCH,
        "target_kl": [0.0, -0.01, math.nan, None, "linear"],
        "init_kl_coef": [0.0, -1.0, math.nan, math.inf, 1e9],
        "kl_rule": ["adaptive", {"hgih": 2.0}, {"high": 0.5}, None],
        "hinge_coef": [-1.0, math.nan, "big"],
    },
    TRPO: {
        **NATURAL_GRADIENT,
        "line_search_shrinking_factor": [0.0, 1.0, 1.5, -0.5, math.nan],
        "line_search_max_iter": [0, -1],
        "accept_ratio": [-0.1, 1.1, math.nan],
        "damping_rule": ["auto", None],
        "kl_statistic": ["median", None],
    },
}
CASES = [
    (algorithm, name, value)
    for algorithm, own in OWN.items()
    for name, values in {**COMMON, **own}.items()
    for value in values
]


@pytest.mark.parametrize(("algorithm", "name", "value"), CASES)
def test_bad_values_are_refused_by_name(algorithm, name, value):
    settings = {"n_steps": 32, "batch_size": 32, name: value}
    with pytest.raises(InvalidArgument) as error:
        algorithm("MlpPolicy", world(ACTION_SPACES["box"]), **settings)
    message = str(error.value)
    assert name in message and "must be" in message
    shown = value if not isinstance(value, dict) else next(iter(value.values()))
    assert re.search(re.escape(str(shown)), message)


@pytest.mark.parametrize("algorithm", OWN)
def test_every_argument_with_a_range_is_in_the_table(algorithm):
    """An argument that is added without a check of its own shows here."""
    import inspect

    unchecked = {
        "policy", "env", "rollout_buffer_class", "rollout_buffer_kwargs", "tensorboard_log", "policy_kwargs",
        "verbose", "device", "_init_setup_model",
    }  # fmt: skip
    assert set(inspect.signature(algorithm).parameters) - unchecked == {*COMMON, *OWN[algorithm]}


@pytest.mark.parametrize("algorithm", OWN)
@pytest.mark.parametrize("engine", ENGINES)
def test_good_values_are_taken(algorithm, engine):
    model = algorithm(
        "MlpPolicy",
        world(ACTION_SPACES["box"]),
        learning_rate=0.0,
        n_steps=np.int64(32),
        batch_size=32,
        gamma=np.float32(1.0),
        gae_lambda=0,
        engine=engine,
    )
    assert model.learn(64).num_timesteps == 64


def test_errors_are_value_errors_and_assertion_errors():
    for kind in (ValueError, AssertionError):
        with pytest.raises(kind, match="clip_range"):
            PPO("MlpPolicy", world(ACTION_SPACES["box"]), clip_range=-1.0)


@pytest.mark.parametrize("algorithm", OWN)
def test_one_sample_cannot_be_normalised(algorithm):
    env = world(ACTION_SPACES["box"], n_envs=1)
    with pytest.raises(InvalidArgument, match=r"n_steps \* n_envs.*n_steps=1 and n_envs=1"):
        algorithm("MlpPolicy", env, n_steps=1, batch_size=2)
    algorithm("MlpPolicy", env, n_steps=1, batch_size=2, normalize_advantage=False).learn(3)
    algorithm("MlpPolicy", world(ACTION_SPACES["box"], n_envs=2), n_steps=1, batch_size=2).learn(4)


@pytest.mark.parametrize("algorithm", [PPO, PPOPenalty])
def test_minibatches_of_one_cannot_be_normalised(algorithm):
    with pytest.raises(InvalidArgument, match="batch_size"):
        algorithm("MlpPolicy", world(ACTION_SPACES["box"]), batch_size=1)
    TRPO("MlpPolicy", world(ACTION_SPACES["box"]), batch_size=1, n_steps=4).learn(
        8
    )  # normalises the whole rollout


@pytest.mark.parametrize("algorithm", OWN)
@pytest.mark.parametrize(("n_steps", "batch_size", "left"), [(32, 128, 64), (33, 32, 2)])
def test_sizes_that_the_zoo_may_sample_only_warn(algorithm, n_steps, batch_size, left):
    with pytest.warns(UserWarning, match=f"truncated mini-batch of size {left}"):
        model = algorithm("MlpPolicy", world(ACTION_SPACES["box"]), n_steps=n_steps, batch_size=batch_size)
    model.learn(2 * n_steps)
    assert model.last_update.kl > 0 and model.n_rollbacks == 0


@pytest.mark.parametrize("algorithm", OWN)
@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (VECTOR, spaces.Tuple([spaces.Discrete(2)]), "action space"),
        (VECTOR, spaces.MultiBinary([2, 2]), "flat MultiBinary"),
        (spaces.Text(5), ACTION_SPACES["box"], "observation space"),
        (VECTOR, spaces.Box(-np.inf, np.inf, (2,)), "finite"),
    ],
)
def test_spaces_that_cannot_be_served_are_refused(algorithm, observation_space, action_space, message):
    with pytest.raises(InvalidArgument, match=message):
        algorithm("MlpPolicy", World(action_space, observation_space))


def test_unknown_policies_and_misplaced_options_are_refused():
    with pytest.raises(ValueError, match="unknown"):
        TRPO("MlpLstm", gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="gSDE"):
        TRPO("MlpPolicy", gym.make("CartPole-v1"), use_sde=True)


@pytest.mark.parametrize("algorithm", OWN)
def test_policies_with_masks_or_recurrence_are_refused(algorithm):
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

    for policy in (MaskableActorCriticPolicy, RecurrentActorCriticPolicy):
        with pytest.raises(
            InvalidArgument, match=f"policy.*without recurrence or action masks.*{policy.__name__}"
        ):
            algorithm(policy, gym.make("CartPole-v1"))
