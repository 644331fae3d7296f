"""REINFORCE and NPG, and what TRPO has in common with NPG."""

import inspect
import math

import pytest
import torch as th
from stable_baselines3 import A2C

from sb3_trust import NPG, PPO, REINFORCE, TRPO, InvalidArgument, PPOPenalty
from sb3_trust.engines.autograd import AutogradEngine
from sb3_trust.engines.vectors import assign, flatten
from sb3_trust.numerics.objectives import SurrogateObjective, normalize_advantages
from tests.twins import explicit_fisher, in_float64
from tests.worlds import KINDS, PERCEPTRONS, fill, identical, model_of, state

ENGINES = ["autograd", "closed_form"]


def policy_parameters(model):
    return model._policy_engine().partition(model._make_batch()).policy


def vector(parameters):
    return flatten(p.detach() for p in parameters).double().clone()


def policy_gradient(model, ent_coef=0.0):
    """Of mean(log pi(a|s) A) + ent_coef mean(H), by autograd through the policy's own modules."""
    batch = model._make_batch()
    advantages = normalize_advantages(batch.advantages)
    _, log_prob, entropy = model.policy.evaluate_actions(batch.observations, batch.actions)
    objective = (log_prob * advantages).mean()
    if ent_coef:
        objective = objective + ent_coef * entropy.mean()
    gradients = th.autograd.grad(objective, policy_parameters(model))
    return flatten(gradients).double()


# ---- REINFORCE ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["discrete", "box", "multi_discrete", "multi_binary", "gsde", "cnn", "dict"])
@pytest.mark.parametrize("ent_coef", [0.0, 0.1])
def test_reinforce_follows_the_policy_gradient(kind, ent_coef):
    """With plain gradient descent a step is the gradient itself."""
    kwargs = {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {}}
    model = fill(model_of(kind, REINFORCE, ent_coef=ent_coef, learning_rate=0.1, n_critic_updates=0,
                          policy_kwargs=kwargs))  # fmt: skip
    expected = policy_gradient(model, ent_coef)
    before = vector(policy_parameters(model))
    model.train()
    moved = (vector(policy_parameters(model)) - before) / 0.1
    assert (moved - expected).norm() <= 1e-4 * expected.norm()
    assert model.last_update.gradient_norm == pytest.approx(expected.norm().item(), rel=1e-4)
    assert model.last_update.kl > 0


def test_more_gradient_steps_use_the_ratio_to_the_old_policy():
    """Two steps of plain gradient ascent, the second one on the ratio-weighted surrogate."""
    kwargs = {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {}}
    model = fill(model_of("box", REINFORCE, n_gradient_steps=2, learning_rate=0.05, n_critic_updates=0,
                          policy_kwargs=kwargs))  # fmt: skip
    batch = model._make_batch()
    advantages, parameters = normalize_advantages(batch.advantages), policy_parameters(model)
    origin = [p.detach().clone() for p in parameters]
    for _ in range(2):
        _, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
        surrogate = ((log_prob - batch.old_log_prob).exp() * advantages).mean()
        with th.no_grad():
            for p, g in zip(parameters, th.autograd.grad(surrogate, parameters), strict=True):
                p += 0.05 * g
    expected = vector(parameters)
    with th.no_grad():
        for p, old in zip(parameters, origin, strict=True):
            p.copy_(old)
    model.train()
    moved = expected - flatten(origin)
    assert (vector(parameters) - expected).norm() <= 1e-5 * moved.norm()


def test_nothing_guards_many_gradient_steps():
    """What TRPO and PPO were invented to guard."""

    def kl(**kwargs):
        model = fill(model_of("discrete", REINFORCE, learning_rate=0.03, **kwargs))
        model.train()
        return model.last_update.kl

    assert kl(n_gradient_steps=30) > 10 * kl(n_gradient_steps=1)


def test_reinforce_clips_the_policys_gradient_alone():
    kwargs = {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {}}
    model = fill(model_of("box", REINFORCE, max_grad_norm=1e-3, learning_rate=1.0, batch_size=128,
                          n_critic_updates=1, policy_kwargs=kwargs))  # fmt: skip
    critic = model._policy_engine().partition(model._make_batch()).critic_only
    parameters = policy_parameters(model)
    before, of_critic = vector(parameters), vector(critic)
    model.train()
    assert (vector(parameters) - before).norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert (vector(critic) - of_critic).norm() > 1e-2


