"""The fast engine: policies that are two multilayer perceptrons, on the CPU, in closed form with NumPy."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trust.engines.autograd import AutogradEngine
from sb3_trust.engines.base import DescentOptions, Evaluation, Partition, PolicyEngine, Stepper
from sb3_trust.engines.batch import Batch
from sb3_trust.engines.closed_form_descent import ClosedFormDescent, slopes
from sb3_trust.engines.closed_form_stepper import ClosedFormStepper
from sb3_trust.engines.discrete_heads import BernoulliHead, CategoricalHead
from sb3_trust.engines.distributions import CategoricalFamily, DistributionFamily, GaussianFamily
from sb3_trust.engines.flat_parameters import FlatParameters
from sb3_trust.engines.gaussian_head import GaussianHead
from sb3_trust.engines.heads import Evaluated, Head
from sb3_trust.engines.networks import (
    IGNORE_OVERFLOW,
    FloatArray,
    Linearization,
    Network,
    Workspace,
    with_ones,
)
from sb3_trust.engines.recognition import Perceptrons
from sb3_trust.engines.threads import one_thread
from sb3_trust.numerics.objectives import PolicyTerms

# samples that are evaluated at once: their activations stay in the processor's cache
CHUNK_SIZE = 512
OF_THE_ACTOR = frozenset({"log_prob", "entropy", "kl"})


def head_of(family: DistributionFamily, parameters: FlatParameters, policy: ActorCriticPolicy) -> Head:
    """The NumPy side of a distribution family."""
    if isinstance(family, GaussianFamily):
        return GaussianHead(parameters.log_std, parameters.log_std_gradient)
    if isinstance(family, CategoricalFamily):
        return CategoricalHead(family.sizes, flat=not policy.action_space.shape)
    return BernoulliHead(parameters.actor.n_outputs)


class ClosedFormEngine(PolicyEngine):
    """
    Evaluates and differentiates two multilayer perceptrons without autograd, in float32.

    :param policy: the policy
    :param perceptrons: what it was recognized as
    """

    def __init__(self, policy: ActorCriticPolicy, perceptrons: Perceptrons) -> None:
        super().__init__(policy)
        self.perceptrons = perceptrons
        self.encoder = perceptrons.encoder
        self.parameters = FlatParameters(perceptrons)
        self.head = head_of(self.family, self.parameters, policy)

    def stepper(self, buffer: RolloutBuffer, n_steps: int, watched: bool) -> Stepper:
        if type(buffer) is not RolloutBuffer or "add" in vars(buffer):
            # it may want to see each step, or hold something else
            return AutogradEngine(self.policy).stepper(buffer, n_steps, watched)
        return ClosedFormStepper(self, buffer, n_steps, watched)

    def threads(self) -> AbstractContextManager[None]:
        return one_thread()

    def descent(self, batch: Batch, options: DescentOptions, critic_only: bool = False) -> ClosedFormDescent:
        # the networks share nothing: the terms that are asked for say which moves
        return ClosedFormDescent(self, options)

    def partition(self, batch: Batch) -> Partition:
        critic = {id(p) for p in self.parameters.within(self.parameters.critic_part)}
        ordered = list(self.policy.parameters())
        return Partition([p for p in ordered if id(p) not in critic], [p for p in ordered if id(p) in critic])

    def inputs(self, batch: Batch) -> list[FloatArray]:
        """A batch's observations as inputs with their row of ones, chunk by chunk: [in + 1, n]."""
        observations = batch.observations
        if isinstance(observations, dict):
            raise TypeError("a perceptron has no dictionary of observations")
        rows = self.encoder.rows(observations.numpy())
        return [with_ones(rows[start : start + CHUNK_SIZE]) for start in range(0, len(rows), CHUNK_SIZE)]

    def networks(self, needs: Collection[str]) -> list[Network]:
        """Which networks give these terms."""
        actor = [self.parameters.actor] if OF_THE_ACTOR & set(needs) else []
        return actor + ([self.parameters.critic] if "values" in needs else [])

    @IGNORE_OVERFLOW
    def evaluate(self, batch: Batch, needs: Collection[str]) -> ClosedFormEvaluation:
        self.parameters.read()
        return ClosedFormEvaluation(self, batch, needs)

    @IGNORE_OVERFLOW
    def measure(self, batch: Batch, needs: Collection[str]) -> PolicyTerms:
        self.parameters.read()
        terms = PolicyTerms()
        outputs = dict(zip(self._names(needs), self._forward(batch, needs), strict=True))
        if "values" in outputs:
            terms.values = th.from_numpy(outputs["values"]).flatten()
        if "actor" in outputs:
            logits = outputs["actor"]
            distribution = th.from_numpy(self.head.parameters(logits))
            if "log_prob" in needs:
                actions = self.head.encode(batch.actions)
                log_prob = self.head.evaluate(logits.T, actions.T, None, {"log_prob"}).log_prob
                terms.log_prob = None if log_prob is None else th.from_numpy(log_prob)
            if "entropy" in needs:
                terms.entropy = self.family.entropy(distribution)
            if "kl" in needs:
                if batch.old_distribution is None:
                    raise RuntimeError("the batch holds no old distribution to measure a KL divergence from")
                terms.kl = self.family.kl(batch.old_distribution.double(), distribution.double())
        return terms

    def _names(self, needs: Collection[str]) -> list[str]:
        networks = self.networks(needs)
        return ["actor" if net is self.parameters.actor else "values" for net in networks]

    def _forward(self, batch: Batch, needs: Collection[str]) -> list[FloatArray]:
        """Each network's outputs on the whole batch, [n, k]."""
        networks = self.networks(needs)
        results = [np.empty((len(batch), net.n_outputs), np.float32) for net in networks]
        workspace: Workspace | None = None
        start = 0
        for x in self.inputs(batch):
            stop = start + x.shape[1]
            if workspace is None or workspace.n != x.shape[1]:
                workspace = Workspace(networks, x.shape[1], differentiable=False)
            for result, output in zip(results, workspace.forward(x), strict=True):
                result[start:stop] = output.T
            start = stop
        return results

    @IGNORE_OVERFLOW
    def values(self, rows: FloatArray) -> FloatArray:
        """Values of rows of inputs, [n, n_inputs] to [n]; the parameters are not read anew."""
        values = np.empty(len(rows), np.float32)
        workspace: Workspace | None = None
        for start in range(0, len(rows), CHUNK_SIZE):
            x = with_ones(rows[start : start + CHUNK_SIZE])
            if workspace is None or workspace.n != x.shape[1]:
                workspace = Workspace([self.parameters.critic], x.shape[1], differentiable=False)
            values[start : start + x.shape[1]] = workspace.forward(x)[0][0]
        return values

    def distribution_parameters(self, batch: Batch) -> th.Tensor:
        self.parameters.read()
        return th.from_numpy(self.head.parameters(self._forward(batch, {"log_prob"})[0]))

    @IGNORE_OVERFLOW
    def fisher_vector_product(self, batch: Batch, once: bool = False) -> Callable[[th.Tensor], th.Tensor]:
        self.parameters.read()
        flat, n = self.parameters, len(batch)
        chunks = [Linearization(flat.actor, x) for x in self.inputs(batch)]
        metrics = [self.head.metric(chunk.outputs) for chunk in chunks]
        change, pulled = np.zeros_like(flat.values), np.zeros_like(flat.values)
        changes, gradients = (
            [th.from_numpy(matrix) for matrix in flat.actor_matrices(array)] for array in (change, pulled)
        )
        places = {id(p): view for p, view in flat.views(np.arange(len(change)))}
        order = np.concatenate([places[id(p)].ravel() for p in self.partition(batch).policy])

        @IGNORE_OVERFLOW
        def product(vector: th.Tensor) -> th.Tensor:
            change[order] = vector.numpy()
            pulled.fill(0.0)
            for chunk, metric in zip(chunks, metrics, strict=True):
                slope = metric(chunk.tangent(changes).numpy())
                chunk.pull_back(th.from_numpy(slope), gradients)
            np.divide(pulled, n, pulled)
            if flat.log_std.size:
                pulled[flat.log_std_slice] = 2.0 * change[flat.log_std_slice]
            return th.from_numpy(pulled[order])

        return product


