"""TRPO: the trust region is a fact; against sb3_contrib.TRPO where that is right."""

import inspect
import math
from functools import partial

import numpy as np
import pytest
import sb3_contrib
import torch as th
from sb3_contrib.common.utils import conjugate_gradient_solver
from stable_baselines3.common.distributions import kl_divergence as sb3_kl
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch.distributions import kl_divergence

from sb3_trust import TRPO
from sb3_trust.algorithms.natural_gradient import NaturalGradient
from sb3_trust.algorithms.statistics import TRPOStatistics
from sb3_trust.engines.vectors import flatten
from sb3_trust.numerics.objectives import SurrogateObjective, normalize_advantages
from tests.worlds import ACTION_SPACES, KINDS, fill, identical, model_of, policy_parameters, state, world


def joint_kl(before, after, n):
    """KL(before || after) with torch.distributions, summed over action dimensions, per state."""
    pairs = zip(before, after, strict=True) if isinstance(before, list) else [(before, after)]
    return sum(kl_divergence(p, q).detach().double().reshape(n, -1).sum(1) for p, q in pairs)


class Watched(TRPO):
    """Measures each of its updates from the policies before and after, independently of the library."""

    def train(self):
        kept = self.rollout_buffer.observations
        flat = (
            {key: part.reshape(-1, *part.shape[2:]) for key, part in kept.items()}
            if isinstance(kept, dict)
            else None
        )
        observations = obs_as_tensor(flat or kept.reshape(-1, *kept.shape[2:]), self.device)
        before = self.policy.get_distribution(observations).distribution
        before = list(before) if isinstance(before, list) else before
        weights = policy_parameters(self)
        super().train()
        after = self.policy.get_distribution(observations).distribution
        n = self.n_steps * self.n_envs
        self.__dict__.setdefault("measured", []).append(joint_kl(before, after, n))
        self.__dict__.setdefault("accepted", []).append(self.last_update.is_line_search_success)
        assert self.measured[-1].mean().item() == pytest.approx(self.last_update.kl, rel=1e-3, abs=1e-9)
        assert self.measured[-1].max().item() == pytest.approx(self.last_update.kl_max, rel=1e-3, abs=1e-8)
        if self.accepted[-1]:
            required = self.accept_ratio * self.last_update.expected_improvement
            assert self.last_update.actual_improvement >= required > 0
        else:
            assert identical(weights, policy_parameters(self))

    def _excluded_save_params(self):
        return [*super()._excluded_save_params(), "measured", "accepted"]


