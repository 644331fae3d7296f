"""What an update did."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from sb3_trust.numerics.losses import OF_OBJECTIVE

# an infinite divergence of a step that was taken back still says that it was too large
LARGEST_KL = 1e30


class UndoneUpdate(Exception):
    """An update cannot be trusted and is to be rolled back; its argument says why."""

    @property
    def message(self) -> str:
        """The reason in words."""
        return str(self)


class NonFiniteUpdate(UndoneUpdate):
    """A quantity of an update turned out NaN or infinite."""

    @property
    def message(self) -> str:
        return f"non-finite {self}"


def finite(name: str, value: float) -> float:
    """
    :raises NonFiniteUpdate: unless ``value`` is finite
    """
    if not math.isfinite(value):
        raise NonFiniteUpdate(name)
    return value


@dataclass
class UpdateStatistics:
    """
    One update in numbers; ``nan`` where a quantity does not apply. Each field is logged under ``train/``.

    :param kl: KL(old || new), exact, summed over action dimensions, averaged over the rollout's states
    :param kl_max: the largest KL(old || new) at any state of the rollout
    :param target_kl: the KL divergence that the update was to keep to, or to aim at
    :param entropy: mean entropy of the new policy; under a squashed Gaussian, estimated from the rollout's
        actions
    :param value_loss: mean squared error of the value function
    :param explained_variance: share of the returns' variance that the rollout's values explain
    :param std: mean standard deviation parameter of a Gaussian policy
    :param n_updates: epochs (PPO, PPOPenalty) or updates (the others) since the start of training, as SB3
        counts them
    :param rollbacks: updates undone since the start of training, because something was NaN or infinite or a
        bound was not kept
    :param rollback_reason: what it was, if this update was rolled back
    """

    kl: float = 0.0
    kl_max: float = 0.0
    target_kl: float = math.nan
    entropy: float = math.nan
    value_loss: float = math.nan
    explained_variance: float = math.nan
    std: float = math.nan
    n_updates: int = 0
    rollbacks: int = 0
    rollback_reason: str = ""

    def log_items(self) -> dict[str, float | int | str]:
        """Names and values to log: every field that applies."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        aliases = {alias: values[name] for name, alias in self.log_aliases().items()}
        applicable = {**values, **aliases}
        return {
            name: value
            for name, value in applicable.items()
            if not (
                value == ""
                or (isinstance(value, float) and math.isnan(value) and name != "explained_variance")
            )
        }

    def log_names(self) -> set[str]:
        """All names under which something may be logged."""
        return {item.name for item in fields(self)} | set(self.log_aliases().values())

    def log_aliases(self) -> dict[str, str]:
        """Fields that are logged a second time under the name that the peers' users know."""
        return {}


@dataclass
class MinibatchStatistics(UpdateStatistics):
    """
    An update by epochs of minibatches.

    :param policy_loss: mean over minibatches of the policy's loss
    :param entropy_loss: mean over minibatches of the negative entropy
    :param loss: the last minibatch's total loss
    :param approx_kl: the sample estimate of KL(old || new), mean over the last epoch's minibatches, as SB3
        logs it
    :param gradient_norm: mean over minibatches of the global gradient norm before clipping
    :param auxiliary_loss: mean over minibatches of the user's auxiliary loss
    :param of_objective: means over minibatches of the statistics of the user's objective, by name; each is
        logged under that after ``objective/``
    :param step_fraction: how much of the policy's step stands after it was taken back to ``max_kl``
    :param kl_of_full_step: KL(old || new) before it was taken back: what adaptive coefficients go by
    """

    policy_loss: float = math.nan
    entropy_loss: float = math.nan
    loss: float = math.nan
    approx_kl: float = math.nan
    gradient_norm: float = math.nan
    auxiliary_loss: float = math.nan
    of_objective: dict[str, float] = field(default_factory=dict)
    step_fraction: float = math.nan
    kl_of_full_step: float = math.nan

    @property
    def reached_kl(self) -> float:
        """KL(old || new) that the steps of the optimizer came to."""
        return self.kl if math.isnan(self.kl_of_full_step) else min(self.kl_of_full_step, LARGEST_KL)

    def log_aliases(self) -> dict[str, str]:
        return {"policy_loss": "policy_gradient_loss"}

    def log_items(self) -> dict[str, float | int | str]:
        items = super().log_items()
        items.pop("of_objective", None)
        own = {OF_OBJECTIVE + name: v for name, v in self.of_objective.items() if not math.isnan(v)}
        return {**items, **own}


@dataclass
class PPOStatistics(MinibatchStatistics):
    """
    :param clip_fraction: share of samples whose ratio was outside the clip range
    :param clip_range: the clip range
    :param clip_range_vf: the clip range of the value function
    """

    clip_fraction: float = math.nan
    clip_range: float = math.nan
    clip_range_vf: float = math.nan


@dataclass
class PPOPenaltyStatistics(MinibatchStatistics):
    """
    :param surrogate_loss: mean over minibatches of the negative surrogate, without the penalty
    :param penalty: mean over minibatches of the penalty, hinge included
    :param kl_coef: the coefficient that this update used
    """

    surrogate_loss: float = math.nan
    penalty: float = math.nan
    kl_coef: float = math.nan


@dataclass
class REINFORCEStatistics(UpdateStatistics):
    """
    :param policy_loss: mean over gradient steps of the policy's loss before each
    :param gradient_norm: mean over gradient steps of the gradient's norm before clipping
    """

    policy_loss: float = math.nan
    gradient_norm: float = math.nan

    def log_aliases(self) -> dict[str, str]:
        return {"policy_loss": "policy_gradient_loss"}


@dataclass
class NaturalGradientStatistics(UpdateStatistics):
    """
    :param policy_objective: the surrogate after the update
    :param gradient_norm: norm of the policy gradient g
    :param step_norm: norm of the step that was taken, 0 if none was
    :param curvature: x^T F x along the natural gradient x, undamped
    :param predicted_kl: the quadratic model's KL divergence of the step that was taken, s^T F s / 2
    :param cg_damping: damping of the Fisher matrix, of the last attempt
    :param cg_iterations: iterations of the conjugate gradient method
    :param cg_residual: its relative residual |g - (F + damping) x| / |g|
    :param fisher_products: products with the Fisher matrix in all
    """

    policy_objective: float = math.nan
    gradient_norm: float = math.nan
    step_norm: float = 0.0
    curvature: float = math.nan
    predicted_kl: float = math.nan
    cg_damping: float = math.nan
    cg_iterations: int = 0
    cg_residual: float = math.nan
    fisher_products: int = 0


@dataclass
class TRPOStatistics(NaturalGradientStatistics):
    """
    :param line_search_steps: points that the line search tried, in all attempts
    :param is_line_search_success: 1 if it accepted one
    :param step_fraction: the accepted fraction of the full step
    :param expected_improvement: the surrogate's improvement that the linear model promises for the last
        point tried
    :param actual_improvement: its improvement there
    """

    line_search_steps: int = 0
    is_line_search_success: int = 0
    step_fraction: float = 0.0
    expected_improvement: float = math.nan
    actual_improvement: float = math.nan

    def log_aliases(self) -> dict[str, str]:
        return {"kl": "kl_divergence_loss"}
