"""TRPO's options of damping, memory and constraint, on both engines alike."""

import math
from itertools import product

import numpy as np
import pytest
import torch as th

from sb3_trust import TRPO, InvalidArgument
from sb3_trust.algorithms.natural_gradient import NaturalGradient
from sb3_trust.engines.autograd import AutogradEngine
from sb3_trust.engines.closed_form import ClosedFormEngine
from sb3_trust.numerics.damping import MAX_DAMPING, MAX_RETRIES, MIN_DAMPING, next_damping
from tests.test_ppo_options import distribution
from tests.twins import distance, pair, train
from tests.worlds import fill, identical, model_of, parameters, policy_parameters, state

SIZES = {"n_steps": 48, "batch_size": 32}
BOTH = pytest.mark.parametrize("engine", ["autograd", "closed_form"])
OPTIONS = {
    "damping_rule": {"damping_rule": "adaptive"},
    "kl_statistic": {"kl_statistic": "max"},
    "critic_learning_rate": {"critic_learning_rate": 1e-4},
    "critic_max_grad_norm": {"critic_max_grad_norm": 0.01},
    "log_std_bounds": {"log_std_bounds": (-0.001, 0.001)},
}


def trained(engine, kind="box", **kwargs):
    model = fill(model_of(kind, TRPO, engine=engine, **{**SIZES, **kwargs}))
    np.random.seed(7)
    model.train()
    assert not model.last_update.rollback_reason
    return model


@pytest.mark.parametrize("option", OPTIONS)
def test_both_engines_do_the_same_and_something(option):
    closed, reference = pair("box", TRPO, **SIZES, **OPTIONS[option])
    before = parameters(reference)
    train(closed, reference)
    moved = float((parameters(reference) - before).norm())
    assert float((parameters(closed) - parameters(reference)).norm()) < 1e-5 * moved
    _, without = pair("box", TRPO, **SIZES)
    train(without)
    if option == "damping_rule":  # the first update is with the damping that was given
        assert closed.current_cg_damping == reference.current_cg_damping != 0.1
    else:
        assert distance(parameters(reference), parameters(without)) > 1e-4


@BOTH
@pytest.mark.parametrize("kind", ["box", "multi_discrete", "multi_binary"])
def test_the_bound_holds_at_every_state_where_it_is_on_the_largest(kind, engine):
    mean, worst = (trained(engine, kind, kl_statistic=name) for name in ("mean", "max"))
    assert mean.last_update.kl_max > 0.01
    assert worst.last_update.is_line_search_success
    assert 0.003 < worst.last_update.kl_max <= 0.01
    if kind == "box":
        start = fill(model_of(kind, TRPO, engine=engine, **SIZES))
        old, new = distribution(start), distribution(worst, start)
        kl = th.distributions.kl_divergence(old, new).sum(1).max().item()
        assert kl == pytest.approx(worst.last_update.kl_max, rel=1e-3)


def test_damping_follows_measured_over_predicted_kl():
    assert next_damping(0.1, 1.6e-2, 1e-2) == pytest.approx(0.15)
    assert next_damping(0.1, 1.4e-2, 1e-2) == 0.1
    assert next_damping(0.1, 1.0e-2, 1e-2) == pytest.approx(0.1 / 1.5)
    assert next_damping(MAX_DAMPING, 1.0, 1e-2) == MAX_DAMPING
    assert next_damping(MIN_DAMPING, 1e-3, 1e-2) == MIN_DAMPING
    assert next_damping(0.1, math.inf, 1e-2) == next_damping(0.1, 1e-2, 0.0) == 0.1
    assert next_damping(1e9, 0.0, 0.0) == MAX_DAMPING


@BOTH
def test_damping_adapts_and_is_saved_apart_from_where_it_starts(engine, tmp_path):
    model = trained(engine, damping_rule="adaptive", cg_damping=0.2)
    update = model.last_update
    assert update.cg_damping == 0.2 and update.predicted_kl > 0
    first = next_damping(0.2, update.kl, update.predicted_kl)
    assert model.current_cg_damping == first != 0.2 == model.cg_damping
    fill(model).train()
    assert model.last_update.cg_damping == first
    model.save(tmp_path / "model")
    loaded = TRPO.load(tmp_path / "model")
    assert loaded.current_cg_damping == model.current_cg_damping and loaded.cg_damping == 0.2
    assert TRPO.load(tmp_path / "model", cg_damping=0.3)._damping() == 0.3


@BOTH
def test_a_line_search_that_finds_nothing_is_repeated_with_more_damping(engine):
    options = {"accept_ratio": 1.0, "line_search_max_iter": 2, "target_kl": 0.5, "n_critic_updates": 0}
    fixed, adaptive = (trained(engine, damping_rule=rule, **options) for rule in ("fixed", "adaptive"))
    before = fill(model_of("box", TRPO, engine=engine, **SIZES, **options))
    for model, attempts in ((fixed, 1), (adaptive, 1 + MAX_RETRIES)):
        assert not model.last_update.is_line_search_success
        assert model.last_update.line_search_steps == 2 * attempts
        assert identical(policy_parameters(model), policy_parameters(before))
    assert adaptive.last_update.cg_damping == pytest.approx(0.1 * 4**MAX_RETRIES)
    assert adaptive.current_cg_damping == pytest.approx(0.1 * 4**MAX_RETRIES)
    assert fixed.current_cg_damping is None


