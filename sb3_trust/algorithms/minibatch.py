"""Epochs of minibatch gradient steps on an objective: what PPO and PPOPenalty share."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.utils import obs_as_tensor

from sb3_trust.algorithms.arguments import check_minibatch
from sb3_trust.algorithms.base import TrustRegionAlgorithm
from sb3_trust.algorithms.epochs import Epoch, Refusal, run_epoch
from sb3_trust.algorithms.statistics import MinibatchStatistics, UndoneUpdate, UpdateStatistics, finite
from sb3_trust.algorithms.step_back import SegmentToOldPolicy
from sb3_trust.engines.base import Descent
from sb3_trust.engines.batch import Batch
from sb3_trust.errors import check_boolean, check_integer, check_number, check_optional, reject
from sb3_trust.numerics.losses import OF_OBJECTIVE
from sb3_trust.numerics.objectives import Objective, required
from sb3_trust.rollout import generalized_advantages


class MinibatchAlgorithm(TrustRegionAlgorithm):
    """
    Several epochs of optimizer steps over shuffled minibatches of a rollout.

    A subclass says which objective a rollout has, and may stop the epochs early.

    :param max_kl: where the exact KL(old || new) of the rollout is above this after the last epoch, the
        policy is moved back along the segment to the old parameters until it is not; ``None``: never
    :param recompute_advantages: estimate advantages and returns anew before each epoch but the first, from
        the values as they then are (Andrychowicz et al. 2021, section 3.5)
    """

    batch_size: int
    n_epochs: int
    normalize_advantage: bool
    statistics_class: ClassVar[type[MinibatchStatistics]]

    def __init__(
        self, *args: Any, max_kl: float | None = None, recompute_advantages: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.max_kl = max_kl
        self.recompute_advantages = recompute_advantages

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_minibatch(self, self.batch_size, self.normalize_advantage, per_minibatch=True)
        check_integer("n_epochs", self.n_epochs, 1)
        check_number("vf_coef", self.vf_coef)
        check_number("max_grad_norm", self.max_grad_norm, open_minimum=True, allow_infinity=True)
        check_optional(check_number, "max_kl", self.max_kl, open_minimum=True)
        check_boolean("recompute_advantages", self.recompute_advantages)
        known = (None, RolloutBuffer, DictRolloutBuffer)
        if self.recompute_advantages and self.rollout_buffer_class not in known:
            raise reject("recompute_advantages", True, "False with a `rollout_buffer_class` of your own")

    # ---- the user's own loss -----------------------------------------------------------------------------

    def auxiliary_loss(self, batch: Batch) -> th.Tensor:
        """
        A loss of your own, added to each minibatch's; override it in a subclass. The policy is then
        evaluated and differentiated by autograd.

        :param batch: the minibatch; observations and actions as ``policy.evaluate_actions`` takes them
        :return: a scalar that depends on the policy's parameters
        """
        raise NotImplementedError

    @property
    def _has_auxiliary_loss(self) -> bool:
        own = getattr(self.auxiliary_loss, "__func__", None)
        return own is not MinibatchAlgorithm.auxiliary_loss

    def _wanted_engine(self) -> str:
        if not self._has_auxiliary_loss:
            return self.engine
        if self.engine == "closed_form":
            raise reject("engine", self.engine, '"auto" or "autograd" with an `auxiliary_loss` of your own')
        return "autograd"

    # ---- updating ----------------------------------------------------------------------------------------

    @abstractmethod
    def _objective(self) -> Objective:
        """The loss of this rollout's minibatches."""

    def _refusal(self, epoch: int) -> Refusal | None:
        """What may end the update before a minibatch's step in this epoch."""
        return None

    def _ends_after(self, epoch: int, descent: Descent, batch: Batch) -> bool:
        """Whether the update ends with this epoch."""
        return False

    def _update(self, batch: Batch) -> MinibatchStatistics:
        objective, engine = self._objective(), self._policy_engine()
        segment = None if self.max_kl is None else SegmentToOldPolicy(engine, batch)
        auxiliary: list[th.Tensor] = []
        options = self._descent_options(self.max_grad_norm)
        if self._has_auxiliary_loss:
            options = replace(options, auxiliary_loss=self._recorded_auxiliary_loss(auxiliary))
        self.policy.set_training_mode(True)
        epochs: list[Epoch] = []
        with engine.descent(batch, options) as descent:
            for number in range(self.n_epochs):
                if number and self.recompute_advantages:
                    batch = self._with_new_advantages(descent, batch)
                refusal = self._refusal(number)
                epoch = run_epoch(
                    descent, objective, batch, self.batch_size, self.normalize_advantage, refusal
                )
                epochs.append(epoch)
                self._n_updates += 1
                if epoch.stopped or self._ends_after(number, descent, batch):
                    break
        statistics = self._summarize(epochs)
        if any(epoch.gradient_norms for epoch in epochs):
            finite("gradient", statistics.gradient_norm)
        if auxiliary:
            statistics.auxiliary_loss = th.stack(auxiliary).mean(dtype=th.float64).item()
        if segment is not None and self.max_kl is not None:
            self.policy.set_training_mode(False)
            statistics.step_fraction, statistics.kl_of_full_step = segment.step_back(self.max_kl)
        return statistics

    def _recorded_auxiliary_loss(self, values: list[th.Tensor]) -> Any:
        def loss(batch: Batch) -> th.Tensor:
            value = self.auxiliary_loss(batch)
            if not isinstance(value, th.Tensor) or value.dim() > 0 or not value.requires_grad:
                raise ValueError(
                    "`auxiliary_loss` must return a scalar tensor that depends on the policy's parameters, "
                    f"but returned {value!r}"
                )
            values.append(value.detach())
            return value

        return loss

    def _exact_kl(self, descent: Descent, batch: Batch) -> float:
        """KL(old || new) over the rollout between two epochs, of the policy that acts."""
        descent.synchronize()
        self.policy.set_training_mode(False)
        kl = required(self._policy_engine().measure(batch, {"kl"}).kl).mean().item()
        self.policy.set_training_mode(True)
        return kl

    @th.no_grad()
    def _with_new_advantages(self, descent: Descent, batch: Batch) -> Batch:
        """The batch with advantages and returns from the present values of its states."""
        descent.synchronize()
        self.policy.set_training_mode(False)
        flat = required(self._policy_engine().measure(batch, {"values"}).values)
        last_values = self.policy.predict_values(obs_as_tensor(self._last_obs, self.device))  # type: ignore
        self.policy.set_training_mode(True)
        buffer = self.rollout_buffer
        values = flat.cpu().numpy().reshape(buffer.n_envs, -1).T
        assert self._last_episode_starts is not None
        advantages = generalized_advantages(buffer, values, last_values, self._last_episode_starts)
        returns = advantages + values
        columns = (th.from_numpy(x.T.reshape(-1)).to(self.device) for x in (advantages, returns))
        return replace(batch, **dict(zip(("advantages", "returns"), columns, strict=True)))

    def _summarize(self, epochs: list[Epoch]) -> MinibatchStatistics:
        """
        Means over minibatches, read from the device once. The approximate KL divergence is the last epoch's
        and the loss the last minibatch's, as SB3 logs them.
        """
        table = {}
        for name in epochs[0].statistics[0]:
            pieces = [[piece[name] for piece in epoch.statistics] for epoch in epochs]
            if name == "approx_kl":
                pieces = pieces[-1:]
            column = th.cat([piece for epoch in pieces for piece in epoch])
            table[name] = column[-1].double() if name == "loss" else column.mean(dtype=th.float64)
        norms = [th.as_tensor(norm, device=self.device) for epoch in epochs for norm in epoch.gradient_norms]
        table["gradient_norm"] = th.stack(norms).mean(dtype=th.float64) if norms else th.tensor(math.nan)
        values = th.stack([value.to(self.device) for value in table.values()]).cpu().tolist()
        named = dict(zip(table, values, strict=True))
        own = {name: named.pop(name) for name in [*named] if name.startswith(OF_OBJECTIVE)}
        of_objective = {name.removeprefix(OF_OBJECTIVE): value for name, value in own.items()}
        return self.statistics_class(**named, of_objective=of_objective)

    def _after_update(self, statistics: UpdateStatistics, n_samples: int) -> None:
        # a module that changes its buffers as it is trained moves the policy with all parameters as they were
        moved = getattr(statistics, "step_fraction", 0.0) != 0.0 or any(True for _ in self.policy.buffers())
        if self.max_kl is not None and moved and statistics.kl > self.max_kl:
            raise UndoneUpdate("kl above max_kl")
