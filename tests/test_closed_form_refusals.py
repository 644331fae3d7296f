"""Each thing that a policy does beside two perceptrons and Adam keeps the closed form away from it."""

import re

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.optimizer import register_optimizer_step_post_hook

from sb3_trust.engines.autograd import AutogradEngine
from sb3_trust.engines.choice import choose_engine
from sb3_trust.engines.closed_form import ClosedFormEngine
from sb3_trust.errors import InvalidArgument
from tests.worlds import ACTION_SPACES, VECTOR


def fresh(kind=ActorCriticPolicy, observation_space=VECTOR, action_space=ACTION_SPACES["box"], **kwargs):
    kwargs = {"net_arch": [8, 8], **kwargs}
    return kind(observation_space, action_space, lambda _: 1e-3, **kwargs)


def assert_unserved(policy, reason):
    assert type(choose_engine(policy, "auto", None)) is AutogradEngine
    with pytest.raises(InvalidArgument, match=rf"`engine` .*{reason}"):
        choose_engine(policy, "closed_form", None)


def overriding(name):
    return type("Overriding", (ActorCriticPolicy,), {name: lambda self, *a, **k: None})


METHODS = ("forward", "evaluate_actions", "get_distribution", "predict_values", "extract_features",
           "_get_action_dist_from_latent", "__call__")  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_subclass_with_its_own_method_is_not_taken(name):
    assert_unserved(fresh(overriding(name)), f"its own `{name}`")


@pytest.mark.parametrize("name", METHODS[:-1])
def test_a_policy_with_another_method_set_on_it_is_not_taken(name):
    policy = fresh()
    original = getattr(policy, name)
    setattr(policy, name, lambda *args, **kwargs: original(*args, **kwargs))
    assert_unserved(policy, f"its own `{name}`")


class Linear(nn.Linear):
    pass


class Tanh(nn.Tanh):
    pass


class Flatten(FlattenExtractor):
    pass


class Extractor(MlpExtractor):
    pass


class Gaussian(DiagGaussianDistribution):
    pass


