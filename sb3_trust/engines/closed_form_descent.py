"""Minibatch steps in closed form, with Adam on flat storage."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th

from sb3_trust.engines.base import Descent, DescentOptions
from sb3_trust.engines.batch import Batch
from sb3_trust.engines.heads import Evaluated
from sb3_trust.engines.networks import FloatArray, Workspace
from sb3_trust.engines.recognition import steps_made
from sb3_trust.numerics.arrays import Array
from sb3_trust.numerics.objectives import PolicyTerms, RolloutTerms

if TYPE_CHECKING:
    from sb3_trust.engines.closed_form import ClosedFormEngine

# of the clipping of gradients, as in torch
NORM_ROUNDING = 1e-6


def slopes(
    evaluated: Evaluated | None,
    outputs: list[FloatArray],
    derivatives: PolicyTerms,
    rows: slice = slice(None),
) -> list[FloatArray]:
    """Derivatives with respect to each network's ``outputs``, [k, n]; none at all counts as zero."""

    def of(term: Array | None) -> np.ndarray | None:
        if isinstance(term, th.Tensor):
            term = term.numpy()
        # a user's objective may have made it float64
        return None if term is None else np.asarray(term[rows], np.float32)

    result = []
    if evaluated is not None:
        log_prob, entropy, kl = map(of, (derivatives.log_prob, derivatives.entropy, derivatives.kl))
        result.append(evaluated.pull_back(log_prob, entropy, kl))
    if len(result) < len(outputs):  # the critic, too
        values = of(derivatives.values)
        result.append(np.zeros_like(outputs[-1]) if values is None else values[None, :])
    return result


@dataclass
class Minibatch:
    """
    A piece of a batch, as the networks take it.

    :param x: inputs with their row of ones, [in + 1, n]
    :param actions: as the head encodes them, [k, n]
    :param old: the old distribution as the head encodes it, [..., n]
    """

    advantages: FloatArray
    returns: FloatArray
    old_values: FloatArray
    old_log_prob: FloatArray
    x: FloatArray
    actions: FloatArray | None
    old: FloatArray | None


class _Moments:
    """
    Adam's state for a part of the flat parameters whose parameters have made the same number of steps.

    :param learning_rate: ``None``: the optimizer's
    """

    def __init__(self, engine: ClosedFormEngine, part: slice, learning_rate: float | None) -> None:
        flat = engine.parameters
        self._optimizer = engine.policy.optimizer
        self._own_rate = learning_rate is not None
        self._members = flat.within(part)
        self._first, self._second = np.zeros_like(flat.values), np.zeros_like(flat.values)
        self._views = {
            id(p): (first, second)
            for (p, first), (_, second) in zip(flat.views(self._first), flat.views(self._second), strict=True)
        }
        self._steps = np.zeros((), np.float32)
        for parameter in self._members:
            if state := self._optimizer.state.get(parameter):
                first, second = self._views[id(parameter)]
                first[...], second[...] = state["exp_avg"].numpy(), state["exp_avg_sq"].numpy()
                self._steps[...] = float(state["step"])
        (group,) = self._optimizer.param_groups
        beta1, beta2 = group["betas"]
        self._options: dict[str, Any] = {
            "lr": float(group["lr"] if learning_rate is None else learning_rate),
            "beta1": float(beta1), "beta2": float(beta2), "eps": group["eps"],
            "weight_decay": group["weight_decay"], "amsgrad": False, "maximize": False,
        }  # fmt: skip
        arrays = (flat.values, flat.gradients, self._first, self._second)
        self._lists = [[th.from_numpy(array[part])] for array in arrays]
        self._step_list = [th.from_numpy(self._steps)]

    def use_learning_rate(self, rate: float) -> None:
        """From the next step on."""
        if not self._own_rate:
            self._options["lr"] = rate

    def step(self) -> None:
        """One step, on the flat parameters, along the flat gradients."""
        self._steps += 1.0
        values, gradients, first, second = self._lists
        th._fused_adam_(values, gradients, first, second, [], self._step_list, **self._options)

    @th.no_grad()
    def write(self) -> None:
        """Give the optimizer this state, parameter by parameter."""
        for parameter in self._members:
            first, second = (th.from_numpy(view) for view in self._views[id(parameter)])
            state = self._optimizer.state[parameter]
            if not state:
                state["step"] = th.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = th.zeros_like(parameter), th.zeros_like(parameter)
            state["step"].fill_(float(self._steps))
            state["exp_avg"].copy_(first)
            state["exp_avg_sq"].copy_(second)


