"""What is not finite never reaches the weights."""

import math

import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_trust import NPG, PPO, REINFORCE, TRPO, PPOPenalty
from sb3_trust.engines.base import DescentOptions
from tests.worlds import (
    fill,
    identical,
    model_of,
    policy_parameters,
    state,
)

ALGORITHMS = [REINFORCE, NPG, TRPO, PPO, PPOPenalty]


def trained(algorithm, kind="box", **kwargs):
    """A model with optimizer state, and a fresh rollout in its buffer."""
    model = fill(model_of(kind, algorithm, **kwargs))
    model.train()
    return fill(model)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("kind", "quantity"),
    [
        *[
            (kind, name)
            for kind in ("box", "discrete")
            for name in ("advantages", "returns", "log_probs", "values")
        ],
        ("cnn", "advantages"),
    ],
)
def test_a_non_finite_batch_changes_nothing_and_the_next_good_one_trains(algorithm, kind, bad, quantity):
    model = trained(algorithm, kind)
    before, n_updates, kl_coef = state(model), model._n_updates, getattr(model, "kl_coef", None)
    getattr(model.rollout_buffer, quantity)[3, 1] = bad
    with pytest.warns(RuntimeWarning, match="rolled back"):
        model.train()
    assert identical(before, state(model))
    assert (model.n_rollbacks, model._n_updates) == (1, n_updates)
    assert getattr(model, "kl_coef", None) == kl_coef
    assert model.logger.name_to_value["train/rollbacks"] == 1
    assert model.logger.name_to_value["train/rollback_reason"] in (
        "advantages",
        "returns",
        "old_log_prob",
        "old_values",
    )
    assert math.isfinite(model.last_update.kl)
    fill(model).train()
    assert not identical(before, state(model))
    assert model.n_rollbacks == 1 and model.last_update.rollback_reason == ""
    assert model.last_update.kl > 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_non_finite_old_distribution_changes_nothing(algorithm):
    model = trained(algorithm)
    before = state(model)
    model._rollout.old_distribution[3, 1, 0] = math.nan
    with pytest.warns(RuntimeWarning, match="old_distribution"):
        model.train()
    assert identical(before, state(model)) and model.n_rollbacks == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_first_update_rolled_back_leaves_no_optimizer_state(algorithm):
    model = fill(model_of("box", algorithm))
    before = state(model)
    model.rollout_buffer.advantages[0, 0] = math.nan
    with pytest.warns(RuntimeWarning):
        model.train()
    assert identical(before, state(model)) and not model.policy.optimizer.state


def diverge_at_step(model, n, layer="action_net"):
    """Let the n-th optimizer step write an infinity into a layer's weights."""
    step, calls = model.policy.optimizer.step, []

    def explode(*args, **kwargs):
        calls.append(1)
        result = step(*args, **kwargs)
        if len(calls) == n:
            with th.no_grad():
                getattr(model.policy, layer).weight[0, 0] = math.inf
        return result

    model.policy.optimizer.step = explode
    with pytest.warns(RuntimeWarning):
        model.train()
    model.policy.optimizer.step = step
    return calls


@pytest.mark.parametrize("algorithm", [PPO, PPOPenalty])
@pytest.mark.parametrize("first", [True, False])
def test_an_update_that_diverges_half_way_is_undone(algorithm, first):
    """The batch is good; an infinite step of the third minibatch is not."""
    model = fill(model_of("box", algorithm, batch_size=32)) if first else trained(algorithm, batch_size=32)
    before, n_updates = state(model), model._n_updates
    assert len(diverge_at_step(model, 3)) == 10 * 4
    assert identical(before, state(model)) and model.n_rollbacks == 1
    assert bool(model.policy.optimizer.state) != first  # what the update itself began is gone too
    assert model._n_updates == model.last_update.n_updates == n_updates
    assert math.isnan(model.last_update.explained_variance)
    fill(model).train()
    assert not identical(before, state(model))


@pytest.mark.parametrize(("algorithm", "n_steps"), [(PPO, 40), (PPOPenalty, 40), (TRPO, 40)])
def test_an_infinity_that_no_loss_has_seen_is_undone(algorithm, n_steps):
    """The last step spoils the critic: the policy's KL and every minibatch's loss are finite."""
    model = trained(algorithm, batch_size=32)
    before = state(model)
    assert len(diverge_at_step(model, n_steps, "value_net")) == n_steps
    assert identical(before, state(model)) and model.n_rollbacks == 1


@pytest.mark.parametrize("algorithm", [PPO, PPOPenalty])
@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.SGD, th.optim.RMSprop])
def test_moving_statistics_and_any_optimizer_are_put_back(algorithm, optimizer):
    class Normalized(BaseFeaturesExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space, 4)
            self.norm = th.nn.BatchNorm1d(4)

        def forward(self, observations):
            return self.norm(observations)

    arguments = {"amsgrad": True} if optimizer is th.optim.Adam else {"momentum": 0.9}
    policy_kwargs = {
        "features_extractor_class": Normalized,
        "optimizer_class": optimizer,
        "optimizer_kwargs": arguments,
    }
    model = trained(algorithm, policy_kwargs=policy_kwargs)
    before = state(model)
    diverge_at_step(model, 2)
    assert identical(before, state(model)) and model.n_rollbacks == 1
    fill(model).train()
    after = state(model)
    assert not any(map(th.equal, before, after))  # every tensor moves in a good update: the check has power


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_exception_in_an_update_leaves_the_weights_as_they_were(algorithm, monkeypatch):
    model = trained(algorithm)
    before, calls = state(model), []
    kind = type(model._policy_engine().descent(model._make_batch(), DescentOptions()))
    step = kind.step

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(kind, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.train()
    assert identical(before, state(model))


def test_trpo_with_a_vanishing_standard_deviation_leaves_the_policy_alone():
    model = model_of("box", TRPO)
    with th.no_grad():
        model.policy.log_std.fill_(math.log(1e-20))
    fill(model)
    before = state(model)
    with pytest.warns(RuntimeWarning, match="rolled back"):
        model.train()
    assert identical(before, state(model)) and model.n_rollbacks == 1
    with th.no_grad():
        model.policy.log_std.fill_(0.0)
    fill(model).train()
    assert model.last_update.is_line_search_success == 1


def test_trpo_with_an_underflowed_probability_leaves_the_policy_alone():
    model = model_of("discrete", TRPO, normalize_advantage=False)
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.copy_(th.tensor([300.0, 0.0, -300.0]))
    fill(model)
    weights = policy_parameters(model)
    model.train()
    assert identical(weights, policy_parameters(model))
    assert math.isfinite(model.last_update.kl_max) and model.n_rollbacks == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_underflowed_action_does_not_stop_learning(algorithm):
    """One action is all but impossible, the others are not: every update is finite and is made."""
    model = model_of("discrete", algorithm)
    with th.no_grad():
        model.policy.action_net.bias.copy_(th.tensor([0.0, 0.0, -400.0]))
    fill(model).train()
    assert model.n_rollbacks == 0 and 0 < model.last_update.kl < 0.1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_parameters_that_are_nan_already_are_an_error(algorithm):
    model = fill(model_of("box", algorithm))
    with th.no_grad():
        model.policy.value_net.bias.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN or infinite already"):
        model.train()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_validation_of_distributions_is_restored(algorithm):
    before = th.distributions.Distribution._validate_args
    model = fill(model_of("box", algorithm))
    model.train()
    assert th.distributions.Distribution._validate_args == before
