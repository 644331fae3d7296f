"""The closed-form engine against the reference engine: what it says, its gradients, whole updates."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch as th

from sb3_trust import NPG, PPO, REINFORCE, TRPO, PPOPenalty
from sb3_trust.engines.autograd import AutogradEngine
from sb3_trust.engines.closed_form import CHUNK_SIZE
from sb3_trust.numerics.losses import ClippedSurrogateLoss, PenalizedSurrogateLoss, ValueLoss
from sb3_trust.numerics.objectives import SurrogateObjective
from tests.twins import (
    ACTIVATIONS,
    ARCHITECTURES,
    TERMS,
    distance,
    engines,
    filled,
    in_float64,
    joined,
    pair,
    random_slopes,
    train,
)
from tests.worlds import ACTION_SPACES, PERCEPTRONS, parameters

ROUNDING = 1e-5
# the last chunk is a ragged one
N_STEPS = CHUNK_SIZE // 2 + 44

CASES = {
    **{kind: (kind, {}) for kind in PERCEPTRONS},
    **{name: ("box", {"activation_fn": activation}) for name, activation in ACTIVATIONS.items()},
    **{name: ("box", {"net_arch": architecture}) for name, architecture in ARCHITECTURES.items()},
    **{
        f"{kind}_{architecture}": (kind, {"net_arch": ARCHITECTURES[architecture]})
        for kind in ("discrete", "multi_binary", "discrete_observation")
        for architecture in ("linear_actor", "linear_critic")
    },
    "apart": ("box", {"share_features_extractor": False}),
    "large_sigma": ("box", {"log_std_init": 1.5}),
    "small_sigma": ("matrix_action", {"log_std_init": -2.0}),
}


@cache
def case(name, n_steps=40):
    kind, policy_kwargs = CASES[name]
    return filled(kind, n_steps, **policy_kwargs)


def exact(policy, batch):
    """The reference engine on a float64 copy, and the batch for it."""
    actions = batch.actions.double() if batch.actions.is_floating_point() else batch.actions
    batch = replace(batch, actions=actions, old_distribution=batch.old_distribution.double())
    with th.no_grad():  # the distribution that the policy holds may hang on a graph, which cannot be copied
        policy.get_distribution(batch.observations)
    double = in_float64(policy)
    for extractor in {double.pi_features_extractor, double.vf_features_extractor}:
        extractor.register_forward_pre_hook(lambda _, arguments: tuple(x.double() for x in arguments))
    return AutogradEngine(double), batch


def assert_same_terms(ours, theirs, names=TERMS, bound=ROUNDING):
    for name in names:
        assert distance(getattr(ours, name), getattr(theirs, name)) < bound, name


@pytest.mark.parametrize("name", CASES)
def test_measured_terms_are_those_of_the_reference_and_of_float64(name):
    policy, batch = case(name)
    closed, reference = engines(policy)
    ours = closed.measure(batch, set(TERMS))
    assert_same_terms(ours, reference.measure(batch, set(TERMS)))
    double, double_batch = exact(policy, batch)
    assert_same_terms(ours, double.measure(double_batch, set(TERMS)))
    assert ours.kl.dtype == th.float64 and float(ours.kl.mean()) > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_evaluated_terms_and_their_gradients_are_those_of_the_reference_and_of_float64(name):
    policy, batch = case(name)
    closed, reference = engines(policy)
    double, double_batch = exact(policy, batch)
    evaluations = [
        engine.evaluate(data, set(TERMS))
        for engine, data in ((closed, batch), (reference, batch), (double, double_batch))
    ]
    assert_same_terms(evaluations[0].terms, evaluations[1].terms)
    slopes = random_slopes(len(batch), *TERMS)
    ours, theirs, doubled = (
        evaluation.gradient(slopes, list(engine.policy.parameters()))
        for evaluation, engine in zip(evaluations, (closed, reference, double), strict=True)
    )
    for mine, other, parameter in zip(ours, theirs, policy.parameters(), strict=True):
        assert mine.shape == parameter.shape and mine.dtype == th.float32
        assert distance(mine, other) < 1e-4
    assert distance(joined(ours), joined(theirs)) < ROUNDING
    assert distance(joined(ours), joined(doubled)) < ROUNDING


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("kind", ACTION_SPACES)
def test_gradient_of_each_term_alone(kind, term):
    policy, batch = case(kind)
    everything = list(policy.parameters())
    slopes = random_slopes(len(batch), term)
    needs = {"log_prob", term} if term == "entropy" else {term}
    ours, theirs = (engine.evaluate(batch, needs).gradient(slopes, everything) for engine in engines(policy))
    assert distance(joined(ours), joined(theirs)) < ROUNDING


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("kind", ACTION_SPACES)
def test_a_term_without_a_derivative_has_no_influence(kind, term):
    policy, batch = case(kind)
    everything = list(policy.parameters())
    slopes = random_slopes(len(batch), term)
    ours, theirs = (
        engine.evaluate(batch, set(TERMS)).gradient(slopes, everything) for engine in engines(policy)
    )
    assert distance(joined(ours), joined(theirs)) < ROUNDING


@pytest.mark.parametrize("kind", ACTION_SPACES)
def test_an_evaluation_outlives_others_and_gives_its_gradient_again(kind):
    policy, batch = case(kind)
    closed, _ = engines(policy)
    everything, slopes = list(policy.parameters()), random_slopes(len(batch), *TERMS)
    evaluation = closed.evaluate(batch, set(TERMS))
    kept = [getattr(evaluation.terms, name).clone() for name in TERMS]
    first = evaluation.gradient(slopes, everything)
    other = replace(batch, observations=batch.observations.flip(0))
    closed.measure(other, set(TERMS))
    closed.evaluate(other, set(TERMS)).gradient(slopes, everything)
    for mine, again in zip(first, evaluation.gradient(slopes, everything), strict=True):
        assert th.equal(mine, again)
    assert all(th.equal(getattr(evaluation.terms, n), k) for n, k in zip(TERMS, kept, strict=True))


OBJECTIVES = {
    "clipped": ClippedSurrogateLoss(clip_range=0.1, vf_coef=0.7, ent_coef=0.03),
    "value_clipping": ClippedSurrogateLoss(clip_range_vf=0.1, ent_coef=0.0),
    "penalized": PenalizedSurrogateLoss(kl_coef=1.3, hinge_coef=100.0, vf_coef=0.7, ent_coef=0.03),
    "surrogate": SurrogateObjective(),
    "surrogate_with_entropy": SurrogateObjective(ent_coef=0.1),
    "value": ValueLoss(),
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", [*ACTION_SPACES, "image"])
def test_gradient_of_each_objective(kind, objective):
    policy, batch = case(kind)
    objective = OBJECTIVES[objective]
    gradients = []
    for engine in engines(policy):
        evaluation = engine.evaluate(batch, objective.needs)
        slopes = objective.derivatives(evaluation.terms, batch)
        gradients.append(joined(evaluation.gradient(slopes, list(policy.parameters()))))
    assert distance(*gradients) < ROUNDING


@pytest.mark.parametrize("name", CASES)
def test_fisher_product_is_that_of_the_reference_and_of_float64(name):
    policy, batch = case(name)
    double, double_batch = exact(policy, batch)
    closed, reference = engines(policy)
    products = [engine.fisher_vector_product(batch) for engine in (closed, reference)]
    doubled = double.fisher_vector_product(double_batch)
    size = sum(p.numel() for p in closed.partition(batch).policy)
    for vector in th.randn(3, size):
        ours, theirs = (product(vector) for product in products)
        assert distance(ours, theirs) < ROUNDING
        assert distance(ours, doubled(vector.double())) < ROUNDING


@pytest.mark.parametrize("name", CASES)
def test_distribution_parameters_and_partition_are_those_of_the_reference(name):
    policy, batch = case(name)
    closed, reference = engines(policy)
    ours, theirs = closed.distribution_parameters(batch), reference.distribution_parameters(batch)
    assert distance(ours, theirs) < ROUNDING and ours.dtype == theirs.dtype
    ours, theirs = closed.partition(batch), reference.partition(batch)
    assert list(map(id, ours.policy)) == list(map(id, theirs.policy))
    assert list(map(id, ours.critic_only)) == list(map(id, theirs.critic_only))


@pytest.mark.parametrize("kind", ["box", "multi_discrete", "image"])
def test_a_ragged_last_chunk(kind):
    policy, batch = case(kind, N_STEPS)
    assert len(batch) > CHUNK_SIZE and len(batch) % CHUNK_SIZE
    closed, reference = engines(policy)
    assert_same_terms(closed.measure(batch, set(TERMS)), reference.measure(batch, set(TERMS)))
    slopes, everything = random_slopes(len(batch), *TERMS), list(policy.parameters())
    ours, theirs = (e.evaluate(batch, set(TERMS)) for e in (closed, reference))
    assert_same_terms(ours.terms, theirs.terms)
    assert distance(
        joined(ours.gradient(slopes, everything)), joined(theirs.gradient(slopes, everything))
    ) < (ROUNDING)
    vector = th.randn(sum(p.numel() for p in closed.partition(batch).policy))
    ours, theirs = (e.fisher_vector_product(batch)(vector) for e in (closed, reference))
    assert distance(ours, theirs) < ROUNDING


def optimizer_state(model):
    state = model.policy.optimizer.state
    return [state[p] for p in model.policy.parameters() if p in state]


def assert_same_update(closed, reference, bound):
    before = parameters(closed)
    assert th.equal(before, parameters(reference))
    train(closed, reference)
    moved = float((parameters(reference) - before).norm())
    assert moved > 0.01
    assert float((parameters(closed) - parameters(reference)).norm()) < bound * moved
    ours, theirs = optimizer_state(closed), optimizer_state(reference)
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert list(mine) == list(other) == ["step", "exp_avg", "exp_avg_sq"]
        assert th.equal(mine["step"], other["step"]) and mine["step"].dtype == other["step"].dtype
        for name in ("exp_avg", "exp_avg_sq"):
            assert mine[name].is_contiguous() and mine[name].dtype == other[name].dtype
            assert distance(mine[name], other[name]) < 100 * bound
    ours, theirs = closed.last_update, reference.last_update
    for name, value in vars(theirs).items():
        if isinstance(value, float) and name != "cg_residual":  # which is as small as rounding lets it be
            assert getattr(ours, name) == pytest.approx(value, rel=1e-2, abs=1e-5, nan_ok=True), name


UPDATES = {
    **{kind: (kind, {}) for kind in PERCEPTRONS},
    **{name: ("box", {"policy_kwargs": {"activation_fn": fn}}) for name, fn in ACTIVATIONS.items()},
    **{name: ("discrete", {"policy_kwargs": {"net_arch": arch}}) for name, arch in ARCHITECTURES.items()},
    "entropy": ("multi_discrete", {"ent_coef": 0.05}),
    "decay": ("box", {"policy_kwargs": {"optimizer_kwargs": {"weight_decay": 0.01, "betas": (0.8, 0.99)}}}),
}


@pytest.mark.parametrize("name", UPDATES)
def test_ppo_update_is_that_of_the_reference(name):
    kind, kwargs = UPDATES[name]
    # the last minibatch is a ragged one
    closed, reference = pair(kind, PPO, n_steps=45, batch_size=32, n_epochs=4, learning_rate=1e-3, **kwargs)
    assert_same_update(closed, reference, 1e-5)


@pytest.mark.parametrize("name", UPDATES)
def test_ppo_penalty_update_is_that_of_the_reference(name):
    kind, kwargs = UPDATES[name]
    closed, reference = pair(
        kind, PPOPenalty, n_steps=45, batch_size=32, n_epochs=4, learning_rate=1e-3, **kwargs
    )
    assert_same_update(closed, reference, 1e-5)


# conjugate gradients amplify rounding where the damped Fisher matrix is ill-conditioned: the differences are
# 1e-5 on binary observations, and at most 6e-6 elsewhere; unscaled pixels need a damping of their own size
TRPO_BOUNDS = {"multi_binary_observation": 5e-5}
TRPO_KWARGS = {"unscaled_image": {"cg_damping": 100.0}}


@pytest.mark.parametrize("algorithm", [NPG, TRPO])
@pytest.mark.parametrize("name", UPDATES)
def test_natural_gradient_update_is_that_of_the_reference(name, algorithm):
    kind, kwargs = UPDATES[name]
    kwargs = {**kwargs, **TRPO_KWARGS.get(name, {})}
    closed, reference = pair(kind, algorithm, n_steps=45, batch_size=32, **kwargs)
    assert_same_update(closed, reference, TRPO_BOUNDS.get(name, 1e-5))
    assert reference.last_update.kl > 0
    assert algorithm is NPG or reference.last_update.is_line_search_success


@pytest.mark.parametrize("name", UPDATES)
def test_reinforce_update_is_that_of_the_reference(name):
    kind, kwargs = UPDATES[name]
    closed, reference = pair(
        kind, REINFORCE, n_steps=45, batch_size=32, n_gradient_steps=3, max_grad_norm=0.5,
        critic_learning_rate=3e-3, **kwargs,
    )  # fmt: skip
    assert_same_update(closed, reference, 1e-5)
    assert reference.last_update.kl > 0


def test_updates_draw_the_same_random_numbers():
    closed, reference = pair("box", TRPO, n_steps=45, batch_size=32, sub_sampling_factor=2)
    states = []
    for model in (closed, reference):
        th.manual_seed(5)
        train(model)
        states.append((np.random.get_state()[1].copy(), th.get_rng_state()))
    np.testing.assert_array_equal(states[0][0], states[1][0])
    assert th.equal(states[0][1], states[1][1])