# ---- NPG ------------------------------------------------------------------------------------------------


def fisher_matrix(model):
    """The explicit matrix in float64."""
    batch = model._make_batch()
    double = AutogradEngine(in_float64(model.policy))
    return explicit_fisher(double.policy, double.family, batch.observations, double.partition(batch).policy)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["discrete", "box"])
@pytest.mark.parametrize("step_size", [None, 0.05])
def test_npg_takes_the_step_of_the_dense_solve(kind, engine, step_size):
    kwargs = {"policy_kwargs": {"net_arch": {"pi": [5], "vf": [5]}}}
    model = fill(model_of(kind, NPG, engine=engine, cg_max_steps=300, cg_tolerance=0.0, cg_damping=0.1,
                          target_kl=0.01, step_size=step_size, n_critic_updates=0, **kwargs))  # fmt: skip
    matrix = fisher_matrix(model)
    gradient = policy_gradient(model)
    x = th.linalg.solve(matrix + 0.1 * th.eye(len(matrix), dtype=th.float64), gradient)
    curvature = x @ matrix @ x
    beta = math.sqrt(2 * 0.01 / curvature) if step_size is None else step_size
    before = vector(policy_parameters(model))
    model.train()
    moved = vector(policy_parameters(model)) - before
    assert (moved - beta * x).norm() <= 2e-3 * (beta * x).norm()
    update = model.last_update
    assert update.step_norm == pytest.approx((beta * x).norm().item(), rel=2e-3)
    assert update.predicted_kl == pytest.approx(0.5 * beta**2 * curvature.item(), rel=5e-3)
    assert math.isnan(update.target_kl) == (step_size is not None)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", PERCEPTRONS)
def test_trpo_goes_in_the_direction_of_npg(kind, engine):
    steps = []
    for algorithm in (NPG, TRPO):
        model = fill(model_of(kind, algorithm, engine=engine, target_kl=0.005, n_critic_updates=0))
        before = vector(policy_parameters(model))
        model.train()
        steps.append(vector(policy_parameters(model)) - before)
        assert model.last_update.kl > 0
    npg, trpo = steps
    fraction = model.last_update.step_fraction
    # weights are float32: what is left of a short step is rounded
    assert (trpo - fraction * npg).norm() <= 1e-4 * npg.norm()


def test_npg_may_overstep_what_trpo_would_refuse():
    """The same step; the line search is all the difference."""

    def moved(algorithm):
        model = fill(model_of("discrete", algorithm, target_kl=2.0, cg_damping=1e-4, n_critic_updates=0))
        model.train()
        return model.last_update.kl

    assert moved(TRPO) <= 2.0 < moved(NPG)


@pytest.mark.parametrize("algorithm", [NPG, TRPO])
def test_a_target_that_has_come_to_zero_leaves_the_policy_alone(algorithm):
    model = fill(model_of("box", algorithm, target_kl="lin_0.01"))
    before = vector(policy_parameters(model))
    model._current_progress_remaining = 0.0
    model.train()
    assert th.equal(vector(policy_parameters(model)), before) and model.last_update.kl < 1e-12
    assert model.last_update.value_loss > 0


@pytest.mark.parametrize("algorithm", [NPG, TRPO])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_predicted_kl_is_that_of_the_step_within_bounds(algorithm, engine):
    bounds = {"log_std_bounds": (-0.01, 0.01), "target_kl": 0.5}
    model = fill(model_of("box", algorithm, engine=engine, n_critic_updates=0, **bounds))
    before, parameters = vector(policy_parameters(model)), policy_parameters(model)
    model.train()
    step = vector(parameters) - before
    update = model.last_update
    assign(parameters, before)
    product = model._policy_engine().fisher_vector_product(model._make_batch())(step.float()).double()
    assert update.step_norm == pytest.approx(step.norm().item(), rel=1e-5) and update.step_norm > 0
    assert update.predicted_kl == pytest.approx(0.5 * (step @ product).item(), rel=1e-4)
    unbounded = 0.5 * (getattr(update, "step_fraction", 1.0) ** 2)
    assert update.predicted_kl < 0.99 * unbounded


def test_npg_keeps_log_std_within_its_bounds():
    model = fill(model_of("box", NPG, target_kl=0.5, log_std_bounds=(-0.01, 0.01), n_critic_updates=0))
    for _ in range(5):
        model.train()
        fill(model)
    log_std = model.policy.log_std
    assert bool((log_std.abs() <= 0.01 + 1e-8).all()) and bool((log_std.abs() > 0.009).any())


