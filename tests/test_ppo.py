"""PPO against stable_baselines3.PPO."""

import inspect
import math

import numpy as np
import pytest
import stable_baselines3
import torch as th

from sb3_trust import PPO
from tests.worlds import (
    ACTION_SPACES,
    CLOSED_FORM_KINDS,
    KINDS,
    fill,
    hand_over,
    model_of,
    on_reference,
    parameters,
    state,
    world,
)

# the bound on the difference, relative to the distance that the update moved
TOLERANCE = {"cnn": 1e-4}
VARIANTS = {
    **{kind: (kind, {}) for kind in KINDS},
    "value_clipping": ("box", {"clip_range_vf": 0.2}),
    "early_stop": ("discrete", {"target_kl": 0.003, "learning_rate": 3e-3}),
    "entropy": ("multi_discrete", {"ent_coef": 0.05}),
    "entropy_squashed": ("gsde_squashed", {"ent_coef": 0.05}),
    "truncated_minibatch": ("box", {"batch_size": 50}),
    "no_normalisation": ("box", {"normalize_advantage": False}),
    "one_large_batch": ("multi_binary", {"batch_size": 128}),
    "no_clip": ("discrete", {"clip_range": math.inf}),
}


PERCEPTRONS = [variant for variant, (kind, _) in VARIANTS.items() if kind in CLOSED_FORM_KINDS]


@pytest.mark.parametrize(
    ("variant", "engine"),
    [*((variant, "autograd") for variant in VARIANTS), *((v, "closed_form") for v in PERCEPTRONS)],
)
def test_update_is_that_of_sb3(variant, engine):
    kind, kwargs = VARIANTS[variant]
    kwargs = {"batch_size": 32, **kwargs}
    theirs = fill(model_of(kind, stable_baselines3.PPO, **kwargs))
    ours = model_of(kind, PPO, engine=engine, **kwargs)
    hand_over(theirs, ours)
    results = []
    for model in (ours, theirs):
        before = parameters(model)
        np.random.seed(7)
        model.train()
        results.append((model, parameters(model), before, np.random.get_state()[1].copy()))
    (ours, new, old, random), (theirs, expected, same, other_random) = results
    assert th.equal(old, same)
    moved = float((expected - old).norm())
    assert moved > 0.01
    assert float((new - expected).norm()) < TOLERANCE.get(kind, 1e-5) * moved
    np.testing.assert_array_equal(random, other_random)
    logged, expected_log = ours.logger.name_to_value, theirs.logger.name_to_value
    assert set(expected_log) <= set(logged)
    for name, value in expected_log.items():
        assert logged[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    np.testing.assert_array_equal(ours.rollout_buffer.actions, theirs.rollout_buffer.actions)


def test_early_stop_does_stop():
    kind, kwargs = VARIANTS["early_stop"]
    model = fill(model_of(kind, PPO, batch_size=32, **kwargs))
    model.train()
    assert model._n_updates < 10


def test_several_rollouts_stay_with_sb3():
    ours, theirs = (
        model_of("box", algorithm, batch_size=32, **on_reference(algorithm)).learn(640)
        for algorithm in (PPO, stable_baselines3.PPO)
    )
    difference = float((parameters(ours) - parameters(theirs)).norm())
    assert difference < 1e-4 * float(parameters(theirs).norm())


def test_constructor_is_that_of_sb3_then_ours_by_keyword():
    ours = inspect.signature(PPO).parameters
    theirs = inspect.signature(stable_baselines3.PPO).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert (parameter.default, parameter.kind) == (ours[name].default, ours[name].kind), name
    assert all(ours[name].kind == inspect.Parameter.KEYWORD_ONLY for name in list(ours)[len(theirs) :])


def test_without_a_clip_nothing_is_clipped():
    """A huge learning rate drives ratios far from 1; without a clip they go on pushing."""
    kls = {}
    for clip_range in (0.2, math.inf):
        model = fill(model_of("discrete", PPO, clip_range=clip_range, learning_rate=0.02, batch_size=128))
        model.train()
        kls[clip_range] = model.last_update.kl
        if clip_range == math.inf:
            assert model.last_update.clip_fraction == 0.0
    assert kls[math.inf] > 1.5 * kls[0.2]


@pytest.mark.parametrize("kind", KINDS)
def test_logged_kl_is_the_exact_one_of_the_whole_update(kind):
    model = fill(model_of(kind, PPO))
    batch = model._make_batch()
    old = th.distributions
    before = model.policy.get_distribution(batch.observations).distribution
    before = [before] if not isinstance(before, list) else list(before)
    model.train()
    after = model.policy.get_distribution(batch.observations).distribution
    after = [after] if not isinstance(after, list) else after
    kl = sum(
        old.kl_divergence(p, q).reshape(len(batch), -1).double().sum(1)
        for p, q in zip(before, after, strict=True)
    ).detach()
    assert model.last_update.kl == pytest.approx(float(kl.mean()), rel=1e-3, abs=1e-7)
    assert model.last_update.kl_max == pytest.approx(float(kl.max()), rel=1e-3, abs=1e-7)
    assert model.last_update.kl > 1e-5


def test_dropout_acts_in_training_and_not_in_the_measured_kl():
    class Drop(th.nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = th.nn.Dropout(0.5)

        def forward(self, x):
            return self.dropout(th.tanh(x))

    model = PPO(
        "MlpPolicy",
        world(ACTION_SPACES["box"]),
        learning_rate=0.0,
        n_steps=32,
        policy_kwargs={"activation_fn": Drop, "net_arch": [16]},
        seed=0,
    )
    model.learn(64)
    assert model.last_update.kl == pytest.approx(0.0, abs=1e-9)  # nothing was learned: nothing moved
    assert model.last_update.approx_kl > 1e-6  # yet the minibatches did see dropout


def test_same_seed_same_bits():
    first, second = (model_of("dict", PPO).learn(256) for _ in range(2))
    assert all(map(th.equal, state(first), state(second)))


def test_logged_gradient_norm_is_that_before_clipping():
    norms = []
    for max_grad_norm in (1e-3, 2e-3):
        model = fill(model_of("box", PPO, max_grad_norm=max_grad_norm, learning_rate=0.0))
        model.train()
        norms.append(model.last_update.gradient_norm)
    assert norms[0] == norms[1] > 0.1


@pytest.mark.parametrize("kind", ["gsde_squashed", "box"])
def test_logged_entropy_is_that_of_the_new_policy(kind):
    """Squashed: the log-probabilities of the old policy's actions, weighted to be the new one's."""
    model = fill(model_of(kind, PPO, learning_rate=3e-3))
    batch = model._make_batch()
    model.train()
    _, log_prob, entropy = model.policy.evaluate_actions(batch.observations, batch.actions)
    if kind == "gsde_squashed":
        entropy = -th.exp(log_prob - batch.old_log_prob) * log_prob
    assert model.last_update.entropy == pytest.approx(entropy.mean().item(), rel=1e-4)
