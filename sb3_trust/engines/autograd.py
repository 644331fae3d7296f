"""The reference engine: any policy, any device, through autograd."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import NatureCNN

from sb3_trust.engines.autograd_descent import AutogradDescent
from sb3_trust.engines.autograd_evaluation import AutogradEvaluation
from sb3_trust.engines.base import DescentOptions, Partition, PolicyEngine
from sb3_trust.engines.batch import Batch
from sb3_trust.engines.fisher import fisher_product
from sb3_trust.engines.torch_stepper import TorchStepper
from sb3_trust.numerics.objectives import PolicyTerms, joined

# more states than this tell no more about which parameters an output depends on
PROBE_SIZE = 256
# states that are evaluated at once where no gradient is asked for, and fewer of them where each is large
CHUNK_SIZE = 1024
CHUNK_ENTRIES = 2**23


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

    def descent(self, batch: Batch, options: DescentOptions, critic_only: bool = False) -> AutogradDescent:
        split = critic_only or options.critic_learning_rate is not None
        return AutogradDescent(self, self.partition(batch) if split else None, options, critic_only)

    def chunks(self, batch: Batch) -> list[Batch]:
        """A batch in pieces that are evaluated at once where no graph is kept."""
        observations = batch.observations
        parts = observations.values() if isinstance(observations, dict) else [observations]
        entries = sum(part.numel() for part in parts) // max(len(batch), 1)
        return batch.chunks(max(1, min(CHUNK_SIZE, CHUNK_ENTRIES // max(entries, 1))))

    def evaluate(self, batch: Batch, needs: Collection[str]) -> AutogradEvaluation:
        return AutogradEvaluation(self._outputs(batch, needs))

    def measure(self, batch: Batch, needs: Collection[str]) -> PolicyTerms:
        with th.no_grad():
            parts = [self._outputs(chunk, needs, kl_dtype=th.float64) for chunk in self.chunks(batch)]
        return joined(parts, th.cat)

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
            chunks = self.chunks(batch)
            return th.cat([self.family.of(self.policy.get_distribution(c.observations)) for c in chunks])

    def fisher_vector_product(self, batch: Batch, once: bool = False) -> Callable[[th.Tensor], th.Tensor]:
        parameters = self.partition(batch).policy
        return fisher_product(self.policy, self.family, batch, self.chunks(batch), parameters, once)

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
