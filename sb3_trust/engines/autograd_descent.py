"""Minibatch steps through autograd."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

from sb3_trust.engines.autograd_evaluation import AutogradEvaluation
from sb3_trust.engines.base import Descent, DescentOptions, Partition
from sb3_trust.engines.batch import Batch
from sb3_trust.numerics.objectives import PolicyTerms, RolloutTerms

if TYPE_CHECKING:
    from sb3_trust.engines.autograd import AutogradEngine

_NO_NORM = th.tensor(math.nan)


class AutogradDescent(Descent):
    """
    Steps by ``policy.optimizer`` itself.

    :param partition: of the policy's parameters, where it matters
    :param critic_only: only the critic's own move
    """

    def __init__(
        self,
        engine: AutogradEngine,
        partition: Partition | None,
        options: DescentOptions,
        critic_only: bool,
    ) -> None:
        self._engine = engine
        self._partition = partition
        self._options = options
        self._critic_only = critic_only
        self._moving = list(engine.policy.parameters())
        if critic_only and partition is not None:
            self._moving = partition.critic_only
        self._log_std = getattr(engine.policy, "log_std", None) if options.log_std_bounds else None
        self._groups: list[dict[str, Any]] = []
        self._needs: Collection[str] = ()
        self._on_features = False
        self._fused: list[dict[str, Any]] = []

    def __enter__(self) -> AutogradDescent:
        """
        Have plain Adam on the CPU step all parameters in one call instead of a dozen each; its own choice is
        made for GPUs alone.
        """
        optimizer, policy = self._engine.policy.optimizer, self._engine.policy
        plain = type(optimizer) is th.optim.Adam and policy.device.type == "cpu"
        if plain and all(p.dtype is th.float32 for p in policy.parameters()):
            self._fused = [group for group in optimizer.param_groups if _may_be_fused(group)]
        for group in self._fused:
            group["fused"] = True
        rate = self._options.critic_learning_rate
        if self._partition is not None and rate is not None:
            # a saved model has SB3's single group: those of the critic live as long as this descent
            self._groups = list(optimizer.param_groups)
            critic = {id(p) for p in self._partition.critic_only}
            for group in self._groups:
                others = [p for p in group["params"] if id(p) not in critic]
                own = [p for p in group["params"] if id(p) in critic]
                optimizer.param_groups += [{**group, "params": others}, {**group, "params": own, "lr": rate}]
            del optimizer.param_groups[: len(self._groups)]
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._groups:
            self._engine.policy.optimizer.param_groups[:] = self._groups
        for group in self._fused:
            group["fused"] = None

    def use_learning_rate(self, rate: float) -> None:
        groups = self._engine.policy.optimizer.param_groups
        # where they are split, every second one is the critic's
        for group in [*self._groups, *(groups[::2] if self._groups else groups)]:
            group["lr"] = rate

    @th.no_grad()
    def prepared(self, batch: Batch) -> Batch:
        """With the critic's features for observations, where they do not move and cost something."""
        policy = self._engine.policy
        extractor = policy.vf_features_extractor
        own = {id(p) for p in extractor.parameters()}
        methods = all(
            getattr(type(policy), name) is getattr(ActorCriticPolicy, name) and name not in vars(policy)
            for name in ("predict_values", "extract_features")
        )
        if not own or policy.training or not methods or any(id(p) in own for p in self._moving):
            return batch
        chunks = [chunk.observations for chunk in self._engine.chunks(batch)]
        features = [BasePolicy.extract_features(policy, chunk, extractor) for chunk in chunks]
        if not all(isinstance(part, th.Tensor) for part in features) or sum(map(len, features)) != len(batch):
            return batch
        self._on_features = True
        return replace(batch, observations=th.cat(features))

    def minibatches(self, batch: Batch, size: int, needs: Collection[str]) -> list[Batch]:
        self._needs = needs
        return batch.chunks(size)

    def evaluate(self, minibatch: RolloutTerms) -> PolicyTerms:
        assert isinstance(minibatch, Batch)
        self._minibatch = minibatch
        if self._on_features:
            policy = self._engine.policy
            latent = policy.mlp_extractor.forward_critic(minibatch.observations)  # type: ignore[arg-type]
            self._last = AutogradEvaluation(PolicyTerms(values=policy.value_net(latent).flatten()))
        else:
            self._last = self._engine.evaluate(minibatch, self._needs)
        return self._last.terms

    def step(self, derivatives: PolicyTerms) -> th.Tensor:
        optimizer = self._engine.policy.optimizer
        if not self._critic_only:
            optimizer.zero_grad()
            self._last.backward(derivatives)
            if self._options.auxiliary_loss is not None:
                self._options.auxiliary_loss(self._minibatch).backward()  # type: ignore[no-untyped-call]
        else:
            # no gradient at all for the others: to an optimizer with momentum a zero gradient is a step
            optimizer.zero_grad(set_to_none=True)
            gradients = self._last.gradient(derivatives, self._moving)
            for parameter, gradient in zip(self._moving, gradients, strict=True):
                # laid out as the parameter is: a fused optimizer reads the memory as it lies
                parameter.grad = th.empty_like(parameter).copy_(gradient)
        norm = _NO_NORM
        if not self._critic_only or self._options.max_grad_norm < math.inf:
            norm = th.nn.utils.clip_grad_norm_(self._moving, self._options.max_grad_norm)
        optimizer.step()
        if self._log_std is not None and not self._critic_only:
            with th.no_grad():
                self._log_std.clamp_(*self._options.log_std_bounds)  # type: ignore[misc]
        return norm


def _may_be_fused(group: dict[str, Any]) -> bool:
    undecided = group.get("fused") is None and group.get("foreach") is None
    return undecided and not (group.get("capturable") or group.get("differentiable"))
