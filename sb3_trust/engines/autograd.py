"""The reference engine: any policy, any device, through autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import NatureCNN

from sb3_trust.engines.base import Descent, Evaluation, Partition, PolicyEngine
from sb3_trust.engines.batch import Batch
from sb3_trust.engines.torch_stepper import TorchStepper
from sb3_trust.engines.vectors import flatten
from sb3_trust.numerics.objectives import PolicyTerms, RolloutTerms

# more states than this tell no more about which parameters an output depends on
PROBE_SIZE = 256
# states that are evaluated at once where no gradient is asked for, and fewer of them where each is large
CHUNK_SIZE = 1024
CHUNK_ENTRIES = 2**23


def _pairs(outputs: PolicyTerms, derivatives: PolicyTerms) -> tuple[list[th.Tensor], list[th.Tensor]]:
    """
    The outputs that have a derivative and depend on anything trainable, and these derivatives, in order.
    """
    fields = ("log_prob", "entropy", "kl", "values")
    named = [(getattr(outputs, name), getattr(derivatives, name)) for name in fields]
    chosen = [(output, slope) for output, slope in named if slope is not None and output.requires_grad]
    return [output for output, _ in chosen], [slope for _, slope in chosen]


def _chunk_size(batch: Batch) -> int:
    observations = batch.observations
    parts = observations.values() if isinstance(observations, dict) else [observations]
    entries = sum(part.numel() for part in parts) // max(len(batch), 1)
    return max(1, min(CHUNK_SIZE, CHUNK_ENTRIES // max(entries, 1)))


def _detached(terms: PolicyTerms) -> PolicyTerms:
    return PolicyTerms(
        **{name: None if term is None else term.detach() for name, term in vars(terms).items()}
    )


class AutogradEvaluation(Evaluation):
    """Keeps the graph of the terms."""

    def __init__(self, outputs: PolicyTerms) -> None:
        self._outputs = outputs
        self.terms = _detached(outputs)

    def backward(self, derivatives: PolicyTerms) -> None:
        """Add the gradient of what ``derivatives`` belongs to to each parameter's ``.grad``."""
        outputs, slopes = _pairs(self._outputs, derivatives)
        if outputs:
            th.autograd.backward(outputs, slopes)

    def gradient(self, derivatives: PolicyTerms, parameters: list[th.nn.Parameter]) -> list[th.Tensor]:
        outputs, slopes = _pairs(self._outputs, derivatives)
        if not outputs:
            return [th.zeros_like(p) for p in parameters]
        gradients = th.autograd.grad(outputs, parameters, slopes, allow_unused=True)
        return [th.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]