class WithExtractor(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = Extractor(self.features_dim, self.net_arch, self.activation_fn, self.device)


def subclassed_linear(policy):
    policy.action_net = Linear(8, 3)
    rebuilt(policy)


def rebuilt(policy, optimizer=th.optim.Adam, **kwargs):
    """A new optimizer for whatever parameters the policy has now."""
    policy.optimizer = optimizer(policy.parameters(), lr=1e-3, **kwargs)


def without_bias(policy):
    policy.value_net = nn.Linear(8, 1, bias=False)
    rebuilt(policy)


def tied(policy):
    policy.mlp_extractor.policy_net[0].weight = policy.mlp_extractor.value_net[0].weight
    rebuilt(policy)


def with_shared_storage(policy):
    policy.mlp_extractor.policy_net[0].weight.data = policy.mlp_extractor.value_net[0].weight.data


def parametrized(policy):
    parametrizations.weight_norm(policy.mlp_extractor.policy_net[0])
    rebuilt(policy)


def extra_parameter(policy):
    policy.temperature = nn.Parameter(th.ones(1))
    rebuilt(policy)


def unknown_parameter(policy):
    policy.temperature = nn.Parameter(th.ones(1))


def several_groups(policy):
    first, *rest = policy.parameters()
    policy.optimizer = th.optim.Adam([{"params": [first]}, {"params": rest}], lr=1e-3)


def part_of_the_parameters(policy):
    policy.optimizer = th.optim.Adam([*policy.parameters()][1:], lr=1e-3)


def different_steps(policy):
    for number, parameter in enumerate(policy.mlp_extractor.policy_net.parameters()):
        parameter.grad = th.zeros_like(parameter) if number else None
    policy.optimizer.step()


class OwnAdam(th.optim.Adam):
    pass


def replaced(owner, name, module):
    def spoil(policy):
        setattr(policy.get_submodule(owner), name, module)

    return spoil


def override(owner, name):
    def spoil(policy):
        target = policy.action_dist if owner == "action_dist" else policy.get_submodule(owner)
        original = getattr(target, name)
        setattr(target, name, lambda *args, **kwargs: original(*args, **kwargs))

    return spoil


def nothing(*_):
    return None


SPOILERS = {
    "own_distribution": (lambda p: setattr(p, "action_dist", Gaussian(3)), "Gaussian"),
    "subclassed_linear": (subclassed_linear, "Linear"),
    "subclassed_activation": (replaced("mlp_extractor.policy_net", "1", Tanh()), "Tanh"),
    "unknown_activation": (replaced("mlp_extractor.value_net", "1", nn.Softplus()), "Softplus"),
    "different_activations": (replaced("mlp_extractor.value_net", "1", nn.ReLU()), "differ"),
    "different_slopes": (replaced("mlp_extractor.value_net", "1", nn.LeakyReLU(0.3)), "differ"),
    "no_alternation": (lambda p: p.mlp_extractor.policy_net.append(nn.LayerNorm(8)), ""),
    "subclassed_sequential": (
        lambda p: setattr(p.mlp_extractor, "policy_net", type("Own", (nn.Sequential,), {})(nn.Linear(4, 8))),
        "Own",
    ),
    "flattening_otherwise": (
        replaced("features_extractor", "flatten", nn.Sequential(nn.Flatten(), nn.Hardtanh())), ""
    ),
    "forward_hook": (lambda p: p.action_net.register_forward_hook(nothing), "hook"),
    "forward_pre_hook": (lambda p: p.features_extractor.register_forward_pre_hook(nothing), "hook"),
    "backward_hook": (lambda p: p.value_net.register_full_backward_hook(nothing), "hook"),
    "backward_pre_hook": (lambda p: p.value_net.register_full_backward_pre_hook(nothing), "hook"),
    "hook_on_the_policy": (lambda p: p.register_forward_hook(nothing), "hook"),
    "forward_set_on_a_layer": (override("action_net", "forward"), "forward"),
    "forward_set_on_an_activation": (override("mlp_extractor.policy_net.1", "forward"), "forward"),
    "forward_actor_set": (override("mlp_extractor", "forward_actor"), ""),
    "forward_critic_set": (override("mlp_extractor", "forward_critic"), ""),
    "log_prob_set": (override("action_dist", "log_prob"), ""),
    "proba_distribution_set": (override("action_dist", "proba_distribution"), ""),
    "gradient_hook": (lambda p: p.value_net.weight.register_hook(nothing), "hook is set on a parameter"),
    "post_accumulate_hook": (
        lambda p: p.value_net.bias.register_post_accumulate_grad_hook(nothing), "hook is set on a parameter"
    ),
    "frozen": (lambda p: p.log_std.requires_grad_(False), "frozen"),
    "tied": (tied, "share"),
    "shared_storage": (with_shared_storage, ""),
    "parametrized": (parametrized, "ParametrizedLinear"),
    "without_bias": (without_bias, "bias"),
    "extra_parameter": (extra_parameter, "outside its layers"),
    "unknown_parameter": (unknown_parameter, "outside its layers"),
    "buffer": (lambda p: p.register_buffer("mask", th.ones(1)), "buffers"),
    "float64": (lambda p: p.double(), "float64"),
    "not_contiguous": (
        lambda p: setattr(p.action_net.weight, "data", th.zeros(8, 3).t()), "contiguous"
    ),
    "adamw": (lambda p: rebuilt(p, th.optim.AdamW), "AdamW"),
    "sgd": (lambda p: rebuilt(p, th.optim.SGD), "SGD"),
    "rmsprop": (lambda p: rebuilt(p, th.optim.RMSprop), "RMSprop"),
    "subclassed_adam": (lambda p: rebuilt(p, OwnAdam), "OwnAdam"),
    "amsgrad": (lambda p: rebuilt(p, amsgrad=True), "amsgrad"),
    "maximize": (lambda p: rebuilt(p, maximize=True), "maximize"),
    "several_groups": (several_groups, "groups"),
    "part_of_the_parameters": (part_of_the_parameters, "not all parameters"),
    "scheduler": (lambda p: th.optim.lr_scheduler.StepLR(p.optimizer, 5), "Adam"),
    "optimizer_pre_hook": (lambda p: p.optimizer.register_step_pre_hook(nothing), "hook"),
    "optimizer_post_hook": (lambda p: p.optimizer.register_step_post_hook(nothing), "hook"),
    "own_step": (lambda p: setattr(p.optimizer, "step", p.optimizer.step), "Adam"),
    "different_steps": (different_steps, "steps"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILERS)
def test_a_policy_that_does_something_else_too_is_not_taken(name):
    spoil, reason = SPOILERS[name]
    policy = fresh()
    assert type(choose_engine(policy, "auto", None)) is ClosedFormEngine
    spoil(policy)
    assert_unserved(policy, reason)


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"features_extractor_class": Flatten}, "Flatten"),
        ({"kind": WithExtractor}, "Extractor"),
        ({"use_sde": True}, "exploration"),
        ({"optimizer_class": th.optim.AdamW}, "AdamW"),
        ({"optimizer_kwargs": {"amsgrad": True}}, "amsgrad"),
        ({"observation_space": spaces.Discrete(4, start=1)}, re.escape("start=1")),
        ({"observation_space": spaces.MultiDiscrete([3, 2], start=[0, 1])}, "MultiDiscrete"),
    ],
)
def test_a_policy_made_otherwise_is_not_taken(kwargs, reason):
    assert_unserved(fresh(**kwargs), reason)


@pytest.mark.parametrize(
    "register",
    [nn.modules.module.register_module_forward_hook, nn.modules.module.register_module_full_backward_hook],
)
def test_under_a_hook_on_all_modules_no_policy_is_taken(register):
    policy = fresh()
    handle = register(nothing)
    try:
        assert_unserved(policy, "all modules")
    finally:
        handle.remove()
    assert type(choose_engine(policy, "auto", None)) is ClosedFormEngine


def test_under_a_hook_on_all_optimizers_no_policy_is_taken():
    policy = fresh()
    handle = register_optimizer_step_post_hook(nothing)
    try:
        assert_unserved(policy, "")
    finally:
        handle.remove()
    assert type(choose_engine(policy, "auto", None)) is ClosedFormEngine
