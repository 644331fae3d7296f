"""PPOPenalty: the coefficient, the hinge, and that the KL divergence comes to its target."""

import math

import numpy as np
import pytest
import torch as th

from sb3_trust import PPOPenalty
from sb3_trust.numerics.kl_coefficient import next_coefficient, preset
from sb3_trust.numerics.losses import PenalizedSurrogateLoss
from tests.worlds import KINDS, fill, identical, model_of, parameters, policy_parameters, state


@pytest.mark.parametrize("kind", KINDS)
def test_update_is_that_of_the_formula_under_plain_autograd(kind):
    """The whole train() against a direct implementation of section 4 of the paper."""
    settings = {
        "init_kl_coef": 2.0,
        "ent_coef": 0.01,
        "hinge_coef": 500.0,
        "target_kl": 1e-4,
    }  # the hinge bites
    ours = fill(model_of(kind, PPOPenalty, batch_size=32, n_epochs=3, **settings))
    other = fill(model_of(kind, PPOPenalty, batch_size=32, n_epochs=3))
    batch, policy, family = other._make_batch(), other.policy, other._policy_engine().family
    before = parameters(other)
    np.random.seed(5)
    ours.train()
    np.random.seed(5)
    policy.set_training_mode(True)
    for _ in range(3):
        for indices in np.split(np.random.permutation(len(batch)), len(batch) // 32):
            part = batch[th.from_numpy(indices)]
            values, log_prob, entropy = policy.evaluate_actions(part.observations, part.actions)
            kl = family.kl(
                part.old_distribution, family.of(policy.get_distribution(part.observations))
            ).mean()
            a = (part.advantages - part.advantages.mean()) / (part.advantages.std() + 1e-8)
            surrogate = (a * th.exp(log_prob - part.old_log_prob)).mean()
            bonus = -log_prob.mean() if entropy is None else entropy.mean()
            penalty = 2.0 * kl + 500.0 * th.relu(kl - 2 * 1e-4) ** 2
            value_loss = ((values.flatten() - part.returns) ** 2).mean()
            policy.optimizer.zero_grad()
            (-surrogate + penalty - 0.01 * bonus + 0.5 * value_loss).backward()
            th.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            policy.optimizer.step()
    moved = float((parameters(other) - before).norm())
    assert moved > 0.01
    assert float((parameters(ours) - parameters(other)).norm()) < 1e-4 * moved


def test_old_and_new_policy_are_not_the_same_object():
    """A penalty whose KL is always 0 has no effect: a huge coefficient must hold the policy back."""
    kls = {}
    for coefficient in (1e-4, 1e4):
        model = fill(model_of("box", PPOPenalty, init_kl_coef=coefficient, learning_rate=3e-3))
        model.train()
        kls[coefficient] = model.last_update.kl
    assert kls[1e4] < 0.05 * kls[1e-4]


def test_hinge_holds_back_what_the_penalty_lets_go():
    kls = {}
    for hinge in (0.0, 1e5):
        settings = {"kl_rule": "fixed", "init_kl_coef": 0.0, "n_epochs": 30, "learning_rate": 3e-3}
        model = fill(model_of("discrete", PPOPenalty, hinge_coef=hinge, **settings))
        model.train()
        kls[hinge] = model.last_update.kl
    assert kls[0.0] > 0.05
    assert kls[1e5] < 0.6 * kls[0.0]


def test_presets_set_rule_and_hinge_and_an_argument_overrides_the_hinge():
    def objective(**kwargs) -> PenalizedSurrogateLoss:
        return model_of("box", PPOPenalty, **kwargs)._objective()

    assert objective().hinge_coef == 0.0
    assert objective(kl_rule="modular_rl").hinge_coef == 1000.0
    assert objective(kl_rule="modular_rl", hinge_coef=5.0).hinge_coef == 5.0
    assert objective(kl_rule={"high": 2.0}, hinge_coef=5.0).hinge_coef == 5.0
    assert objective(init_kl_coef=0.3, target_kl="lin_0.02").kl_coef == 0.3


@pytest.mark.parametrize(
    "rule", ["paper", "modular_rl", "proportional", "fixed", {"high": 1.1, "low": 0.9, "increase": 3.0}]
)
def test_coefficient_moves_once_a_rollout_from_the_final_exact_kl(rule):
    model = model_of("box", PPOPenalty, kl_rule=rule, target_kl=0.005)
    expected = 1.0
    for _ in range(4):
        fill(model).train()
        last = model.last_update
        assert last.kl_coef == expected  # the one that this update used
        expected = next_coefficient(preset(rule).rule, expected, last.kl, 0.005, 128)
        assert model.kl_coef == expected
    assert (model.kl_coef == 1.0) == (rule == "fixed")


@pytest.mark.parametrize("kind", ["discrete", "box", "gsde", "multi_binary"])
def test_kl_comes_to_its_target(kind):
    model = model_of(kind, PPOPenalty, target_kl=0.01, learning_rate=1e-3, n_steps=256, batch_size=64)
    kls = []

    for _ in range(14):
        fill(model).train()
        kls.append(model.last_update.kl)
    assert 0.01 / 2.5 < np.exp(np.mean(np.log(kls[4:]))) < 0.01 * 2.5
    assert all(math.isfinite(kl) for kl in kls)


def test_target_of_zero_trains_the_critic_alone():
    model = fill(model_of("box", PPOPenalty, target_kl=lambda progress: 0.0))
    weights, before = policy_parameters(model), state(model)
    model.train()
    assert identical(weights, policy_parameters(model)) and not identical(before, state(model))
    assert model.kl_coef == 1.0
    assert model.last_update.target_kl == 0.0


def test_logged_penalty_is_coefficient_times_kl_plus_hinge():
    def updated(n_epochs):
        settings = {"init_kl_coef": 3.0, "hinge_coef": 7e4, "target_kl": 2e-5, "learning_rate": 3e-3}
        model = fill(model_of("box", PPOPenalty, batch_size=128, n_epochs=n_epochs, **settings))
        model.train()
        return model.last_update

    kl = updated(1).kl  # where the second epoch starts; the first starts at the old policy, without a penalty
    assert kl > 1e-4
    expected = 3.0 * kl + 7e4 * (kl - 4e-5) ** 2
    assert updated(2).penalty == pytest.approx(expected / 2, rel=1e-3)
