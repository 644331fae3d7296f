"""The reference engine: the Fisher product, exact quantities of whole policies, the partition."""

import pytest
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_trust import PPO, TRPO
from sb3_trust.engines.autograd import AutogradEngine
from tests.twins import explicit_fisher, in_float64
from tests.worlds import KINDS, VECTOR, fill, model_of, world


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "cnn"])
def test_fisher_product_agrees_with_an_explicit_float64_matrix(kind):
    model = fill(model_of(kind, TRPO, n_steps=8))
    batch = model._make_batch()
    single, double = AutogradEngine(model.policy), AutogradEngine(in_float64(model.policy))
    parameters = double.partition(batch).policy
    matrix = explicit_fisher(double.policy, double.family, batch.observations, parameters)
    vectors = th.randn(4, len(matrix)).double()
    expected = vectors @ matrix
    for engine, dtype, tolerance in ((double, th.float64, 1e-12), (single, th.float32, 1e-5)):
        product = engine.fisher_vector_product(batch)
        products = th.stack([product(v.to(dtype)) for v in vectors])
        assert float((products.double() - expected).norm() / expected.norm()) < tolerance
    assert float((matrix - matrix.T).abs().max()) < 1e-12
    assert float(th.linalg.eigvalsh(matrix).min()) > -1e-10