class AutogradEngine(PolicyEngine):
    """Evaluates the policy's own modules and differentiates them with autograd."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__(policy)
        self._partition: Partition | None = None
        self._partition_key: tuple[tuple[int, bool], ...] = ()

    def holds_its_distribution(self, method: str) -> bool:
        """
        Whether, after a call of the policy's ``method``, ``policy.action_dist`` is the distribution that it
        evaluated: true of SB3's own methods. One that a user has overridden may have done anything.
        """
        names = (method, "_get_action_dist_from_latent")
        kind = type(self.policy)
        return all(
            getattr(kind, name) is getattr(ActorCriticPolicy, name) and name not in vars(self.policy)
            for name in names
        )

    def stepper(self, buffer: RolloutBuffer, n_steps: int, watched: bool) -> TorchStepper:
        return TorchStepper(self, buffer)

    def prepared(self, batch: Batch) -> Batch:
        """Images with their channels last in memory, which convolutions on the CPU are fastest on."""
        if self.policy.device.type != "cpu" or not _convolves_by_nature_cnn_alone(self.policy):
            return batch
        observations = batch.observations
        if isinstance(observations, dict):
            return replace(batch, observations={k: _channels_last(v) for k, v in observations.items()})
        return replace(batch, observations=_channels_last(observations))

    def descent(
        self, parameters: list[th.nn.Parameter] | None = None, max_grad_norm: float = math.inf
    ) -> AutogradDescent:
        return AutogradDescent(self, parameters, max_grad_norm)

    def evaluate(self, batch: Batch, needs: Collection[str]) -> AutogradEvaluation:
        return AutogradEvaluation(self._outputs(batch, needs))

    def measure(self, batch: Batch, needs: Collection[str]) -> PolicyTerms:
        with th.no_grad():
            parts = [
                self._outputs(chunk, needs, kl_dtype=th.float64) for chunk in batch.chunks(_chunk_size(batch))
            ]
        columns = {name: [getattr(part, name) for part in parts] for name in vars(parts[0])}
        return PolicyTerms(
            **{name: None if column[0] is None else th.cat(column) for name, column in columns.items()}
        )

    def _outputs(self, batch: Batch, needs: Collection[str], kl_dtype: th.dtype | None = None) -> PolicyTerms:
        terms = PolicyTerms()
        distribution: Distribution | None = None
        if "values" in needs and "log_prob" in needs:
            values, terms.log_prob, entropy = self.policy.evaluate_actions(batch.observations, batch.actions)
            terms.values = values.flatten()
            terms.entropy = entropy
            if "kl" in needs and self.holds_its_distribution("evaluate_actions"):
                distribution = self.policy.action_dist
        elif "values" in needs:
            terms.values = self.policy.predict_values(batch.observations).flatten()
        if "log_prob" in needs and terms.log_prob is None:
            distribution = self.policy.get_distribution(batch.observations)
            terms.log_prob = distribution.log_prob(batch.actions)
            terms.entropy = distribution.entropy() if "entropy" in needs else None
        if "kl" in needs:
            distribution = distribution or self.policy.get_distribution(batch.observations)
            terms.kl = self._kl(batch, distribution, kl_dtype)
        return terms

    def _kl(self, batch: Batch, distribution: Distribution, dtype: th.dtype | None) -> th.Tensor:
        if batch.old_distribution is None:
            raise RuntimeError("the batch holds no old distribution to measure a KL divergence from")
        return self.family.kl(batch.old_distribution.to(dtype), self.family.of(distribution).to(dtype))

    def distribution_parameters(self, batch: Batch) -> th.Tensor:
        with th.no_grad():
            chunks = batch.chunks(_chunk_size(batch))
            return th.cat([self.family.of(self.policy.get_distribution(c.observations)) for c in chunks])

    def fisher_vector_product(self, batch: Batch) -> Callable[[th.Tensor], th.Tensor]:
        """
        ``J^T M J v / n`` with the closed-form metric M of the distribution. ``J v`` is the derivative of the
        vector-Jacobian product ``J^T u`` with respect to ``u``: reverse mode alone, which every module
        supports.
        """
        parameters = self.partition(batch).policy
        outputs = self.family.of(self.policy.get_distribution(batch.observations))
        cotangent = th.zeros_like(outputs, requires_grad=True)
        # J^T u for u = 0, as a graph that is linear in u
        pulled_back = th.autograd.grad(
            outputs, parameters, cotangent, create_graph=True, materialize_grads=True
        )
        fixed = outputs.detach()
        sizes = [p.numel() for p in parameters]

        def product(vector: th.Tensor) -> th.Tensor:
            pieces = [v.view_as(p) for v, p in zip(vector.split(sizes), parameters, strict=True)]
            (tangent,) = th.autograd.grad(pulled_back, cotangent, pieces, retain_graph=True)
            metric_tangent = self.family.fisher(fixed, tangent) / len(batch)
            pulled = th.autograd.grad(
                outputs, parameters, metric_tangent, retain_graph=True, materialize_grads=True
            )
            return flatten(pulled)

        return product

    def partition(self, batch: Batch) -> Partition:
        key = tuple((id(p), p.requires_grad) for p in self.policy.parameters())
        if self._partition is None or key != self._partition_key:
            self._partition, self._partition_key = self._probe(batch), key
        return self._partition

    def _probe(self, batch: Batch) -> Partition:
        """Which trainable parameters the distribution and the value depend on, by asking the graph."""
        trainable = [p for p in self.policy.parameters() if p.requires_grad]
        observations = batch[:PROBE_SIZE].observations
        training = self.policy.training
        self.policy.set_training_mode(False)  # no dropout: no random number is drawn, no buffer moves
        distribution = self.family.of(self.policy.get_distribution(observations))
        of_policy = _influences(distribution, trainable)
        of_value = _influences(self.policy.predict_values(observations), trainable)
        self.policy.set_training_mode(training)
        policy = [p for p, used in zip(trainable, of_policy, strict=True) if used]
        critic = [
            p for p, used, acts in zip(trainable, of_value, of_policy, strict=True) if used and not acts
        ]
        return Partition(policy, critic)


def _convolves_by_nature_cnn_alone(policy: ActorCriticPolicy) -> bool:
    """Another module might not take an image whose memory is in another order, as ``view`` does not."""
    known = {m for kind in policy.modules() if type(kind) is NatureCNN for m in kind.modules()}
    return bool(known) and all(m in known for m in policy.modules() if isinstance(m, th.nn.Conv2d))


def _channels_last(tensor: th.Tensor) -> th.Tensor:
    return tensor.contiguous(memory_format=th.channels_last) if tensor.dim() == 4 else tensor


def _influences(output: th.Tensor, parameters: list[th.nn.Parameter]) -> list[bool]:
    if not output.requires_grad:
        return [False] * len(parameters)
    return [g is not None for g in th.autograd.grad(output.sum(), parameters, allow_unused=True)]


class AutogradDescent(Descent):
    """Steps by ``policy.optimizer`` itself."""

    def __init__(
        self, engine: AutogradEngine, parameters: list[th.nn.Parameter] | None, max_grad_norm: float
    ) -> None:
        self._engine = engine
        self._chosen = parameters
        self._moving = list(engine.policy.parameters()) if parameters is None else parameters
        self._max_grad_norm = max_grad_norm
        self._needs: Collection[str] = ()
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
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for group in self._fused:
            group["fused"] = None

    def minibatches(self, batch: Batch, size: int, needs: Collection[str]) -> list[Batch]:
        self._needs = needs
        return batch.chunks(size)

    def evaluate(self, minibatch: RolloutTerms) -> PolicyTerms:
        assert isinstance(minibatch, Batch)
        self._last = self._engine.evaluate(minibatch, self._needs)
        return self._last.terms

    def step(self, derivatives: PolicyTerms) -> th.Tensor:
        optimizer = self._engine.policy.optimizer
        if self._chosen is None:
            optimizer.zero_grad()
            self._last.backward(derivatives)
        else:
            # no gradient at all for the others: to an optimizer with momentum a zero gradient is a step
            optimizer.zero_grad(set_to_none=True)
            gradients = self._last.gradient(derivatives, self._moving)
            for parameter, gradient in zip(self._moving, gradients, strict=True):
                # laid out as the parameter is: a fused optimizer reads the memory as it lies
                parameter.grad = th.empty_like(parameter).copy_(gradient)
        norm = _NO_NORM
        if self._chosen is None or self._max_grad_norm < math.inf:
            norm = th.nn.utils.clip_grad_norm_(self._moving, self._max_grad_norm)
        optimizer.step()
        return norm


def _may_be_fused(group: dict[str, Any]) -> bool:
    undecided = group.get("fused") is None and group.get("foreach") is None
    return undecided and not (group.get("capturable") or group.get("differentiable"))


_NO_NORM = th.tensor(math.nan)
