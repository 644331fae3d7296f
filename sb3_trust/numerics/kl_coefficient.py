"""Rules that move a KL penalty's coefficient, or a learning rate, towards a target KL divergence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sb3_trust.errors import InvalidArgument, check_choice, check_number, reject


@dataclass(frozen=True)
class ThresholdRule:
    """
    Multiply by ``increase`` where ``kl > high * target``, by ``decrease`` where ``kl < low * target``.

    :param high: upper threshold, in units of the target
    :param low: lower threshold, in units of the target
    :param increase: factor above the upper threshold
    :param decrease: factor below the lower threshold
    :param min: smallest coefficient
    :param max: largest coefficient
    """

    high: float = 1.5
    low: float = 1 / 1.5
    increase: float = 2.0
    decrease: float = 0.5
    min: float = 1e-4
    max: float = 1e4

    def __post_init__(self) -> None:
        check_number("kl_rule['high']", self.high, 1.0)
        check_number("kl_rule['low']", self.low, 0.0, 1.0)
        check_number("kl_rule['increase']", self.increase, 1.0, open_minimum=True)
        check_number("kl_rule['decrease']", self.decrease, 0.0, 1.0, open_minimum=True)
        if self.decrease == 1.0:
            raise reject("kl_rule['decrease']", self.decrease, "a number in (0, 1)")
        check_number("kl_rule['min']", self.min, open_minimum=True)
        if not self.min <= self.max < math.inf:
            raise reject("kl_rule['max']", self.max, f"a finite number >= kl_rule['min'] = {self.min:g}")

    def factor(self, kl: float, target: float, n_samples: int) -> float:
        """What the coefficient is multiplied by, before the bounds."""
        if kl > self.high * target:
            return self.increase
        return self.decrease if kl < self.low * target else 1.0


@dataclass(frozen=True)
class ProportionalRule:
    """
    Multiply by ``1 + clip(kl / target - 1, -clip, clip) * n / horizon`` (Ziegler et al. 2019, section 2.2),
    with ``n`` samples in the update and ``n / horizon`` at most 1.

    :param clip: bound of the relative error
    :param horizon: samples after which a constant error has its full effect
    """

    clip: float = 0.2
    horizon: float = 10_000.0
    min: float = 1e-4
    max: float = 1e4

    def factor(self, kl: float, target: float, n_samples: int) -> float:
        """What the coefficient is multiplied by, before the bounds."""
        error = min(max(kl / target - 1.0, -self.clip), self.clip)
        return 1.0 + error * min(n_samples / self.horizon, 1.0)


@dataclass(frozen=True)
class FixedRule:
    """Leave the coefficient as it is."""

    min: float = 0.0
    max: float = math.inf

    def factor(self, kl: float, target: float, n_samples: int) -> float:
        """One, always."""
        return 1.0


MIN_LEARNING_RATE, MAX_LEARNING_RATE = 1e-5, 1e-2

KLRule = ThresholdRule | ProportionalRule | FixedRule


@dataclass(frozen=True)
class Preset:
    """A rule and the hinge coefficient that belongs to it."""

    rule: KLRule
    hinge_coef: float = 0.0


PRESETS: dict[str, Preset] = {
    # Schulman et al. 2017, section 4
    "paper": Preset(ThresholdRule()),
    # github.com/joschu/modular_rl, PPO with its quadratic hinge above twice the target
    "modular_rl": Preset(ThresholdRule(high=1.3, low=0.7, increase=1.5, decrease=1 / 1.5), hinge_coef=1000.0),
    "proportional": Preset(ProportionalRule()),
    "fixed": Preset(FixedRule()),
}


def preset(kl_rule: str | Mapping[str, Any]) -> Preset:
    """
    The preset of a name, or of the numbers of a :class:`ThresholdRule`.

    :raises InvalidArgument: for an unknown name or key, or a number out of range
    """
    if isinstance(kl_rule, Mapping):
        names = [field.name for field in fields(ThresholdRule)]
        for key in kl_rule:
            if key not in names:
                raise reject("kl_rule", dict(kl_rule), f"a preset's name or a dict with keys among {names}")
        return Preset(ThresholdRule(**kl_rule))
    try:
        check_choice("kl_rule", kl_rule, PRESETS)
    except InvalidArgument as error:
        raise InvalidArgument(f"{error} (or a dict such as {{'high': 1.5, 'low': 0.67}})") from None
    return PRESETS[kl_rule]


def next_coefficient(rule: KLRule, coefficient: float, kl: float, target: float, n_samples: int) -> float:
    """
    The penalty coefficient for the next update.

    :param kl: measured KL divergence; one that is not finite leaves the coefficient as it is
    :param target: the KL divergence aimed at, > 0
    :param n_samples: number of samples in the update
    """
    if not math.isfinite(kl):
        return coefficient
    return min(max(coefficient * rule.factor(kl, target, n_samples), rule.min), rule.max)


# rsl_rl's and skrl's rule; a larger coefficient holds the policy back as a smaller learning rate does
LEARNING_RATE_RULE = ThresholdRule(
    high=2.0, low=0.5, increase=1.5, decrease=1 / 1.5, min=1 / MAX_LEARNING_RATE, max=1 / MIN_LEARNING_RATE
)


def next_learning_rate(rate: float, kl: float, target: float) -> float:
    """
    The learning rate for the next steps: divided by 1.5 where ``kl > 2 target``, multiplied by 1.5 where
    ``kl < target / 2``, within [1e-5, 1e-2].

    :param kl: measured KL divergence; one that is not finite leaves the rate as it is
    """
    return 1 / next_coefficient(LEARNING_RATE_RULE, 1 / rate, kl, target, 0)