class ClosedFormDescent(Descent):
    """
    Steps on copies of the parameters, which go to the policy and to its optimizer at the end.

    :param engine: evaluates
    """

    def __init__(self, engine: ClosedFormEngine, options: DescentOptions) -> None:
        if options.auxiliary_loss is not None:
            raise RuntimeError("an auxiliary loss is differentiated by autograd")
        self._engine = engine
        self._flat = engine.parameters
        self._options = options
        self._needs: frozenset[str] | None = None
        self._moments: list[_Moments] = []
        self._workspaces: dict[int, Workspace] = {}
        self._flat.read()

    def _prepare(self, needs: Collection[str]) -> None:
        """The networks that the needed terms come from are those that move."""
        if self._needs == needs:
            return
        if self._needs is not None:
            raise RuntimeError("a descent is on one objective")
        self._needs = frozenset(needs)
        flat = self._flat
        self._networks = self._engine.networks(needs)
        self._acts, self._judges = flat.actor in self._networks, flat.critic in self._networks
        parts = [flat.actor_part] * self._acts + [flat.critic_part] * self._judges
        self._part = slice(parts[0].start, parts[-1].stop)
        self._gradient = flat.gradients[self._part]
        optimizer, critic_rate = self._engine.policy.optimizer, self._options.critic_learning_rate
        in_step = len({steps_made(optimizer, flat.within(part)[0]) for part in parts}) == 1
        if in_step and (critic_rate is None or len(parts) == 1):
            parts = [self._part]
        rates = [critic_rate if part == flat.critic_part else None for part in parts]
        self._moments = [_Moments(self._engine, part, rate) for part, rate in zip(parts, rates, strict=True)]

    def __enter__(self) -> ClosedFormDescent:
        self._quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")
        self._quiet.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._quiet.__exit__(kind, None, None)
        if kind is None and self._needs is not None:
            self.synchronize()
            for moments in self._moments:
                moments.write()

    def use_learning_rate(self, rate: float) -> None:
        for group in self._engine.policy.optimizer.param_groups:
            group["lr"] = rate
        for moments in self._moments:
            moments.use_learning_rate(rate)

    def synchronize(self) -> None:
        if self._needs is not None:
            self._flat.write(self._part)

    def minibatches(self, batch: Batch, size: int, needs: Collection[str]) -> list[RolloutTerms]:
        self._prepare(needs)
        head, observations = self._engine.head, batch.observations
        assert not isinstance(observations, dict)
        inputs = _columns(self._engine.encoder.rows(observations.numpy()), size, ones=True)
        count = len(inputs)
        actions = _columns(head.encode(batch.actions), size) if self._acts else [None] * count
        old: list[FloatArray] | list[None] = [None] * count
        if "kl" in needs and batch.old_distribution is not None:
            old = _columns(head.encode_old(batch.old_distribution), size)
        terms = (batch.advantages, batch.returns, batch.old_values, batch.old_log_prob)
        starts = range(0, len(batch), size)
        split = ([a[start : start + size] for start in starts] for a in (t.numpy() for t in terms))
        pieces = zip(*split, inputs, actions, old, strict=True)
        return [Minibatch(*piece) for piece in pieces]

    def evaluate(self, minibatch: RolloutTerms) -> PolicyTerms:
        assert isinstance(minibatch, Minibatch) and self._needs is not None
        n = minibatch.x.shape[1]
        workspace = self._workspaces.get(n)
        if workspace is None:
            workspace = self._workspaces[n] = Workspace(self._networks, n, differentiable=True)
        outputs = workspace.forward(minibatch.x)
        terms = PolicyTerms()
        evaluated: Evaluated | None = None
        if minibatch.actions is not None:
            evaluated = self._engine.head.evaluate(outputs[0], minibatch.actions, minibatch.old, self._needs)
            terms.log_prob, terms.entropy, terms.kl = evaluated.log_prob, evaluated.entropy, evaluated.kl
        if self._judges:
            terms.values = outputs[-1][0].copy()
        self._last = minibatch, workspace, evaluated
        return terms

    def step(self, derivatives: PolicyTerms) -> float:
        minibatch, workspace, evaluated = self._last
        workspace.backward(minibatch.x, slopes(evaluated, workspace.outputs, derivatives))
        gradient = self._gradient
        norm = math.sqrt(np.vdot(gradient, gradient))
        scale = self._options.max_grad_norm / (norm + NORM_ROUNDING)
        if not scale >= 1.0:
            np.multiply(gradient, scale, gradient)
        for moments in self._moments:
            moments.step()
        if self._acts and self._options.log_std_bounds is not None:
            np.clip(self._flat.log_std, *self._options.log_std_bounds, out=self._flat.log_std)
        return norm


def _columns(rows: FloatArray, size: int, ones: bool = False) -> list[FloatArray]:
    """Rows [n, k] in pieces of a size, each with samples as columns, [k, size], above a row of ones."""
    n, k = rows.shape
    count = n // size
    pieces = np.ones((count, k + ones, size), np.float32)
    pieces[:, :k] = rows[: count * size].reshape(count, size, k).transpose(0, 2, 1)
    result = list(pieces)
    if n % size:
        rest = np.ones((k + ones, n % size), np.float32)
        rest[:k] = rows[count * size :].T
        result.append(rest)
    return result
