"""The reference engine's way with convolutions: Jacobians in factors, the critic's features kept."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_trust import TRPO
from sb3_trust.engines import fisher
from sb3_trust.engines.autograd import AutogradEngine
from sb3_trust.engines.autograd_descent import AutogradDescent
from sb3_trust.engines.layerwise import LayerwiseJacobian, NotLayerwise, check_layerwise
from tests.twins import in_float64
from tests.worlds import ACTION_SPACES, IMAGE, fill, parameters, policy_parameters, world

DICT_WITH_IMAGE = spaces.Dict({"image": IMAGE, "vector": spaces.Box(-1.0, 1.0, (3,), np.float32)})


class Small(BaseFeaturesExtractor):
    """Two convolutions, and what a test does to them."""

    def __init__(self, observation_space, activation=th.nn.ReLU, groups=1, **convolution):
        super().__init__(observation_space, 8)
        self.first = th.nn.Conv2d(3, 4, 5, stride=3, **convolution)
        self.second = th.nn.Conv2d(4, 4, 3, stride=2, groups=groups)
        self.activation = activation()
        with th.no_grad():
            size = self.convolved(th.zeros(1, *observation_space.shape)).shape[1]
        self.last = th.nn.Linear(size, 8)

    def convolved(self, images):
        return self.activation(self.second(self.activation(self.first(images)))).flatten(1)

    def forward(self, images):
        return th.tanh(self.last(self.convolved(images)))


class Tied(Small):
    """The first layer's weights have a second way to the output."""

    def forward(self, images):
        return super().forward(images) + self.first.weight.sum()


class Mixing(Small):
    """Each sample sees the mean over the batch."""

    def forward(self, images):
        features = super().forward(images)
        return features - features.mean(0)


def model_with(extractor=Small, action="discrete", n_steps=12, **extractor_kwargs):
    kwargs = {"features_extractor_class": extractor, "features_extractor_kwargs": extractor_kwargs}
    return fill(
        TRPO(
            "CnnPolicy", world(ACTION_SPACES[action], IMAGE), n_steps=n_steps, batch_size=2 * n_steps,
            policy_kwargs=kwargs, seed=1, device="cpu",
        )
    )  # fmt: skip


def products(engine, batch, dtype=th.float32, n=3):
    """Fisher products with the same vectors for every engine of a policy of this size."""
    size = sum(p.numel() for p in engine.partition(batch).policy)
    product = engine.fisher_vector_product(batch)
    vectors = th.randn(n, size, generator=th.Generator().manual_seed(5), dtype=th.float64)
    return th.stack([product(v.to(dtype)).double() for v in vectors])


def is_layerwise(engine, batch):
    try:
        check_layerwise(engine.policy, engine.family, batch[:4].observations, engine.partition(batch).policy)
    except NotLayerwise:
        return False
    return True


def difference(a, b):
    return float((a - b).norm() / b.norm())


def by_autograd(engine, batch, dtype, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fisher, "MAX_FACTOR_ENTRIES", 0)
        return products(engine, batch, dtype)


@pytest.mark.parametrize("action", ACTION_SPACES)
@pytest.mark.parametrize(
    "extractor_kwargs",
    [{}, {"padding": 2, "dilation": 2}, {"groups": 2}, {"padding": "valid", "bias": False},
     {"padding_mode": "reflect", "padding": 1}],
)  # fmt: skip
def test_product_in_factors_is_autograds(action, extractor_kwargs, monkeypatch):
    model = model_with(action=action, **extractor_kwargs)
    batch = model._make_batch()
    single, double = AutogradEngine(model.policy), AutogradEngine(in_float64(model.policy))
    assert is_layerwise(single, batch)
    expected = by_autograd(double, batch, th.float64, monkeypatch)
    assert difference(products(double, batch, th.float64), expected) < 1e-12
    assert difference(products(single, batch), expected) < 1e-5


@pytest.mark.parametrize("policy", ["CnnPolicy", "MultiInputPolicy"])
def test_stock_image_policies_are_served_in_factors(policy, monkeypatch):
    observation_space = IMAGE if policy == "CnnPolicy" else DICT_WITH_IMAGE
    kwargs = {"net_arch": [8]}
    if policy == "CnnPolicy":
        kwargs["features_extractor_kwargs"] = {"features_dim": 16}
    model = fill(
        TRPO(policy, world(ACTION_SPACES["box"], observation_space), n_steps=20, batch_size=40,
             policy_kwargs=kwargs, device="cpu")
    )  # fmt: skip
    engine, batch = model._policy_engine(), model._make_batch()
    monkeypatch.setattr(AutogradEngine, "chunks", lambda self, batch: batch.chunks(16))
    assert is_layerwise(engine, batch)
    in_factors = products(engine, batch)
    assert difference(in_factors, by_autograd(engine, batch, th.float32, monkeypatch)) < 1e-5


@pytest.mark.parametrize("frozen", ["bias of a convolution", "weight of a convolution", "log_std"])
def test_frozen_parameters_have_no_part(frozen, monkeypatch):
    model = model_with(action="box")
    policy = model.policy
    chosen = {
        "bias of a convolution": policy.features_extractor.first.bias,
        "weight of a convolution": policy.features_extractor.second.weight,
        "log_std": policy.log_std,
    }[frozen]
    chosen.requires_grad_(False)
    engine, batch = model._policy_engine(), model._make_batch()
    assert is_layerwise(engine, batch)
    assert difference(products(engine, batch), by_autograd(engine, batch, th.float32, monkeypatch)) < 1e-5


def parametrized(policy):
    th.nn.utils.parametrizations.weight_norm(policy.features_extractor.second)


