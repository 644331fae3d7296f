"""Probability ratios of an update as the interactive figure takes them: counts in narrow bins."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from markupsafe import Markup

# the slider moves by whole bins, so that the share of samples on either side is exact
BINS_PER_UNIT = 200
LARGEST = 4  # ratio; what is above is counted in a last bin
DEFAULT_EPSILON = 0.2

T = TypeVar("T")


def counts(ratios: np.ndarray, advantages: np.ndarray) -> dict[str, Any]:
    """
    How many samples lie in each bin of the ratio, by the sign of their advantage.

    :param ratios: new over old probability of each action, shape [n_samples]; infinite ones count as large
    :param advantages: shape [n_samples]
    :return: ``positive`` and ``negative``: bin and count in turn, of bins that are not empty; ``zero``:
        samples without an advantage; ``unusable``: samples whose ratio or advantage is NaN
    """
    ratios, advantages = np.asarray(ratios, np.float64).ravel(), np.asarray(advantages, np.float64).ravel()
    usable = ~(np.isnan(ratios) | np.isnan(advantages))
    bins = np.floor(np.clip(ratios[usable], 0, LARGEST) * BINS_PER_UNIT).astype(int)
    signs = np.sign(advantages[usable])
    found: dict[str, Any] = {"zero": int((signs == 0).sum()), "unusable": int((~usable).sum())}
    for name, sign in (("positive", 1), ("negative", -1)):
        values, numbers = np.unique(bins[signs == sign], return_counts=True)
        found[name] = np.stack([values, numbers], axis=1).ravel().tolist()
    return found


def evenly(items: Sequence[T], most: int) -> list[T]:
    """All items, or so many that are evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]


def usable_epsilon(value: Any) -> float | None:
    """A clip range that the figure can show, or ``None``."""
    value = float(value)
    return value if math.isfinite(value) and 0 < value <= 1 else None


def embedded(data: Any) -> Markup:
    """JSON that can stand in a ``script`` element: nothing in it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