def test_the_arguments_of_npg_are_those_of_trpo_less_the_line_search():
    npg, trpo = (inspect.signature(kind).parameters for kind in (NPG, TRPO))
    assert set(npg) - set(trpo) == {"step_size"}
    assert set(trpo) - set(npg) == {
        "line_search_shrinking_factor", "line_search_max_iter", "accept_ratio", "damping_rule",
        "kl_statistic",
    }  # fmt: skip
    common = [name for name in npg if name in trpo]
    assert common == [name for name in trpo if name in npg]
    assert all(npg[name].default == trpo[name].default for name in common)


# ---- both -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [REINFORCE, NPG])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_policy_learns_and_is_measured(algorithm, kind):
    model = fill(model_of(kind, algorithm))
    before = [tensor.clone() for tensor in state(model)]
    batch = model._make_batch()
    surrogate = SurrogateObjective()
    model.policy.set_training_mode(False)
    start = surrogate(model._policy_engine().measure(batch, surrogate.needs), batch).value
    model.train()
    assert not identical(before, state(model))
    terms = model._policy_engine().measure(batch, {"kl", "log_prob"})
    assert model.last_update.kl == pytest.approx(terms.kl.mean().item(), rel=1e-6) and terms.kl.mean() > 0
    assert surrogate(terms, batch).value > start


@pytest.mark.parametrize(
    ("algorithm", "name", "value"),
    [
        (REINFORCE, "n_gradient_steps", 0),
        (REINFORCE, "max_grad_norm", 0.0),
        (REINFORCE, "n_critic_updates", -1),
        (NPG, "step_size", 0.0),
        (NPG, "step_size", math.nan),
        (NPG, "target_kl", "lin_"),
        (NPG, "cg_max_steps", 0),
        (NPG, "action_net_gain", 0.0),
    ],
)
def test_bad_arguments_are_refused_by_name(algorithm, name, value):
    with pytest.raises(InvalidArgument, match=f"`{name}`"):
        algorithm("MlpPolicy", "CartPole-v1", **{name: value})


@pytest.mark.parametrize("algorithm", [REINFORCE, NPG, TRPO, PPO, PPOPenalty])
def test_models_of_another_algorithm_are_refused(algorithm, tmp_path):
    algorithm("MlpPolicy", "CartPole-v1").save(tmp_path / "model")
    for other in {REINFORCE, NPG, TRPO, PPO, PPOPenalty} - {algorithm}:
        if (algorithm, other) == (PPO, PPOPenalty):
            continue  # converted, with a warning
        with pytest.raises(
            InvalidArgument, match=f"{other.__name__}, but it holds one for {algorithm.__name__}"
        ):
            other.load(tmp_path / "model")


@pytest.mark.parametrize("algorithm", [REINFORCE, NPG])
def test_models_that_are_not_ours_are_refused(algorithm, tmp_path):
    A2C("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "model")
    with pytest.raises(InvalidArgument, match="neither SB3 nor sb3-contrib has"):
        algorithm.load(tmp_path / "model")


# ---- the policy's last layer ----------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [REINFORCE, NPG, TRPO, PPO, PPOPenalty])
@pytest.mark.parametrize("kind", ["discrete", "box", "cnn"])
def test_the_last_layer_has_the_gain_that_is_asked_for(algorithm, kind):
    plain, scaled = model_of(kind, algorithm), model_of(kind, algorithm, action_net_gain=0.5)
    for model, gain in ((plain, 0.01), (scaled, 0.5)):
        weight = model.policy.action_net.weight.detach()
        values = th.linalg.svdvals(weight)
        th.testing.assert_close(values, th.full_like(values, gain), rtol=1e-4, atol=0.0)
        assert not model.policy.action_net.bias.any()
    others = [n for n, _ in plain.policy.named_parameters() if not n.startswith("action_net")]
    first, second = (dict(model.policy.named_parameters()) for model in (plain, scaled))
    assert all(th.equal(first[name], second[name]) for name in others)


def test_a_loaded_model_keeps_its_last_layer(tmp_path):
    model = model_of("box", PPO, action_net_gain=0.5).learn(128)
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model")
    assert th.equal(loaded.policy.action_net.weight, model.policy.action_net.weight)
    assert loaded.action_net_gain == 0.5