def another_parameter(policy):
    policy.features_extractor.extra = th.nn.Parameter(th.ones(8))
    policy.features_extractor.register_forward_hook(lambda module, _, output: output * module.extra)


class ByKeyword(Small):
    """A layer that is called by keyword."""

    def forward(self, images):
        return self.last(input=self.convolved(images))


class Unused(Small):
    """A layer that is also called where no graph is kept."""

    def forward(self, images):
        with th.no_grad():
            self.first(images)
        return super().forward(images)


def hooked(policy):
    policy.features_extractor.first.register_forward_hook(lambda *_: None)


def test_a_layer_called_without_a_graph_too_has_the_factors_of_the_other_call(monkeypatch):
    model = model_with(Unused)
    engine, batch = AutogradEngine(model.policy), model._make_batch()
    assert is_layerwise(engine, batch)
    assert difference(products(engine, batch), by_autograd(engine, batch, th.float32, monkeypatch)) < 1e-5


@pytest.mark.parametrize(
    ("extractor", "kwargs", "change"),
    [
        (ByKeyword, {}, None),
        (Small, {}, hooked),
        (Tied, {}, None),
        (Mixing, {}, None),
        (Small, {"activation": lambda: th.nn.ReLU(inplace=True)}, None),
        (Small, {}, parametrized),
        (Small, {}, another_parameter),
    ],
    ids=["by keyword", "hooked", "tied", "mixing", "in place", "parametrized", "another parameter"],
)
def test_what_does_not_come_apart_is_left_to_autograd(extractor, kwargs, change, monkeypatch):
    model = model_with(extractor, **kwargs)
    if change is not None:
        change(model.policy)
    engine, batch = AutogradEngine(model.policy), model._make_batch()
    assert not is_layerwise(engine, batch)
    found = products(engine, batch)
    assert difference(found, by_autograd(engine, batch, th.float32, monkeypatch)) < 1e-6


def test_factors_that_are_too_large_are_not_kept(monkeypatch):
    model = model_with()
    engine, batch = model._policy_engine(), model._make_batch()
    entries = check_layerwise(
        engine.policy, engine.family, batch[:4].observations, engine.partition(batch).policy
    )
    built = []
    original = LayerwiseJacobian.__init__

    def counting(self, *args):
        built.append(len(args[2]))
        original(self, *args)

    monkeypatch.setattr(LayerwiseJacobian, "__init__", counting)
    for limit, expected in ((entries * len(batch) + 1, [4, len(batch)]), (entries * len(batch), [4])):
        built.clear()
        monkeypatch.setattr(fisher, "MAX_FACTOR_ENTRIES", limit)
        engine.fisher_vector_product(batch)
        assert built == expected


def test_checking_the_factors_draws_no_random_number():
    model = model_with()
    engine, batch = model._policy_engine(), model._make_batch()
    before = th.get_rng_state()
    assert is_layerwise(engine, batch)
    assert th.equal(before, th.get_rng_state())


class Pair(Small):
    """Features that are not one tensor."""

    def forward(self, images):
        features = super().forward(images)
        return features[:, :4], features[:, 4:]


class Joined(th.nn.Module):
    """Heads on both parts."""

    def __init__(self):
        super().__init__()
        self.actor, self.critic = th.nn.Linear(8, 4), th.nn.Linear(8, 4)
        self.latent_dim_pi = self.latent_dim_vf = 4

    def forward_actor(self, pair):
        return self.actor(th.cat(pair, 1))

    def forward_critic(self, pair):
        return self.critic(th.cat(pair, 1))

    def forward(self, pair):
        return self.forward_actor(pair), self.forward_critic(pair)


class JoinedPolicy(ActorCriticCnnPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = Joined()


def test_features_that_are_no_tensor_are_extracted_each_time():
    env = world(ACTION_SPACES["discrete"], IMAGE)
    kwargs = {"features_extractor_class": Pair}
    model = TRPO(JoinedPolicy, env, n_steps=16, batch_size=8, policy_kwargs=kwargs, device="cpu").learn(32)
    assert model.last_update.value_loss > 0


@pytest.mark.parametrize("shared", [True, False])
def test_critic_fitted_on_its_features_is_the_critic_fitted_on_images(shared, monkeypatch):
    def fitted(with_features):
        with monkeypatch.context() as patch:
            if not with_features:
                patch.setattr(AutogradDescent, "prepared", lambda self, batch: batch)
            model = model_with(n_steps=16)
            if not shared:  # the critic's own trunk moves with it
                kwargs = {**model.policy_kwargs, "share_features_extractor": False}
                model = fill(
                    TRPO("CnnPolicy", world(ACTION_SPACES["discrete"], IMAGE), n_steps=16, batch_size=8,
                         policy_kwargs=kwargs, seed=1, device="cpu")
                )  # fmt: skip
            batch = model._make_batch()
            model.policy.set_training_mode(False)
            seen = []
            with monkeypatch.context() as counting:
                forward = Small.forward
                counting.setattr(Small, "forward", lambda self, x: (seen.append(len(x)), forward(self, x))[1])
                model._policy_engine().partition(batch)
                seen.clear()
                np.random.seed(0)
                before = parameters(model)
                loss = model._fit_critic(batch, 3, 8)
            return loss, parameters(model) - before, sum(seen), policy_parameters(model)

    loss, moved, frames, actor = fitted(True)
    expected_loss, expected, all_frames, expected_actor = fitted(False)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert float(expected.norm()) > 0
    assert float((moved - expected).norm() / expected.norm()) < 1e-5
    assert all(map(th.equal, actor, expected_actor))
    assert all_frames == 3 * 32
    assert frames == (32 if shared else 3 * 32)
