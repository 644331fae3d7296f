"""The policy's own tensors and its optimizer stay the truth, whatever is done to them between updates."""

import copy

import numpy as np
import pytest
import stable_baselines3
import torch as th
from torch import nn

from sb3_trust import PPO, TRPO, PPOPenalty
from sb3_trust.engines.closed_form import ClosedFormEngine
from tests.twins import distance, pair, perturb, train
from tests.worlds import fill, hand_over, model_of, parameters

ALGORITHMS = [PPO, TRPO]
SIZES = {"n_steps": 45, "batch_size": 32}


def pair_of(algorithm, kind="box", **kwargs):
    return pair(kind, algorithm, **SIZES, **({} if algorithm is TRPO else {"n_epochs": 3}), **kwargs)


def assert_same_step(closed, reference, bound=1e-4):
    """One more update of both, from the reference's buffer, ends at the same place."""
    before = parameters(reference)
    start = float((parameters(closed) - before).norm())
    train(closed, reference)
    moved = float((parameters(reference) - before).norm())
    assert moved > 0.01 and start < bound * moved
    assert float((parameters(closed) - parameters(reference)).norm()) < bound * moved
    assert isinstance(closed._engine, ClosedFormEngine)


def rebuild_optimizer(policy, **options):
    policy.optimizer = th.optim.Adam(policy.parameters(), lr=3e-4, **options)


def load_from_vector(model):
    model.policy.load_from_vector(0.9 * model.policy.parameters_to_vector())


def set_parameters(model):
    given = model.get_parameters()
    given["policy"] = {name: 0.9 * tensor for name, tensor in given["policy"].items()}
    model.set_parameters(given)


def zero_grad(model):
    model.policy.optimizer.zero_grad(set_to_none=True)


def zero_grad_in_place(model):
    model.policy.optimizer.zero_grad(set_to_none=False)


def reload_optimizer(model):
    optimizer = model.policy.optimizer
    fresh = th.optim.Adam(model.policy.parameters(), lr=3e-4)
    fresh.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(fresh.state_dict())


def forget_moments(model):
    model.policy.optimizer.state.clear()


def replace_optimizer(model):
    rebuild_optimizer(model.policy, betas=(0.8, 0.9), weight_decay=0.1)


def change_options(model):
    (group,) = model.policy.optimizer.param_groups
    group["betas"], group["eps"], group["weight_decay"] = (0.7, 0.8), 1e-3, 0.2


def rebind(model):
    for parameter in model.policy.parameters():
        parameter.data = 0.9 * parameter.data


def rebind_one(model):
    model.policy.action_net.bias.data = th.full((3,), 0.25)


@th.no_grad()
def change_in_place(model):
    for parameter in model.policy.parameters():
        parameter.mul_(0.9)
    model.policy.log_std.data.fill_(-0.5)
    model.policy.action_net.weight.data[0] = 0.1


@th.no_grad()
def change_moments(model):
    for state in model.policy.optimizer.state.values():
        state["exp_avg"].mul_(2.0)
        state["step"] += 3


def replace_a_parameter(model):
    layer = model.policy.action_net
    layer.weight = nn.Parameter(2.0 * layer.weight.detach())
    rebuild_optimizer(model.policy)


def replace_a_layer(model):
    th.manual_seed(3)
    model.policy.value_net = nn.Linear(16, 1)
    rebuild_optimizer(model.policy)


def replace_activations(model):
    for body in (model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net):
        body[1], body[3] = nn.ELU(), nn.ELU()