def assert_trusted(model, target_kl):
    measured = np.array([kl.mean().item() for kl in model.measured])
    assert measured.max() <= target_kl * (1 + 1e-4)
    assert np.median(measured) > target_kl / 2
    assert np.mean(model.accepted) > 0.7


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Ant-v5", "Humanoid-v5"])
def test_joint_kl_keeps_to_the_bound_and_uses_it_on_mujoco(env_id):
    model = Watched("MlpPolicy", make_vec_env(env_id, 2), n_steps=256, batch_size=128, seed=0, device="cpu")
    model.learn(6 * 512)
    assert_trusted(model, 0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_joint_kl_keeps_to_the_bound_for_every_policy(kind):
    model = model_of(kind, Watched, n_steps=128, target_kl=0.02)
    model.learn(6 * 256)
    assert_trusted(model, 0.02)


def contrib_direction(model, batch):
    """contrib's search direction on the same batch."""
    old = model.policy.get_distribution(batch.observations)
    old_distribution = type(old)(old.action_dim)
    old_distribution.proba_distribution(old.distribution.logits.detach())
    distribution = model.policy.get_distribution(batch.observations)
    ratio = th.exp(distribution.log_prob(batch.actions) - batch.old_log_prob)
    advantages = normalize_advantages(batch.advantages)
    contrib = sb3_contrib.TRPO
    actor, gradient, grad_kl, _ = contrib._compute_actor_grad(
        model, sb3_kl(distribution, old_distribution).mean(), (advantages * ratio).mean()
    )
    product = partial(contrib.hessian_vector_product, model, actor, grad_kl)
    return gradient, conjugate_gradient_solver(product, gradient, max_iter=model.cg_max_steps)


def our_direction(model, batch):
    batch = batch.with_advantages(normalize_advantages(batch.advantages))
    natural = NaturalGradient(model._policy_engine(), batch, SurrogateObjective(), 1, None, TRPOStatistics())
    direction = natural.direction(model.cg_damping, model.cg_max_steps, model.cg_tolerance)
    return natural.gradient, direction.x


def test_search_direction_is_contribs_on_discrete_actions():
    model = fill(model_of("discrete", TRPO, n_steps=256))
    batch = model._make_batch()
    gradient, direction = our_direction(model, batch)
    their_gradient, their_direction = contrib_direction(model, batch)
    th.testing.assert_close(gradient.float(), their_gradient, rtol=1e-3, atol=1e-6)
    cosine = th.nn.functional.cosine_similarity(direction, their_direction.double(), dim=0)
    assert float(cosine) > 0.999
    assert (
        float(th.nn.functional.cosine_similarity(direction, gradient, dim=0)) < 0.99
    )  # not just the gradient


def test_constructor_is_that_of_contrib_then_ours_by_keyword():
    ours, theirs = (inspect.signature(algorithm).parameters for algorithm in (TRPO, sb3_contrib.TRPO))
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert (parameter.default, parameter.kind) == (ours[name].default, ours[name].kind), name
    assert all(ours[name].kind == inspect.Parameter.KEYWORD_ONLY for name in list(ours)[len(theirs) :])


def test_logs_what_contrib_logs():
    logs = []
    for algorithm in (TRPO, sb3_contrib.TRPO):
        model = fill(model_of("box", algorithm))
        model.train()
        logs.append(set(model.logger.name_to_value))
    assert logs[1] <= logs[0]


def test_critic_phase_does_not_move_the_policy_and_learns():
    model = fill(model_of("box", TRPO, target_kl=lambda progress: 0.0, n_critic_updates=50))
    weights, before = policy_parameters(model), state(model)
    model.train()
    assert identical(weights, policy_parameters(model))
    assert not identical(before, state(model))
    assert model.last_update.kl == pytest.approx(0.0, abs=1e-12)
    assert model.last_update.step_norm == 0.0
    assert (model.last_update.fisher_products, model.last_update.target_kl) == (0, 0.0)
    first = model.last_update.value_loss
    assert model._fit_critic(model._make_batch(), 1, 64) < first


def test_critic_leaves_no_optimizer_state_for_the_policy():
    model = fill(model_of("box", TRPO))
    model.train()
    partition = model._policy_engine().partition(model._make_batch())
    with_state = {id(p) for p in model.policy.optimizer.state}
    assert with_state == {id(p) for p in partition.critic_only}


def test_gradients_that_someone_left_behind_do_not_move_the_policy():
    model = fill(model_of("box", TRPO, target_kl=lambda progress: 0.0))
    for parameter in model.policy.parameters():
        parameter.grad = th.ones_like(parameter)
    weights = policy_parameters(model)
    model.train()
    assert identical(weights, policy_parameters(model))


def test_a_line_search_that_never_succeeds_leaves_the_policy_as_it_was():
    # a single point at the full step with the bound's quadratic model far off, and all improvement required
    model = fill(
        model_of("discrete", TRPO, target_kl=50.0, cg_damping=1e-8, line_search_max_iter=1, accept_ratio=1.0)
    )
    weights = policy_parameters(model)
    model.train()
    assert model.last_update.is_line_search_success == 0
    assert model.last_update.line_search_steps == 1
    assert identical(weights, policy_parameters(model))
    assert model.last_update.kl == pytest.approx(0.0, abs=1e-12)
    assert (model.last_update.step_norm, model.n_rollbacks) == (0.0, 0)
    model.target_kl, model.accept_ratio, model.line_search_max_iter = 0.01, 0.1, 10
    fill(model).train()
    assert model.last_update.is_line_search_success == 1


@pytest.mark.parametrize("target", ["lin_0.02", lambda progress: 0.02 * progress])
def test_target_follows_its_schedule(target):
    model = model_of("box", Watched, target_kl=target)
    model.learn(4 * 128)
    limits = [0.02 * fraction for fraction in (0.75, 0.5, 0.25)]
    for kl, limit in zip(model.measured, limits, strict=False):
        assert limit / 3 < kl.mean().item() <= limit * (1 + 1e-4)
    assert model.measured[-1].max().item() == 0.0  # zero at the end: no step


def test_zero_gradient_takes_no_step():
    model = fill(model_of("box", TRPO, normalize_advantage=False))
    model.rollout_buffer.advantages[:] = 0.0
    weights = policy_parameters(model)
    model.train()
    assert identical(weights, policy_parameters(model))
    assert (model.last_update.cg_iterations, model.last_update.gradient_norm) == (0, 0.0)
    assert model.last_update.kl == pytest.approx(0.0, abs=1e-12)
    assert model.n_rollbacks == 0


@pytest.mark.parametrize("sign", [0.0, -1.0])
def test_zero_and_negative_curvature_take_no_step(sign, monkeypatch):
    model = fill(model_of("box", TRPO, cg_damping=0.0))
    engine = model._policy_engine()
    monkeypatch.setattr(engine, "fisher_vector_product", lambda batch: lambda v: sign * v)
    weights = policy_parameters(model)
    model.train()
    assert identical(weights, policy_parameters(model))
    assert model.last_update.is_line_search_success == 0


def test_curvature_that_only_damping_makes_positive_takes_no_step(monkeypatch):
    model = fill(model_of("box", TRPO, cg_damping=1.0))
    engine = model._policy_engine()
    monkeypatch.setattr(engine, "fisher_vector_product", lambda batch: lambda v: -0.5 * v)
    weights = policy_parameters(model)
    model.train()
    assert identical(weights, policy_parameters(model))
    assert model.last_update.curvature < 0


def test_statistics_of_a_step_are_consistent():
    model = fill(model_of("discrete", TRPO, n_steps=256))
    before, batch = flatten(policy_parameters(model)), model._make_batch()
    model.train()
    last = model.last_update
    _, log_prob, entropy = model.policy.evaluate_actions(batch.observations, batch.actions)
    surrogate = (normalize_advantages(batch.advantages) * th.exp(log_prob - batch.old_log_prob)).mean()
    assert last.policy_objective == pytest.approx(surrogate.item(), rel=1e-4)
    assert last.entropy == pytest.approx(entropy.mean().item(), rel=1e-5)
    moved = (flatten(policy_parameters(model)) - before).norm().item()
    assert last.step_norm == pytest.approx(moved, rel=1e-3)
    assert last.fisher_products == last.cg_iterations + 1
    assert last.step_fraction == pytest.approx(0.8 ** (last.line_search_steps - 1))
    assert last.cg_residual < 0.5 and last.curvature > 0
    # near the old policy the linear and the quadratic model hold
    assert last.actual_improvement == pytest.approx(last.expected_improvement, rel=0.5)
    assert last.kl == pytest.approx(last.target_kl * last.step_fraction**2, rel=0.5)
    assert not math.isnan(last.policy_objective)


def test_a_module_that_moves_a_buffer_as_it_is_evaluated_cannot_break_the_bound():
    class Running(BaseFeaturesExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space, 4)
            self.register_buffer("scale", th.ones(1))

        def forward(self, observations):
            self.scale.mul_(1.02)
            return observations * self.scale

    model = fill(model_of("box", TRPO, policy_kwargs={"features_extractor_class": Running}, target_kl=1e-4))
    with th.no_grad():
        model.policy.action_net.weight.mul_(100.0)  # so that the buffer matters to the actions
    fill(model)
    before = state(model)
    with pytest.warns(RuntimeWarning, match="kl above target_kl"):
        model.train()
    assert identical(before, state(model)) and model.n_rollbacks == 1


def test_same_seed_same_bits():
    first, second = (model_of("box", TRPO, sub_sampling_factor=2).learn(512) for _ in range(2))
    assert all(map(th.equal, state(first), state(second)))


def test_eval_mode_throughout():
    """Dropout in the policy: were it on, the KL of the unchanged policy from itself would not be zero."""

    class Drop(th.nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = th.nn.Dropout(0.5)

        def forward(self, x):
            return self.dropout(th.tanh(x))

    model = Watched(
        "MlpPolicy", world(ACTION_SPACES["box"]), n_steps=64, policy_kwargs={"activation_fn": Drop}, seed=0
    )
    model.learn(4 * 128)
    assert_trusted(model, 0.01)
