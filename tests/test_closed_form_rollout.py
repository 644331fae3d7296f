"""The rollout in NumPy: what it writes to the buffer is what SB3's loop writes for the same actions."""

import itertools
import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_trust import PPO
from sb3_trust.engines.autograd import AutogradEngine
from sb3_trust.engines.closed_form import ClosedFormEngine
from sb3_trust.rollout import compute_returns
from tests.replay import assert_same, collect, normalized, oracle_for, replay
from tests.twins import distance, engines, perturb, policy_of
from tests.worlds import ACTION_SPACES, DICT, PERCEPTRONS, VECTOR, World, model_of, world


class Look(BaseCallback):
    """A user's callback, which makes the rollout a watched one."""

    def _on_step(self):
        return True


def model_on(kind, n_envs=2, n_steps=40, **kwargs):
    model = model_of(kind, PPO, n_envs, n_steps, engine="closed_form", **kwargs)
    perturb(model.policy, 0.3)
    return model


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("kind", PERCEPTRONS)
def test_two_rollouts_are_those_of_sb3s_loop_with_the_same_actions(kind, n_envs, watched):
    model = model_on(kind, n_envs)
    theirs = oracle_for(kind, model)
    ours = collect(model, Look() if watched else None, rollouts=2)
    expected = replay(ours, theirs)
    assert_same(ours, expected)
    assert sum(buffer["episode_starts"].sum() for buffer in ours) > 8 * n_envs
    assert model.num_timesteps == theirs.num_timesteps
    np.testing.assert_array_equal(model._last_obs, theirs._last_obs)
    np.testing.assert_array_equal(model._last_episode_starts, theirs._last_episode_starts)
    assert [e["r"] for e in model.ep_info_buffer] == [e["r"] for e in theirs.ep_info_buffer]


def test_a_time_limit_is_bootstrapped_and_an_end_is_not():
    (buffer,), (without,) = (collect(model_on("box", n_envs=1, gamma=gamma)) for gamma in (0.9, 0.0))
    np.testing.assert_array_equal(buffer["actions"], without["actions"])
    changed = np.flatnonzero(buffer["rewards"] != without["rewards"])
    # of episodes of seven steps every second one is truncated
    np.testing.assert_array_equal(changed, [13, 27])


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("kind", ["box", "multi_discrete", "float64_observation"])
def test_normalised_environments(kind, watched):
    model = model_on(kind)
    theirs = normalized(oracle_for(kind, model))
    ours = collect(normalized(model), Look() if watched else None, rollouts=2)
    assert_same(ours, replay(ours, theirs))
    np.testing.assert_array_equal(model.env.obs_rms.mean, theirs.env.obs_rms.mean)
    np.testing.assert_array_equal(model.env.ret_rms.var, theirs.env.ret_rms.var)


@pytest.mark.parametrize("watched", [False, True])
def test_environments_in_processes(watched):
    space = ACTION_SPACES["box"]
    env = make_vec_env(
        lambda: World(space), 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"}
    )
    try:
        model = PPO("MlpPolicy", env, n_steps=40, policy_kwargs={"net_arch": [16, 16]}, seed=3, device="cpu")
        theirs = oracle_for("box", model, policy_kwargs={"net_arch": [16, 16]})
        ours = collect(model, Look() if watched else None)
        assert isinstance(model._engine, ClosedFormEngine)
        assert_same(ours, replay(ours, theirs))
    finally:
        env.close()


@pytest.mark.parametrize("kind", PERCEPTRONS)
def test_who_watches_changes_nothing(kind):
    models, buffers, random_states = [], [], []
    for callback in (None, Look()):
        models.append(model_on(kind))
        buffers.append(collect(models[-1], callback, rollouts=2))
        random_states.append(th.get_rng_state())
    assert_same(*buffers)
    assert th.equal(*random_states)
    kept = [model._rollout.old_distribution for model in models]
    assert kept[0].shape == (40, 2, kept[0].shape[-1])
    th.testing.assert_close(*kept, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("action_space", "observation_space"),
    [
        (spaces.Box(-3, 3, (2,), np.int32), VECTOR),
        (spaces.Box(-3.0, 3.0, (2,), np.float64), VECTOR),
        (ACTION_SPACES["box"], spaces.Box(0, 10, (3,), np.int64)),
    ],
    ids=["integer_actions", "float64_actions", "integer_observations"],
)
def test_what_the_buffer_rounds_is_evaluated_as_it_was(action_space, observation_space):
    """A buffer has the spaces' types: an integer one rounds actions, and what ``VecNormalize`` returns."""
    buffers = []
    for callback in (None, Look()):
        env = VecNormalize(world(action_space, observation_space))
        model = PPO("MlpPolicy", env, n_steps=20, batch_size=40, seed=3, device="cpu", engine="closed_form")
        buffers += collect(model, callback)
    assert_same(buffers[:1], buffers[1:])


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("kind", PERCEPTRONS)
def test_kept_distributions_are_those_of_the_policy(kind, watched):
    model = model_on(kind)
    collect(model, Look() if watched else None)
    batch = model._make_batch()
    recomputed = AutogradEngine(model.policy).distribution_parameters(batch)
    assert distance(batch.old_distribution, recomputed) < 1e-5
    assert batch.old_distribution.dtype == recomputed.dtype