@BOTH
def test_a_repeated_attempt_starts_where_the_first_did(engine, monkeypatch):
    """The second direction is that of the old parameters, which the line search has moved in between."""
    directions = []
    original = NaturalGradient.direction

    def spy(self, damping, *args):
        directions.append((damping, original(self, damping, *args).x))
        return original(self, damping, *args)

    monkeypatch.setattr(NaturalGradient, "direction", spy)
    options = {"accept_ratio": 1.0, "line_search_max_iter": 2, "target_kl": 0.5}
    trained(engine, damping_rule="adaptive", **options)
    (damping, repeated), tried = directions[1], len(directions)
    trained(engine, cg_damping=damping, **options)
    expected = directions[tried][1]
    assert distance(repeated, directions[0][1]) > 1e-2
    assert distance(repeated, expected) < 1e-4


def test_an_undone_update_leaves_the_damping_alone(monkeypatch):
    model = trained("auto", damping_rule="adaptive")
    damping = model.current_cg_damping
    fill(model)
    monkeypatch.setattr(model, "_fit_critic", lambda *args: math.nan)  # after the policy's step
    with pytest.warns(RuntimeWarning, match="rolled back"):
        model.train()
    assert model.current_cg_damping == damping


def test_no_damping_cannot_adapt():
    with pytest.raises(InvalidArgument, match=r"cg_damping.*> 0"):
        model_of("box", TRPO, damping_rule="adaptive", cg_damping=0.0)


@pytest.mark.parametrize(
    ("kind", "engine"),
    [("box", "autograd"), ("box", "closed_form"), ("cnn", "auto"), ("dict", "auto"), ("gsde", "auto")],
)
@pytest.mark.parametrize("sub_sampling_factor", [1, 2])
def test_chunks_bound_what_is_evaluated_at_once_and_change_nothing(
    kind, engine, sub_sampling_factor, monkeypatch
):
    options = {"sub_sampling_factor": sub_sampling_factor, "n_steps": 25, "cg_damping": 0.5}
    start = fill(model_of(kind, TRPO, engine=engine, **{**SIZES, **options}))
    whole = trained(engine, kind, **options)
    sizes = []
    for owner, name in product((AutogradEngine, ClosedFormEngine), ("evaluate", "fisher_vector_product")):
        original = getattr(owner, name)

        def spy(self, batch, *args, original=original, **kwargs):
            if args != ({"values"},):  # the critic's minibatches
                sizes.append(len(batch))
            return original(self, batch, *args, **kwargs)

        monkeypatch.setattr(owner, name, spy)
    chunked = trained(engine, kind, max_chunk=20, n_critic_updates=0, **options)
    assert max(sizes) == 20
    olds, wholes, chunks = map(policy_parameters, (start, whole, chunked))
    for old, one, other in zip(olds, wholes, chunks, strict=True):
        assert float((one - other).norm()) <= 2e-4 * float((one - old).norm()) + 1e-9
    assert chunked.last_update.kl == pytest.approx(whole.last_update.kl, rel=1e-3)


def test_a_chunk_as_large_as_the_rollout_is_no_chunk():
    models = [trained("auto", max_chunk=size) for size in (None, 96, 10**9)]
    assert identical(state(models[0]), state(models[1])) and identical(state(models[0]), state(models[2]))


@BOTH
def test_the_critics_gradient_is_clipped(engine):
    model = trained(engine, critic_max_grad_norm=1e-3)
    gradients = [p.grad for p in model.policy.parameters() if p.grad is not None]
    assert th.cat([g.reshape(-1) for g in gradients]).norm().item() == pytest.approx(1e-3, rel=1e-3)


@BOTH
def test_log_std_within_its_bounds_keeps_the_trust_region(engine):
    free, held = (trained(engine, target_kl=0.2, log_std_bounds=b) for b in (None, (-0.01, 0.01)))
    assert free.policy.log_std.abs().max().item() > 0.01
    assert held.policy.log_std.abs().max().item() <= 0.01 + 1e-7
    assert held.last_update.is_line_search_success and 0 < held.last_update.kl <= 0.2


@BOTH
def test_a_step_that_points_out_of_the_bounds_is_taken_within_them(engine):
    model = model_of("box", TRPO, engine=engine, **SIZES, log_std_bounds=(-0.5, 0.0), accept_ratio=0.5)
    for _ in range(4):
        fill(model)
        actions, mean = model.rollout_buffer.actions, distribution(model).loc.reshape(48, 2, -1).numpy()
        # actions far from the mean are the good ones: sigma is to grow, and may not
        model.rollout_buffer.advantages[...] = ((actions - mean) ** 2).sum(-1)
        model.train()
        assert model.last_update.is_line_search_success
        assert 0.003 < model.last_update.kl <= 0.01
        assert model.policy.log_std.max().item() <= 0.0


def test_bounds_are_those_of_the_policy_that_is_loaded(tmp_path):
    model = model_of("box", TRPO)
    with th.no_grad():
        model.policy.log_std.fill_(-3.0)
    model.save(tmp_path / "model")
    assert TRPO.load(tmp_path / "model", log_std_bounds=(-5.0, -1.0)).log_std_bounds == (-5.0, -1.0)
    with pytest.raises(InvalidArgument, match=r"log_std_bounds.*\(-3\)"):
        TRPO.load(tmp_path / "model", log_std_bounds=(-1.0, 1.0))
    exact = model_of("box", TRPO, policy_kwargs={"log_std_init": -2.2}, log_std_bounds=(-2.2, 0.1))
    exact.save(tmp_path / "exact")
    TRPO.load(tmp_path / "exact")
