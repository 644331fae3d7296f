"""Checks of PPO's own arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sb3_trust.errors import (
    check_choice,
    check_number,
    check_number_or_schedule,
    check_optional,
    is_number,
    reject,
)
from sb3_trust.numerics.kl_coefficient import MAX_LEARNING_RATE, MIN_LEARNING_RATE
from sb3_trust.numerics.objectives import PolicyTerms

if TYPE_CHECKING:
    from sb3_trust.algorithms.ppo import PPO

VALUE_CLIPS = ("sb3", "max")
KL_STOPS = ("approx", "exact")
KL_INTERVALS = ("rollout", "epoch")


def check_ppo_arguments(model: PPO) -> None:
    """
    :raises InvalidArgument: if an argument that only PPO has cannot work
    """
    bounds = {"open_minimum": True, "allow_infinity": True}
    check_number_or_schedule("clip_range", model.clip_range, **bounds)
    check_optional(check_number_or_schedule, "clip_range_vf", model.clip_range_vf, **bounds)
    check_optional(check_number, "target_kl", model.target_kl, open_minimum=True)
    check_choice("value_clip", model.value_clip, VALUE_CLIPS)
    if model.value_clip == "max" and model.clip_range_vf is None:
        raise reject("value_clip", model.value_clip, "'sb3' without a `clip_range_vf`")
    check_optional(check_number, "dual_clip", model.dual_clip, 1.0, open_minimum=True)
    check_choice("kl_stop", model.kl_stop, KL_STOPS)
    if model.kl_stop == "exact" and model.target_kl is None:
        raise reject("kl_stop", model.kl_stop, "'approx' without a `target_kl`")
    target = model.learning_rate_kl_target
    check_optional(check_number, "learning_rate_kl_target", target, open_minimum=True)
    check_choice("learning_rate_kl_interval", model.learning_rate_kl_interval, KL_INTERVALS)
    if target is not None:
        _check_adaptable(model.learning_rate)
    elif model.learning_rate_kl_interval != "rollout":
        interval = model.learning_rate_kl_interval
        raise reject("learning_rate_kl_interval", interval, "'rollout' without a `learning_rate_kl_target`")
    if model.objective is not None:
        _check_objective(model.objective)
        if model.dual_clip is not None:
            raise reject("dual_clip", model.dual_clip, "`None` with an `objective` of your own")


def _check_adaptable(learning_rate: Any) -> None:
    """A learning rate that adapts starts from a number, which the Zoo and SB3 may have wrapped."""
    allowed = f"a constant in [{MIN_LEARNING_RATE:g}, {MAX_LEARNING_RATE:g}] with a `learning_rate_kl_target`"
    rates = [learning_rate]
    if callable(learning_rate):
        rates = [learning_rate(tenth / 10) for tenth in range(11)]
    rate = rates[0]
    constant = all(other == rate for other in rates) and is_number(rate)
    if not constant or not MIN_LEARNING_RATE <= rate <= MAX_LEARNING_RATE:
        raise reject("learning_rate", learning_rate, allowed)


def _check_objective(objective: Any) -> None:
    needs = getattr(objective, "needs", None)
    named = isinstance(needs, (set, frozenset)) and needs <= set(vars(PolicyTerms()))
    if isinstance(objective, type) or not (
        callable(objective) and callable(getattr(objective, "derivatives", None)) and named
    ):
        terms = ", ".join(vars(PolicyTerms()))
        raise reject(
            "objective",
            objective,
            f"callable with a method `derivatives` and a set `needs` of terms among {terms}",
        )
