"""Whatever is passed to a constructor: a model that works, or `InvalidArgument`."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.logger import Logger

from sb3_trust import NPG, PPO, REINFORCE, TRPO, InvalidArgument, PPOPenalty
from sb3_trust.engines.base import ENGINES
from sb3_trust.numerics.objectives import Differentiated
from tests.worlds import ACTION_SPACES, state, world

ALGORITHMS = [REINFORCE, NPG, TRPO, PPO, PPOPenalty]

# SB3 itself takes these and says in its own words what is wrong with them; the last one asks for no model
NOT_FUZZED = {
    "policy", "env", "verbose", "device", "policy_kwargs", "tensorboard_log", "rollout_buffer_class",
    "rollout_buffer_kwargs", "_init_setup_model",
}  # fmt: skip
# any huge value of these is valid, and takes as long or as much memory as it says
COSTLY = {
    "n_steps",
    "n_epochs",
    "n_gradient_steps",
    "n_critic_updates",
    "cg_max_steps",
    "line_search_max_iter",
}


def half(progress: float) -> float:
    """A schedule."""
    return 0.001 + 0.01 * progress


def clipped_ratio(terms: Any, data: Any) -> th.Tensor:
    """A policy loss of the user's own."""
    return -(data.advantages * (terms.log_prob - data.old_log_prob).exp().clamp(max=1.2)).mean(-1)


RUBBISH: list[Any] = [
    None, "", "0.1", "fast", "lin_", "lin_nan", "lin_inf", "lin_-1", b"1", [], [0.1], (), {}, {"high": 2.0},
    True, False, math.nan, math.inf, -math.inf, -1, -1e-3, -0.0, 0, 0.5, 1, 1.5, 2.0, 1e308, 5e-324,
    Fraction(1, 2), 1j, np.float32("nan"), np.float64("inf"), np.bool_(True), np.array(0.5),
    np.array([0.1, 0.2]), th.tensor(0.5), object(), float, Differentiated,
]  # fmt: skip
HUGE: list[Any] = [10**9, np.int64(2**62), 2**32, 2**63, 10**30, -(10**30), 10**400]


def numbers(low: float, high: float, *more: Any) -> st.SearchStrategy:
    """Numbers of all kinds within bounds, and what else is good."""
    plain = st.floats(low, high)
    kinds = [plain, plain.map(np.float64), st.sampled_from([low, high, np.float32(high), *more])]
    return st.one_of(kinds)


def integers(low: int, high: int) -> st.SearchStrategy:
    """Integers of all kinds within bounds."""
    plain = st.integers(low, high)
    return st.one_of(plain, plain.map(np.int64), plain.map(np.int32))


def optional(strategy: st.SearchStrategy) -> st.SearchStrategy:
    """Or ``None``."""
    return st.none() | strategy


RATES = (half, "lin_3e-4", 1e-3)
BOUNDS = [(-5.0, 2.0), [-20, 2], (0.0, 1), (np.float32(-1.0), np.float64(0.5)), (-1e30, 1e30), (0.0, 0.0)]
RULES = ["paper", "modular_rl", "proportional", "fixed", {}, {"high": 2.0, "low": 0.5}, {"increase": 3},
         {"min": 1e-3, "max": 10.0}]  # fmt: skip
BAD_RULES = [{"high": "x"}, {"high": math.nan}, {"low": None}, {1: 2}, {"min": -1.0}, {"increase": 0.5},
             {"max": 0.0}, {"decrease": math.inf}, {"hgih": 2}, {"high": [2]}, {"max": 10**400}]  # fmt: skip
BAD_BOUNDS = [(1.0,), (2.0, -5.0), ("a", "b"), (None, 2.0), (math.nan, 1.0), (-math.inf, 1.0), (-5, 2, 3),
              np.array([-5.0, 2.0]), {-5.0, 2.0}, (-(10**400), 2.0), ((-5.0,), 2.0)]  # fmt: skip