@pytest.mark.parametrize("kind", ["discrete", "box", "multi_binary", "gsde"])
def test_fisher_matrix_is_the_hessian_of_the_kl(kind):
    """Finite differences of the exact KL, along random directions: v^T F v = 2 KL / h^2 to second order."""
    model = fill(model_of(kind, TRPO))
    batch = model._make_batch()
    engine = AutogradEngine(in_float64(model.policy))
    batch.old_distribution = engine.distribution_parameters(batch)
    parameters = engine.partition(batch).policy
    start = [p.detach().clone() for p in parameters]
    h = 1e-4
    for _ in range(3):
        vector = [th.randn_like(p) for p in parameters]
        if (
            kind == "gsde"
        ):  # sigma's dependence on the latents is frozen: move log_std and the last layer alone
            names = {id(p): n for n, p in engine.policy.named_parameters()}
            vector = [v if "log_std" in names[id(p)] or "action_net" in names[id(p)] else 0 * v
                      for v, p in zip(vector, parameters, strict=True)]  # fmt: skip
        flat = th.cat([v.reshape(-1) for v in vector])
        quadratic = float(flat @ engine.fisher_vector_product(batch)(flat))
        both = []
        for sign in (1, -1):
            with th.no_grad():
                for p, s, v in zip(parameters, start, vector, strict=True):
                    p.copy_(s + sign * h * v)
            both.append(float(engine.measure(batch, {"kl"}).kl.mean()))
        with th.no_grad():
            for p, s in zip(parameters, start, strict=True):
                p.copy_(s)
        assert sum(both) / h**2 == pytest.approx(quadratic, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_policy_has_no_kl_from_itself_and_the_recorded_log_probs(kind):
    model = fill(model_of(kind, TRPO))
    batch = model._make_batch()
    terms = model._policy_engine().measure(batch, {"log_prob", "kl", "values", "entropy"})
    assert float(terms.kl.abs().max()) < 1e-6
    assert terms.kl.dtype == th.float64
    th.testing.assert_close(terms.log_prob, batch.old_log_prob, rtol=1e-4, atol=1e-4)
    th.testing.assert_close(terms.values, batch.old_values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["discrete", "box", "dict", "gsde"])
def test_gradient_agrees_with_autograd_on_the_sum(kind):
    from sb3_trust.numerics.objectives import PolicyTerms

    model = fill(model_of(kind, PPO))
    batch, engine = model._make_batch(), model._policy_engine()
    slopes = PolicyTerms(*(th.randn(len(batch)) for _ in range(4)))
    evaluation = engine.evaluate(batch, {"log_prob", "entropy", "kl", "values"})
    parameters = list(model.policy.parameters())
    ours = evaluation.gradient(slopes, parameters)
    values, log_prob, entropy = model.policy.evaluate_actions(batch.observations, batch.actions)
    kl = engine.family.kl(
        batch.old_distribution, engine.family.of(model.policy.get_distribution(batch.observations))
    )
    scalar = (
        slopes.log_prob @ log_prob
        + slopes.entropy @ entropy
        + slopes.kl @ kl
        + slopes.values @ values.flatten()
    )
    for mine, theirs in zip(ours, th.autograd.grad(scalar, parameters), strict=True):
        th.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


class Attention(BaseFeaturesExtractor):
    """A policy module whose name says "value" and which is not the critic's."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 8)
        self.value_attention = th.nn.Linear(4, 8)

    def forward(self, observations):
        return th.tanh(self.value_attention(observations))


def names_of(model, parameters):
    names = {id(p): name for name, p in model.policy.named_parameters()}
    return {names[id(p)] for p in parameters}


def test_parameters_are_told_apart_by_the_graph_not_by_name():
    kwargs = {"features_extractor_class": Attention, "share_features_extractor": False}
    model = TRPO("MlpPolicy", world(KINDS["box"][0]), n_steps=16, policy_kwargs=kwargs)
    fill(model)
    partition = model._policy_engine().partition(model._make_batch())
    policy, critic = names_of(model, partition.policy), names_of(model, partition.critic_only)
    assert "features_extractor.value_attention.weight" in policy
    assert "vf_features_extractor.value_attention.weight" in critic
    assert "log_std" in policy and "value_net.bias" in critic
    assert policy | critic == {name for name, _ in model.policy.named_parameters()}
    assert not policy & critic


def test_shared_parameters_are_the_policys_and_frozen_ones_nobodys():
    model = fill(model_of("cnn", TRPO, n_steps=8))
    model.policy.action_net.bias.requires_grad_(False)
    partition = model._policy_engine().partition(model._make_batch())
    policy, critic = names_of(model, partition.policy), names_of(model, partition.critic_only)
    assert critic == {"value_net.weight", "value_net.bias"}
    assert "features_extractor.cnn.0.weight" in policy and "action_net.bias" not in policy


def test_partition_is_probed_again_when_parameters_change():
    model = fill(model_of("box", TRPO, engine="autograd"))
    batch, engine = model._make_batch(), model._policy_engine()
    assert engine.partition(batch) is engine.partition(batch)
    model.policy.log_std.requires_grad_(False)
    assert "log_std" not in names_of(model, engine.partition(batch).policy)


def test_probing_draws_no_random_number_and_moves_no_buffer():
    class Noisy(BaseFeaturesExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space, 4)
            self.norm, self.dropout = th.nn.BatchNorm1d(4), th.nn.Dropout(0.5)

        def forward(self, observations):
            return self.dropout(self.norm(observations))

    model = TRPO(
        "MlpPolicy", world(KINDS["box"][0]), n_steps=16, policy_kwargs={"features_extractor_class": Noisy}
    )
    batch = fill(model)._make_batch()
    model.policy.set_training_mode(True)
    random_state, buffers = th.get_rng_state(), [b.clone() for b in model.policy.buffers()]
    model._policy_engine().partition(batch)
    assert th.equal(random_state, th.get_rng_state())
    assert all(map(th.equal, buffers, model.policy.buffers()))
    assert model.policy.training


def test_an_overridden_method_is_not_trusted_to_leave_its_distribution_behind():
    class Tempered(ActorCriticPolicy):
        """Acts by other logits than the ones that its last layer leaves in `action_dist` half-way."""

        def evaluate_actions(self, obs, actions):
            result = super().evaluate_actions(obs, actions)
            super().get_distribution(th.zeros_like(obs))  # leaves another distribution behind
            return result

    space = KINDS["discrete"][0]
    model = PPO(Tempered, world(space, VECTOR), n_steps=16)
    batch = fill(model)._make_batch()
    terms = model._policy_engine().evaluate(batch, {"log_prob", "kl", "values"}).terms
    assert float(terms.kl.abs().max()) < 1e-6
