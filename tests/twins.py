"""The two engines side by side on one policy, and how far apart what they say is."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trust.algorithms.base import TrustRegionAlgorithm
from sb3_trust.engines.autograd import AutogradEngine
from sb3_trust.engines.batch import Batch
from sb3_trust.engines.choice import choose_engine
from sb3_trust.engines.closed_form import ClosedFormEngine
from sb3_trust.numerics.objectives import PolicyTerms
from tests.worlds import fill, hand_over, model_of

TERMS = ("log_prob", "entropy", "kl", "values")
ACTIVATIONS = {
    "tanh": th.nn.Tanh,
    "relu": th.nn.ReLU,
    "leaky_relu": lambda: th.nn.LeakyReLU(0.1),
    "elu": lambda: th.nn.ELU(0.7),
    "silu": th.nn.SiLU,
    "identity": th.nn.Identity,
}
ARCHITECTURES: dict[str, Any] = {
    "deep_actor": {"pi": [12, 7, 9], "vf": [5]},
    "deep_critic": {"pi": [6], "vf": [11, 4]},
    "linear_actor": {"pi": [], "vf": [8, 6]},
    "linear_critic": {"pi": [8, 6], "vf": []},
    "all_linear": [],
}


def engines(policy: ActorCriticPolicy) -> tuple[ClosedFormEngine, AutogradEngine]:
    """Both engines for a policy that both serve."""
    closed = choose_engine(policy, "closed_form", None)
    assert isinstance(closed, ClosedFormEngine)
    return closed, AutogradEngine(policy)


@th.no_grad()
def perturb(policy: ActorCriticPolicy, scale: float = 0.1, seed: int = 0) -> None:
    """Move all parameters a bit, in place, without drawing from torch's own generator."""
    generator = th.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.add_(scale * th.randn(parameter.shape, generator=generator))


def policy_of(
    observation_space: spaces.Space, action_space: spaces.Space, seed: int = 0, **kwargs: Any
) -> ActorCriticPolicy:
    """A policy without model or environment, whose parameters, biases included, are all of some size."""
    th.manual_seed(seed)
    policy = ActorCriticPolicy(observation_space, action_space, lambda _: 1e-3, **kwargs)
    perturb(policy, 0.3, seed)
    return policy


def batch_of(policy: ActorCriticPolicy, n: int) -> Batch:
    """A batch of random states with actions of the policy; its old policy is another one near by."""
    space = policy.observation_space
    space.seed(n)
    observations = th.as_tensor(np.stack([space.sample() for _ in range(n)]))
    if observations.is_floating_point():
        observations = th.randn(n, *space.shape, dtype=observations.dtype)
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    with th.no_grad():
        actions, values, log_prob = policy(observations)
    if actions.dim() > 1:
        actions = actions.flatten(1)
    old = Batch(observations, actions, th.randn(n), th.randn(n), values.flatten(), log_prob)
    old_distribution = AutogradEngine(policy).distribution_parameters(old)
    perturb(policy, 0.05, seed=n)
    moved = AutogradEngine(policy).distribution_parameters(old)
    with th.no_grad():
        for parameter, kept in zip(policy.parameters(), before, strict=True):
            parameter.copy_(kept)
    assert not th.equal(moved, old_distribution)
    return replace(old, old_distribution=moved)


def filled(kind: str, n_steps: int = 40, **policy_kwargs: Any) -> tuple[ActorCriticPolicy, Batch]:
    """A policy with a batch that it collected before its parameters were moved a bit."""
    from sb3_trust import PPO

    model = fill(
        model_of(kind, PPO, n_steps=n_steps, batch_size=8, engine="autograd", policy_kwargs=policy_kwargs)
    )
    batch = model._make_batch()
    perturb(model.policy)
    return model.policy, batch


def pair(
    kind: str, algorithm: type[TrustRegionAlgorithm], **kwargs: Any
) -> tuple[TrustRegionAlgorithm, TrustRegionAlgorithm]:
    """Equal models, closed form then autograd, with equal full buffers and the distributions that acted."""
    reference = fill(model_of(kind, algorithm, engine="autograd", **kwargs))
    closed = model_of(kind, algorithm, engine="closed_form", **kwargs)
    hand_over(reference, closed)
    closed._rollout = replace(reference._rollout, actions=closed.rollout_buffer.actions)
    return closed, reference


def train(*models: TrustRegionAlgorithm) -> None:
    """Train each, with the same minibatches."""
    for model in models:
        np.random.seed(7)
        model.train()
        assert not model.last_update.rollback_reason


def distance(ours: Any, theirs: Any) -> float:
    """The norm of the difference, relative to the norm of the second, in float64."""
    ours, theirs = (th.as_tensor(x).detach().double() for x in (ours, theirs))
    assert ours.shape == theirs.shape
    norm = float(theirs.norm())
    return float((ours - theirs).norm()) / (norm if norm > 0 else 1.0)


def joined(tensors: Iterable[th.Tensor]) -> th.Tensor:
    """One float64 vector."""
    return th.cat([tensor.detach().double().reshape(-1) for tensor in tensors])


def random_slopes(n: int, *names: str) -> PolicyTerms:
    """Random derivatives with respect to these terms."""
    return PolicyTerms(**{name: th.randn(n) for name in names})


def in_float64(policy):
    """A copy in float64; SB3 casts observations to float32 just before its extractor."""
    if policy.use_sde:
        with th.no_grad():  # the noise matrices that it holds hang on a graph, which cannot be copied
            policy.reset_noise()
    policy = copy.deepcopy(policy).double()

    def cast(module, arguments):
        (obs,) = arguments
        return ({k: v.double() for k, v in obs.items()} if isinstance(obs, dict) else obs.double(),)

    policy.features_extractor.register_forward_pre_hook(cast)
    return policy


def explicit_fisher(policy, family, observations, parameters):
    """The mean over states of J^T M J, with J from one backward pass per output."""
    outputs = family.of(policy.get_distribution(observations))
    total = 0
    for output in outputs:
        rows = [th.autograd.grad(o, parameters, retain_graph=True, materialize_grads=True) for o in output]
        jacobian = th.stack([th.cat([g.reshape(-1) for g in row]) for row in rows])
        metric = th.stack([family.fisher(output.detach(), e) for e in th.eye(len(output)).to(output)], 1)
        total = total + jacobian.T @ metric @ jacobian
    return total / len(outputs)