CHANGES = [
    load_from_vector, set_parameters, zero_grad, zero_grad_in_place, reload_optimizer, forget_moments,
    replace_optimizer, change_options, rebind, rebind_one, change_in_place, change_moments,
    replace_a_parameter, replace_a_layer, replace_activations,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_goes_on_from_what_was_changed(algorithm, change):
    closed, reference = pair_of(algorithm)
    train(closed, reference)
    for model in (closed, reference):
        change(model)
    fill(reference)
    hand_over(reference, closed)
    assert_same_step(closed, reference)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_rollout_is_made_by_what_was_changed(change):
    closed, _ = pair_of(PPO)
    train(closed)
    change(closed)
    fill(closed)
    assert isinstance(closed._engine, ClosedFormEngine)
    batch = closed._make_batch()
    with th.no_grad():
        values, log_prob, _ = closed.policy.evaluate_actions(batch.observations, batch.actions)
    assert distance(batch.old_values, values.flatten()) < 1e-5
    assert distance(batch.old_log_prob, log_prob) < 1e-5


def test_a_rollout_follows_the_scaling_of_images():
    closed = fill(model_of("image", PPO, engine="closed_form", **SIZES))
    closed.policy.normalize_images = False
    fill(closed)
    batch = closed._make_batch()
    with th.no_grad():
        values = closed.policy.predict_values(batch.observations).flatten()
    assert distance(batch.old_values, values) < 1e-5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_change_between_rollout_and_update_is_seen(algorithm):
    closed, reference = pair_of(algorithm)
    for model in (closed, reference):
        perturb(model.policy, 0.002)
    assert_same_step(closed, reference)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_saved_and_loaded_model_goes_on(algorithm, tmp_path):
    closed, reference = pair_of(algorithm)
    train(closed, reference)
    loaded = []
    for model in (closed, reference):
        path = tmp_path / model.engine
        model.save(path)
        loaded.append(algorithm.load(path, env=model.get_env(), device="cpu"))
        loaded[-1].set_logger(model.logger)
        assert loaded[-1].engine == model.engine
    fill(reference)
    for model in loaded:
        hand_over(reference, model)
    assert_same_step(*loaded)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, PPOPenalty])
def test_parameters_and_moments_remain_the_same_tensors(algorithm):
    closed, _ = pair_of(algorithm)
    policy = closed.policy

    def places():
        state = policy.optimizer.state
        moments = [t for p in policy.parameters() for t in state.get(p, {}).values()]
        parts = [list(policy.parameters()), moments, list(policy.state_dict().values())]
        return [[(id(t), t.data_ptr()) for t in part] for part in parts[:2]], [t.data_ptr() for t in parts[2]]

    members = [id(p) for p in policy.optimizer.param_groups[0]["params"]]
    train(closed)
    kept = places()
    before = parameters(closed)
    fill(closed)
    train(closed)
    assert places() == kept
    assert [id(p) for p in policy.optimizer.param_groups[0]["params"]] == members
    assert not th.equal(before, parameters(closed))
    storages = {t.untyped_storage().data_ptr() for t in policy.parameters()}
    assert len(storages) == len(list(policy.parameters()))


def test_sb3_takes_over_policy_and_optimizer():
    closed, _ = pair_of(PPO)
    train(closed)
    theirs = model_of("box", stable_baselines3.PPO, n_epochs=3, **SIZES)
    theirs.policy.load_state_dict(closed.policy.state_dict())
    # a copy: the tensors of a loaded state are shared
    theirs.policy.optimizer.load_state_dict(copy.deepcopy(closed.policy.optimizer.state_dict()))
    fill(theirs)
    hand_over(theirs, closed)
    before = parameters(theirs)
    for model in (closed, theirs):
        np.random.seed(7)
        model.train()
    moved = float((parameters(theirs) - before).norm())
    assert float((parameters(closed) - parameters(theirs)).norm()) < 1e-5 * moved


def test_sb3_loads_the_saved_model(tmp_path):
    closed, _ = pair_of(PPO)
    train(closed)
    closed.save(tmp_path / "model")
    theirs = stable_baselines3.PPO.load(tmp_path / "model", env=closed.get_env(), device="cpu")
    assert th.equal(parameters(theirs), parameters(closed))
    ours, other = closed.policy.optimizer.state_dict(), theirs.policy.optimizer.state_dict()
    assert ours["state"].keys() == other["state"].keys() and len(ours["state"]) > 0
    assert all(
        th.equal(ours["state"][k][name], other["state"][k][name])
        for k in ours["state"]
        for name in ("step", "exp_avg", "exp_avg_sq")
    )