@pytest.mark.parametrize("kind", ["box", "discrete"])
def test_rollouts_differ_by_seed_and_from_one_another(kind):
    first, again, other = (collect(model_on(kind, seed=seed), rollouts=2) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0]["actions"], again[0]["actions"])
    assert not np.array_equal(first[0]["actions"], other[0]["actions"])
    assert not np.array_equal(first[0]["actions"], first[1]["actions"])


def samples(space, n=20_000, n_steps=2, **kwargs):
    """Actions of many environments in one state, step by step, and SB3's distribution there."""
    policy = policy_of(VECTOR, space, net_arch=[8], **kwargs)
    buffer = RolloutBuffer(n_steps, VECTOR, space, n_envs=n)
    stepper = engines(policy)[0].stepper(buffer, n_steps, watched=False)
    observation = np.random.default_rng(1).normal(size=(1, 4)).astype(np.float32)
    actions = [stepper.act(np.repeat(observation, n, axis=0)) for _ in range(n_steps)]
    with th.no_grad():
        distribution = policy.get_distribution(th.as_tensor(observation)).distribution
    return actions, distribution


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete", "multi_binary"])
def test_discrete_actions_follow_the_policys_distribution(kind):
    space = ACTION_SPACES[kind]
    steps, distribution = samples(space)
    if kind == "multi_binary":
        probs = [[1 - p, p] for p in distribution.probs[0].tolist()]
    else:
        parts = distribution if isinstance(distribution, list) else [distribution]
        probs = [part.probs[0].tolist() for part in parts]
    cells = list(itertools.product(*(range(len(p)) for p in probs)))
    expected = np.array([math.prod(p[k] for p, k in zip(probs, cell, strict=True)) for cell in cells])
    for actions in steps:
        n = len(actions)
        assert actions.shape == (n, *space.shape)
        rows = actions.reshape(n, -1).astype(int)
        counts = np.array([(rows == cell).all(axis=1).sum() for cell in cells])
        assert counts.sum() == n
        chi_square, freedom = ((counts - n * expected) ** 2 / (n * expected)).sum(), len(cells) - 1
        assert chi_square < freedom + 6 * math.sqrt(2 * freedom)
    # two steps in the same state are independent
    same = (steps[0].reshape(n, -1) == steps[1].reshape(n, -1)).all(axis=1).mean()
    assert same == pytest.approx((expected**2).sum(), abs=0.02)


@pytest.mark.parametrize("log_std", [-1.5, 0.0, 1.0])
def test_continuous_actions_follow_the_policys_distribution(log_std):
    steps, distribution = samples(ACTION_SPACES["box"], log_std_init=log_std)
    mean, std = distribution.loc[0].numpy(), distribution.scale[0].numpy()
    z = np.concatenate([(actions - mean) / std for actions in steps], axis=1)
    n = len(z)
    assert z.shape == (n, 6) and np.abs(z.mean(axis=0)).max() < 5 / math.sqrt(n)
    np.testing.assert_allclose(np.cov(z.T), np.eye(6), atol=8 / math.sqrt(n))
    np.testing.assert_allclose((z**4).mean(axis=0), 3.0, atol=0.4)


SPACES = {RolloutBuffer: VECTOR, DictRolloutBuffer: DICT}


@pytest.mark.parametrize("buffer_class", SPACES)
@pytest.mark.parametrize("gamma", [0.0, 0.97, 1.0, np.float64(0.99)])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
def test_returns_are_the_buffers_own_bit_for_bit(buffer_class, gamma, gae_lambda):
    rng = np.random.default_rng(0)
    box = ACTION_SPACES["box"]
    buffers = [
        buffer_class(50, SPACES[buffer_class], box, gamma=gamma, gae_lambda=gae_lambda, n_envs=3)
        for _ in range(2)
    ]
    rewards, values = rng.normal(size=(2, 50, 3))
    starts = rng.random((50, 3)) < 0.2
    for buffer in buffers:
        buffer.rewards[...], buffer.values[...], buffer.episode_starts[...] = 50 * rewards, values, starts
    last, dones = th.as_tensor(rng.normal(size=(3, 1)), dtype=th.float32), np.array([True, False, False])
    compute_returns(buffers[0], last, dones)
    buffers[1].compute_returns_and_advantage(last, dones)
    for name in ("advantages", "returns"):
        ours, theirs = (getattr(buffer, name) for buffer in buffers)
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
        assert ours.dtype == theirs.dtype and ours.any()


def test_infinite_rewards_pass_through_the_returns_as_they_do_in_sb3():
    buffers = [RolloutBuffer(20, VECTOR, ACTION_SPACES["box"], n_envs=1) for _ in range(2)]
    for buffer in buffers:
        buffer.rewards[[5, 12], 0] = np.inf, np.nan
        buffer.episode_starts[15] = 1.0
    last, dones = th.ones(1, 1), np.array([False])
    compute_returns(buffers[0], last, dones)
    with np.errstate(invalid="ignore"):
        buffers[1].compute_returns_and_advantage(last, dones)
    np.testing.assert_array_equal(buffers[0].returns, buffers[1].returns)
    np.testing.assert_array_equal(buffers[0].advantages, buffers[1].advantages)


def test_a_buffer_with_its_own_returns_is_asked_for_them():
    class Own(RolloutBuffer):
        def compute_returns_and_advantage(self, last_values, dones):
            self.returns[...] = 7.0

    buffer = Own(5, VECTOR, spaces.Discrete(2))
    compute_returns(buffer, th.zeros(1, 1), np.array([False]))
    assert (buffer.returns == 7.0).all()
