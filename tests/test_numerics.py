import math

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_trust import InvalidArgument
from sb3_trust.numerics.conjugate_gradient import conjugate_gradient
from sb3_trust.numerics.kl_coefficient import PRESETS, next_coefficient, preset
from sb3_trust.numerics.line_search import Trial, backtracking_line_search
from sb3_trust.numerics.schedules import check_target, value_at


def spd(n: int, seed: int) -> th.Tensor:
    root = th.from_numpy(np.random.default_rng(seed).normal(size=(n, n)))
    return root @ root.T + 0.1 * th.eye(n, dtype=th.float64)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 12), seed=st.integers(0, 1000))
def test_conjugate_gradient_agrees_with_a_dense_solve(n, seed):
    a, b = spd(n, seed), th.from_numpy(np.random.default_rng(seed + 1).normal(size=n))
    result = conjugate_gradient(lambda v: a @ v, b, max_steps=10 * n, tolerance=1e-12)
    assert th.allclose(result.x, th.linalg.solve(a, b), rtol=1e-7, atol=1e-9)
    assert result.stopped_by == "tolerance"
    assert result.relative_residual <= 1e-12


def test_relative_residual_is_the_true_one_and_does_not_depend_on_the_scale():
    a, b = spd(20, 0), th.ones(20, dtype=th.float64)
    for scale in (1.0, 1e-9, 1e9):
        result = conjugate_gradient(lambda v: a @ v, scale * b, max_steps=6)
        true = (scale * b - a @ result.x).norm() / (scale * b).norm()
        assert result.relative_residual == pytest.approx(float(true), rel=1e-6)
        assert (result.iterations, result.stopped_by) == (6, "max_steps")
    loose = conjugate_gradient(lambda v: a @ v, 1e-9 * b, max_steps=100, tolerance=0.3)
    assert loose.stopped_by == "tolerance" and loose.iterations < 20


def test_every_iterate_is_an_ascent_direction():
    a, b = spd(30, 1), th.from_numpy(np.random.default_rng(2).normal(size=30))
    for steps in range(1, 30):
        assert float(conjugate_gradient(lambda v: a @ v, b, steps).x @ b) > 0


@pytest.mark.parametrize(
    ("matrix", "stopped_by", "moved"),
    [
        (th.zeros(3, 3), "curvature", False),
        (-th.eye(3), "curvature", False),
        (th.full((3, 3), th.nan), "non_finite", False),
        (th.diag(th.tensor([5.0, 1.0, -0.1])), "curvature", True),
    ],
)
def test_bad_curvature_ends_with_the_last_good_iterate(matrix, stopped_by, moved):
    result = conjugate_gradient(lambda v: matrix @ v, th.tensor([1.0, 1.0, 0.3]), 10)
    assert result.stopped_by == stopped_by
    assert bool(result.x.any()) == moved
    assert bool(th.isfinite(result.x).all())


def test_zero_right_hand_side_costs_nothing():
    result = conjugate_gradient(lambda v: 1 / 0, th.zeros(4), 10)  # type: ignore[arg-type, return-value]
    assert (result.iterations, result.stopped_by) == (0, "zero")
    assert not bool(result.x.any())


def search(evaluate, **kwargs):
    arguments = {"expected_improvement": 1.0, "limit": 1.0, "accept_ratio": 0.1} | kwargs
    return backtracking_line_search(evaluate, shrinking_factor=0.5, max_steps=5, **arguments)


def test_line_search_takes_the_first_point_that_satisfies_both_conditions():
    # constraint holds from 1/4, improvement everywhere
    result = search(lambda f: Trial(improvement=f, constraint=16 * f**2))
    assert (result.fraction, len(result.trials)) == (0.25, 3)
    assert result.trials[-1] == Trial(0.25, 1.0)  # the bound itself is allowed


def test_accept_ratio_asks_for_a_share_of_the_expected_improvement_of_the_fraction():
    def poor(fraction):
        return Trial(0.05 * fraction, 0.0)

    assert not search(poor).accepted
    assert search(poor, accept_ratio=0.05).fraction == 1.0
    assert search(poor, accept_ratio=0.0).fraction == 1.0
    assert not search(lambda f: Trial(0.0, 0.0), accept_ratio=0.0).accepted  # no improvement is none


