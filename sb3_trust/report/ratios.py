"""Probability ratios of an update as the interactive figure takes them: counts in narrow bins."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from markupsafe import Markup

# the slider moves by whole bins, so that the share of samples on either side is exact
BINS_PER_UNIT = 200
LARGEST = 4  # ratio; what is above is counted in a last bin
MAX_UPDATES = 200  # in the page; of more, evenly chosen ones
DEFAULT_EPSILON = 0.2


def counts(ratios: np.ndarray, advantages: np.ndarray) -> dict[str, Any]:
    """
    How many samples lie in each bin of the ratio, by the sign of their advantage.

    :param ratios: new over old probability of each action, shape [n_samples]; infinite ones count as large
    :param advantages: shape [n_samples]
    :return: ``positive`` and ``negative``: pairs of bin and count, flat, of bins that are not empty;
        ``zero``: samples without an advantage, ``unusable``: samples whose ratio or advantage is NaN
    """
    ratios, advantages = np.asarray(ratios, np.float64).ravel(), np.asarray(advantages, np.float64).ravel()
    usable = ~(np.isnan(ratios) | np.isnan(advantages))
    bins = np.minimum(np.floor(np.minimum(ratios[usable], LARGEST) * BINS_PER_UNIT), LARGEST * BINS_PER_UNIT)
    signs = np.sign(advantages[usable])
    found: dict[str, Any] = {"zero": int((signs == 0).sum()), "unusable": int((~usable).sum())}
    for name, sign in (("positive", 1), ("negative", -1)):
        values, numbers = np.unique(bins[signs == sign].astype(int), return_counts=True)
        found[name] = np.stack([values, numbers], axis=1).ravel().tolist()
    return found


def figure_data(updates: list[dict[str, Any]], epsilon: float, is_own: bool) -> Markup:
    """
    What the page's script reads.

    :param updates: of each recorded update its :func:`counts`, its number ``update``, and ``epsilon``, the
        clip range it used or ``None``
    :param epsilon: where the slider starts, if the update has no clip range
    :param is_own: whether that is the run's clip range
    """
    if len(updates) > MAX_UPDATES:
        chosen = np.unique(np.linspace(0, len(updates) - 1, MAX_UPDATES).round().astype(int))
        updates = [updates[i] for i in chosen]
    return embedded({"binsPerUnit": BINS_PER_UNIT, "epsilon": epsilon, "isOwn": is_own, "updates": updates})


def usable_epsilon(value: Any) -> float | None:
    """A clip range that the slider can show, or ``None``."""
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) and 0 < value <= 1 else None


def embedded(data: Any) -> Markup:
    """JSON that can stand in a ``script`` element: nothing in it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