# what may well work, alone or with others
GOOD: dict[str, st.SearchStrategy] = {
    "learning_rate": numbers(0.0, 0.1, half),
    "n_steps": integers(1, 12),
    "batch_size": integers(1, 40),
    "gamma": numbers(0.0, 1.0),
    "gae_lambda": numbers(0.0, 1.0),
    "ent_coef": numbers(0.0, 0.1),
    "normalize_advantage": st.booleans(),
    "use_sde": st.booleans(),
    "sde_sample_freq": integers(-1, 5),
    "stats_window_size": integers(1, 100),
    "seed": optional(integers(0, 2**31 - 1)),
    "critic_learning_rate": optional(numbers(1e-6, 0.1, *RATES)),
    "log_std_bounds": optional(st.sampled_from(BOUNDS)),
    "engine": st.sampled_from(ENGINES),
    "n_epochs": integers(1, 3),
    "vf_coef": numbers(0.0, 10.0),
    "max_grad_norm": numbers(1e-3, 10.0, math.inf),
    "max_kl": optional(numbers(1e-6, 1.0)),
    "recompute_advantages": st.booleans(),
    "clip_range": numbers(0.01, 10.0, half, math.inf),
    "clip_range_vf": optional(numbers(0.01, 10.0, half, math.inf)),
    "value_clip": st.sampled_from(["sb3", "max"]),
    "dual_clip": optional(numbers(1.01, 10.0)),
    "kl_stop": st.sampled_from(["approx", "exact"]),
    "learning_rate_kl_target": optional(numbers(1e-4, 0.1)),
    "learning_rate_kl_interval": st.sampled_from(["rollout", "epoch"]),
    "objective": optional(st.just(Differentiated(clipped_ratio))),
    "target_kl": numbers(1e-5, 0.3, half, "lin_0.02"),
    "init_kl_coef": numbers(0.01, 10.0),
    "kl_rule": st.sampled_from(RULES),
    "hinge_coef": optional(numbers(0.0, 2000.0)),
    "cg_max_steps": integers(1, 20),
    "cg_damping": numbers(0.0, 1.0),
    "cg_tolerance": numbers(0.0, 1.0),
    "line_search_shrinking_factor": numbers(0.1, 0.99),
    "line_search_max_iter": integers(1, 12),
    "n_critic_updates": integers(0, 3),
    "sub_sampling_factor": integers(1, 30),
    "accept_ratio": numbers(0.0, 1.0),
    "damping_rule": st.sampled_from(["fixed", "adaptive"]),
    "kl_statistic": st.sampled_from(["mean", "max"]),
    "max_chunk": optional(integers(1, 30)),
    "action_net_gain": optional(numbers(1e-3, 10.0)),
    "n_gradient_steps": integers(1, 3),
    "step_size": optional(numbers(1e-4, 1.0)),
    "critic_max_grad_norm": numbers(1e-3, 10.0, math.inf),
}
OWN_RUBBISH = {"kl_rule": BAD_RULES, "log_std_bounds": BAD_BOUNDS}


def fuzzed(algorithm: Any) -> list[str]:
    """The arguments to draw."""
    return [name for name in inspect.signature(algorithm).parameters if name not in NOT_FUZZED]


def wild(name: str) -> st.SearchStrategy:
    """Any value for an argument."""
    rubbish = RUBBISH + OWN_RUBBISH.get(name, []) + ([] if name in COSTLY else HUGE)
    return GOOD[name] | st.sampled_from(rubbish)


@st.composite
def arguments(draw: Any, algorithm: Any) -> dict[str, Any]:
    """Several arguments at once: all of them good alone, or a few that may be anything."""
    names = fuzzed(algorithm)
    if draw(st.booleans()):
        chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=12))
        return {name: draw(GOOD[name]) for name in chosen}
    chosen = draw(st.lists(st.sampled_from(names), unique=True, min_size=1, max_size=3))
    return {name: draw(wild(name)) for name in chosen}


