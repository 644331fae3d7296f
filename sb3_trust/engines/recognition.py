"""Which policies the closed-form engine serves exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch as th
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn
from torch.optim import optimizer as optimizer_module

from sb3_trust.engines.activations import Activation
from sb3_trust.engines.inputs import InputEncoder

# what a policy computes is what these compute
_POLICY_METHODS = (
    "forward", "evaluate_actions", "get_distribution", "predict_values", "extract_features", "obs_to_tensor",
    "_get_action_dist_from_latent", "__call__",
)  # fmt: skip
_DISTRIBUTIONS = (
    DiagGaussianDistribution, CategoricalDistribution, MultiCategoricalDistribution, BernoulliDistribution,
)  # fmt: skip
_MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_OPTIMIZER_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


class Unserved(Exception):
    """The closed-form engine cannot serve a policy exactly; its argument says why."""


@dataclass(frozen=True, eq=False)
class Perceptrons:
    """
    A policy that is two multilayer perceptrons.

    :param actor: linear layers of the actor, output layer included
    :param critic: linear layers of the critic, output layer included
    :param log_std: of a Gaussian, [action_dim]
    :param activation: of all hidden layers
    :param encoder: of observations
    """

    actor: tuple[nn.Linear, ...]
    critic: tuple[nn.Linear, ...]
    log_std: nn.Parameter | None
    activation: Activation
    encoder: InputEncoder

    def __post_init__(self) -> None:
        # what the layers hold now: whoever gives a layer another parameter makes it another policy
        object.__setattr__(self, "_tensors", (*_tensors(self.actor), *_tensors(self.critic), self.log_std))

    def same_as(self, other: Perceptrons) -> bool:
        """Whether both describe the same parameters in the same roles."""
        pairs = zip(self._tensors, other._tensors, strict=False)  # type: ignore[attr-defined]
        return (
            all(mine is theirs for mine, theirs in pairs)
            and (len(self.actor), len(self.critic)) == (len(other.actor), len(other.critic))
            and self.activation.key == other.activation.key
            and self.encoder.key == other.encoder.key
        )


def _tensors(layers: Sequence[nn.Linear]) -> list[nn.Parameter]:
    """Weight and bias of each layer."""
    return [tensor for layer in layers for tensor in (layer.weight, layer.bias)]  # type: ignore[misc]


def recognize(policy: ActorCriticPolicy) -> Perceptrons:
    """
    A policy as two perceptrons. What is asked of modules is their exact type, so that nothing that a
    subclass, a hook or a parametrisation does is left out.

    :raises Unserved: for any other policy, and for one that is not trained by plain Adam on the CPU
    """
    _check_policy(policy)
    actor, actor_activations = _layers(policy.mlp_extractor.policy_net, policy.action_net)
    critic, critic_activations = _layers(policy.mlp_extractor.value_net, policy.value_net)
    log_std = policy.log_std if isinstance(policy.action_dist, DiagGaussianDistribution) else None
    of_actor = _tensors(actor) + ([] if log_std is None else [log_std])
    of_critic = _tensors(critic)
    _check_parameters(policy, of_actor + of_critic)
    _check_optimizer(policy.optimizer, of_actor + of_critic)
    _check_steps(policy.optimizer, of_actor)
    _check_steps(policy.optimizer, of_critic)
    try:
        activations = [Activation(module) for module in actor_activations + critic_activations]
        encoder = InputEncoder(policy.observation_space, policy.normalize_images)
    except KeyError as error:
        raise Unserved(f"its activation function is {error.args[0].__name__}") from None
    except NotImplementedError as error:
        raise Unserved(f"its {error}") from None
    if len({activation.key for activation in activations}) > 1:
        raise Unserved("its activation functions differ")
    activation = activations[0] if activations else Activation(nn.Identity())
    return Perceptrons(tuple(actor), tuple(critic), log_std, activation, encoder)


@cache
def _methods(kind: Any) -> frozenset[str]:
    return frozenset(name for name in dir(kind) if callable(getattr(kind, name, None)))


def _check_policy(policy: ActorCriticPolicy) -> None:
    kind = type(policy)
    for name in _POLICY_METHODS:
        if getattr(kind, name) is not getattr(ActorCriticPolicy, name) or name in vars(policy):
            raise Unserved(f"it has its own `{name}`")
    if policy.use_sde:
        raise Unserved("it uses generalized state-dependent exploration")
    if type(policy.action_dist) not in _DISTRIBUTIONS:
        raise Unserved(f"its action distribution is {type(policy.action_dist).__name__}")
    names = ("features_extractor", "pi_features_extractor", "vf_features_extractor")
    extractors = [getattr(policy, name) for name in names if hasattr(policy, name)]
    expected = [(policy.mlp_extractor, MlpExtractor), *((e, FlattenExtractor) for e in extractors)]
    for module, wanted in expected:
        if type(module) is not wanted:
            raise Unserved(f"it has a {type(module).__name__}")
    for extractor in extractors:
        inner = extractor.flatten
        if type(inner) is not nn.Flatten or (inner.start_dim, inner.end_dim) != (1, -1):
            raise Unserved("its extractor flattens otherwise")
    modules = list(policy.modules())
    for module in modules:
        attributes = vars(module)
        if any(attributes[hooks] for hooks in _MODULE_HOOKS):
            raise Unserved(f"a hook is set on its {type(module).__name__}")
    for part in (*modules, policy.action_dist):
        # a method that is set on the object itself
        part_kind: Any = type(part)
        if own := vars(part).keys() & _methods(part_kind):
            raise Unserved(f"its {type(part).__name__} has its own `{min(own)}`")
    if nn.modules.module._has_any_global_hook():
        raise Unserved("a hook is set on all modules")


def _layers(body: nn.Module, head: nn.Module) -> tuple[list[nn.Linear], list[nn.Module]]:
    """The linear layers and the activation functions between them."""
    modules: list[Any] = list(body) if type(body) is nn.Sequential else [body]
    linear, between = [*modules[0::2], head], modules[1::2]
    for layer in linear:
        if type(layer) is not nn.Linear or layer.bias is None:
            raise Unserved(f"it has a layer of type {type(layer).__name__}, or one without bias")
    if len(linear) != len(between) + 1:
        raise Unserved("its layers do not alternate with activation functions")
    return linear, between


def _check_parameters(policy: ActorCriticPolicy, own: list[nn.Parameter]) -> None:
    if len({id(p) for p in own}) < len(own):
        raise Unserved("its layers share weights")
    if len({p.data_ptr() for p in own if p.numel()}) < len([p for p in own if p.numel()]):
        raise Unserved("its layers share storage")
    if {id(p) for p in policy.parameters()} != {id(p) for p in own} or any(True for _ in policy.buffers()):
        raise Unserved("it has parameters or buffers outside its layers")
    for parameter in own:
        if not parameter.requires_grad:
            raise Unserved("a parameter is frozen")
        if parameter.device.type != "cpu" or parameter.dtype is not th.float32:
            raise Unserved(f"its parameters are {parameter.dtype} on {parameter.device}")
        if not parameter.is_contiguous() or any(
            getattr(parameter, hooks, None) for hooks in _PARAMETER_HOOKS
        ):
            raise Unserved("a hook is set on a parameter, or its storage is not contiguous")


def _check_optimizer(optimizer: th.optim.Optimizer, own: list[nn.Parameter]) -> None:
    if type(optimizer) is not th.optim.Adam or "step" in vars(optimizer):
        raise Unserved(f"its optimizer is not plain Adam but {type(optimizer).__name__}")
    on_all = (optimizer_module._global_optimizer_pre_hooks, optimizer_module._global_optimizer_post_hooks)
    if any(getattr(optimizer, hooks) for hooks in _OPTIMIZER_HOOKS) or any(on_all):
        raise Unserved("a hook is set on its optimizer")
    (group, *others) = optimizer.param_groups
    if others or {id(p) for p in group["params"]} != {id(p) for p in own}:
        raise Unserved("its optimizer has several parameter groups, or not all parameters")
    for option in ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay"):
        if group.get(option):
            raise Unserved(f"its optimizer is set to {option}")
    if isinstance(group["lr"], th.Tensor):
        raise Unserved("its learning rate is a tensor")


def steps_made(optimizer: th.optim.Optimizer, parameter: nn.Parameter) -> float:
    """How often the optimizer has stepped a parameter."""
    state = optimizer.state.get(parameter)
    return float(state["step"]) if state else 0.0


def _check_steps(optimizer: th.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """All parameters of a network are stepped at once, so they must have been before."""
    if len({steps_made(optimizer, parameter) for parameter in parameters}) > 1:
        raise Unserved("its optimizer has made different numbers of steps within a network")