@pytest.mark.parametrize(
    "bad", [Trial(math.nan, 0.0), Trial(1.0, math.nan), Trial(1.0, math.inf), Trial(-1.0, 0.0)]
)
def test_line_search_refuses_what_is_no_improvement_or_no_number(bad):
    result = search(lambda f: bad)
    assert (result.fraction, len(result.trials), result.accepted) == (0.0, 5, False)


@pytest.mark.parametrize(
    ("rule", "measured", "factor"),
    [
        ("paper", 1.51, 2.0),
        ("paper", 1.49, 1.0),
        ("paper", 0.67, 1.0),
        ("paper", 0.66, 0.5),
        ("modular_rl", 1.31, 1.5),
        ("modular_rl", 1.29, 1.0),
        ("modular_rl", 0.71, 1.0),
        ("modular_rl", 0.69, 1 / 1.5),
        ("fixed", 100.0, 1.0),
        ({"high": 3.0, "increase": 7.0}, 3.1, 7.0),
        ({"high": 3.0, "increase": 7.0}, 2.9, 1.0),
    ],
)
def test_rules_move_the_coefficient_by_their_numbers(rule, measured, factor):
    target = 0.02
    assert next_coefficient(preset(rule).rule, 0.8, measured * target, target, 2048) == pytest.approx(
        0.8 * factor
    )


def test_proportional_rule_is_clipped_and_scaled_by_the_samples():
    rule = PRESETS["proportional"].rule
    assert next_coefficient(rule, 1.0, 0.011, 0.01, 2000) == pytest.approx(1 + 0.1 * 0.2)
    assert next_coefficient(rule, 1.0, 5.0, 0.01, 2000) == pytest.approx(1 + 0.2 * 0.2)
    assert next_coefficient(rule, 1.0, 0.0, 0.01, 10**6) == pytest.approx(0.8)  # never to zero in one update


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "fixed"])
def test_coefficient_stays_within_its_bounds_and_ignores_what_is_no_number(name):
    rule = PRESETS[name].rule
    high = low = 1.0
    for _ in range(500):
        high = next_coefficient(rule, high, 1e9, 0.01, 10_000)
        low = next_coefficient(rule, low, 0.0, 0.01, 10_000)
    assert (low, high) == (1e-4, 1e4)
    for bad in (math.nan, math.inf):
        assert next_coefficient(rule, 3.0, bad, 0.01, 10_000) == 3.0


def test_only_modular_rl_has_a_hinge():
    assert {name: p.hinge_coef for name, p in PRESETS.items() if p.hinge_coef} == {"modular_rl": 1000.0}


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("papier", "kl_rule"),
        ({"hihg": 2.0}, "hihg"),
        ({"high": 0.9}, "high"),
        ({"low": 1.1}, "low"),
        ({"increase": 1.0}, "increase"),
        ({"decrease": 1.0}, "decrease"),
        ({"min": 2.0, "max": 1.0}, "max"),
        ({"max": math.inf}, "max"),
        (3, "kl_rule"),
    ],
)
def test_bad_rules_are_refused_by_name(rule, names):
    with pytest.raises(InvalidArgument, match=names):
        preset(rule)


def test_schedules_of_a_target():
    assert value_at("target_kl", 0.3, 0.5) == 0.3
    assert value_at("target_kl", "lin_0.02", 0.25) == pytest.approx(0.005)
    assert value_at("target_kl", lambda p: 0.1 * p, 0.5) == pytest.approx(0.05)
    assert value_at("target_kl", "lin_0.02", 0.0) == 0.0
    for bad in (math.nan, -1.0, math.inf):
        with pytest.raises(ValueError, match="target_kl"):
            value_at("target_kl", lambda p, bad=bad: bad, 0.5)


@pytest.mark.parametrize(
    "bad", ["lin_", "lin_x", "lin_-1", "lin_0", "cos_0.1", "0.1", "", 0.0, -0.1, math.nan, None, True]
)
def test_bad_targets_are_refused(bad):
    with pytest.raises(InvalidArgument, match="target_kl"):
        check_target("target_kl", bad)