def attempt(algorithm: Any, given: dict[str, Any], space: str, n_envs: int) -> str:
    """Make a model and have it learn; anything but `InvalidArgument` at construction is an error."""
    if given.get("use_sde", False) is not False:
        space = "box"  # noise that depends on the state has no other
    settings = {"n_steps": 8, "batch_size": 4, **given}
    if algorithm in (PPO, PPOPenalty):
        settings.setdefault("n_epochs", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = algorithm(
                "MlpPolicy",
                world(ACTION_SPACES[space], n_envs=n_envs),
                policy_kwargs={"net_arch": [4]},
                device="cpu",
                **settings,
            )
        except InvalidArgument as error:
            assert "must be" in str(error), error
            return "refused"
        model.set_logger(Logger(folder=None, output_formats=[]))
        model.learn(2 * model.n_steps * n_envs, log_interval=None)
    assert all(bool(th.isfinite(tensor).all()) for tensor in state(model))
    assert model.last_update is not None
    return "works"


def fuzz(algorithm: Any, examples: int, derandomize: bool) -> None:
    """Draw so many sets of arguments; a good part of them must work, another be refused."""
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=derandomize,
        suppress_health_check=list(HealthCheck),
    )
    @given(arguments(algorithm), st.sampled_from(["box", "discrete"]), st.integers(1, 2))
    def trial(given: dict[str, Any], space: str, n_envs: int) -> None:
        outcome = attempt(algorithm, given, space, n_envs)
        event(outcome)
        outcomes[outcome] += 1

    trial()
    assert min(outcomes["works"], outcomes["refused"]) > examples // 10, outcomes


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_arguments_make_a_working_model_or_are_refused(algorithm):
    fuzz(algorithm, 150, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_thousand_draws_of_arguments_make_a_working_model_or_are_refused(algorithm):
    fuzz(algorithm, 1000, derandomize=False)


# values that a check let through to an error of another kind
ONCE_MISTAKEN: list[tuple[Any, str, Any]] = [
    *((PPO, name, 10**400) for name in ("gamma", "learning_rate", "max_kl", "dual_clip")),
    *((PPO, name, 10**30) for name in ("vf_coef", "ent_coef", "dual_clip")),
    *((PPO, name, Fraction(1, 2)) for name in ("vf_coef", "ent_coef")),
    *((PPO, name, np.float64(0.5)) for name in ("vf_coef", "ent_coef")),
    *((PPO, name, Fraction(1, 2)) for name in ("learning_rate", "clip_range", "clip_range_vf")),
    *((PPO, name, np.float32(0.5)) for name in ("learning_rate", "clip_range", "clip_range_vf")),
    *((PPO, name, Differentiated) for name in ("learning_rate", "clip_range", "objective")),
    (PPO, "critic_learning_rate", Differentiated),
    *((PPO, "seed", value) for value in (2**32, np.int64(2), np.int32(2))),
    *((PPO, "stats_window_size", value) for value in (2**63, np.int64(8))),
    (PPO, "use_sde", np.array([0.1, 0.2])),
    (PPO, "clip_range_vf", 1e308),
    (PPO, "log_std_bounds", (-(10**400), 2.0)),
    (TRPO, "batch_size", 2**63),
    (TRPO, "batch_size", np.int64(2**62)),
    (TRPO, "ent_coef", 1e308),
    (TRPO, "cg_damping", 10**30),
    (TRPO, "cg_damping", Fraction(1, 2)),
    (TRPO, "target_kl", Differentiated),
    (PPOPenalty, "init_kl_coef", Fraction(1, 2)),
    (PPOPenalty, "hinge_coef", Fraction(1, 2)),
    (PPOPenalty, "hinge_coef", 10**30),
]  # fmt: skip


@pytest.mark.parametrize("engine", ["autograd", "closed_form"])
@pytest.mark.parametrize(
    ("algorithm", "name", "value"),
    ONCE_MISTAKEN,
    ids=[f"{algorithm.__name__}-{name}-{value!r:.20}" for algorithm, name, value in ONCE_MISTAKEN],
)
def test_values_that_were_once_mistaken(algorithm, name, value, engine):
    attempt(algorithm, {name: value, "engine": engine}, "box", 2)


def test_every_argument_is_drawn():
    """An argument that is added without a strategy shows here."""
    names = {name for algorithm in ALGORITHMS for name in fuzzed(algorithm)}
    assert names == set(GOOD) and names >= COSTLY


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_fuzzed_training_moves_the_policy(algorithm):
    """What counts as working is not merely a constructor that returns."""
    assert attempt(algorithm, {}, "box", 2) == "works"
    assert attempt(algorithm, {"gamma": 1.5}, "box", 2) == "refused"
    with pytest.raises(TypeError, match="gama"):
        attempt(algorithm, {"gama": 0.9}, "box", 2)