class ClosedFormEvaluation(Evaluation):
    """
    Keeps the activations of each chunk; the way back is to be taken before the parameters change.
    """

    def __init__(self, engine: ClosedFormEngine, batch: Batch, needs: Collection[str]) -> None:
        self._engine = engine
        networks = engine.networks(needs)
        self._of_actor, self._of_critic = bool(OF_THE_ACTOR & set(needs)), "values" in needs
        self._chunks: list[tuple[FloatArray, Workspace, Evaluated | None]] = []
        actions = engine.head.encode(batch.actions) if self._of_actor else None
        old = None
        if "kl" in needs and batch.old_distribution is not None:
            old = engine.head.encode_old(batch.old_distribution)
        start = 0
        for x in engine.inputs(batch):
            rows = slice(start, start + x.shape[1])
            workspace = Workspace(networks, x.shape[1], differentiable=True)
            outputs = workspace.forward(x)
            evaluated = None
            if actions is not None:
                previous = None if old is None else old[rows].T
                evaluated = engine.head.evaluate(outputs[0], actions[rows].T, previous, needs)
            self._chunks.append((x, workspace, evaluated))
            start = rows.stop
        self.terms = PolicyTerms(
            **{name: self._joined(name) for name in ("log_prob", "entropy", "kl") if name in needs}
        )
        if self._of_critic:
            values = np.concatenate([workspace.outputs[-1][0] for _, workspace, _ in self._chunks])
            self.terms.values = th.from_numpy(values)

    def _joined(self, name: str) -> th.Tensor | None:
        parts = [getattr(evaluated, name) for _, _, evaluated in self._chunks]
        return None if parts[0] is None else th.from_numpy(np.concatenate(parts))

    def gradient(self, derivatives: PolicyTerms, parameters: list[th.nn.Parameter]) -> list[th.Tensor]:
        flat = self._engine.parameters
        total = np.zeros(len(flat.values))
        start = 0
        for x, workspace, evaluated in self._chunks:
            rows = slice(start, start + workspace.n)
            flat.gradients.fill(0.0)
            workspace.backward(x, slopes(evaluated, workspace.outputs, derivatives, rows))
            total += flat.gradients
            start = rows.stop
        views = {id(p): view for p, view in flat.views(total.astype(np.float32))}
        return [th.from_numpy(views[id(p)].copy()) for p in parameters]
