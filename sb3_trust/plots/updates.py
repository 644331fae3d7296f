"""Figures of what updates did to ratios and to each action dimension."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sb3_trust.errors import check_number, check_optional, reject
from sb3_trust.numerics.losses import clipped_surrogate as terms_of_clipped_surrogate
from sb3_trust.plots.style import (
    BLACK,
    BLUE,
    GREY,
    VERMILION,
    caption,
    count_updates,
    legend_below,
    message,
    new_figure,
    series_colours,
)
from sb3_trust.trust_region.record import RecordedUpdate, TrustRegionRecord, read_trust_region

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPONENTS = {"Box": "dimension", "MultiDiscrete": "choice", "MultiBinary": "bit", "Discrete": "action"}
# share of samples that may lie outside the plotted range on each side
TAIL = 0.002


def kl_per_action_dimension(
    record: TrustRegionRecord | str | Path, names: Sequence[str] | None = None, title: str = ""
) -> Figure:
    """
    KL(old || new) of each action dimension at each kept update, averaged over states, stacked: the dimensions
    are independent, so the bars are as high as the KL divergence of the joint distribution.

    :param record: a recorder's, or the folder of its file
    :param names: of the dimensions, for the legend
    :param title: title of the figure
    :raises InvalidArgument: if there are not as many names as dimensions
    """
    if not isinstance(record, TrustRegionRecord):
        record = read_trust_region(record)
    figure = new_figure(7, 4.2, title)
    axes = figure.subplots()
    count_updates(axes)
    axes.set(ylabel="KL(old || new) [nats]", title="KL divergence of each action dimension")
    updates = [u for u in record.updates if np.isfinite(u.kl_per_dimension).all()]
    if not updates:
        message(axes, "no update")
        return figure
    table = np.stack([update.kl_per_dimension for update in updates])
    numbers = np.array([update.update for update in updates])
    if names is None:
        names = [f"{COMPONENTS.get(record.action_space, 'dimension')} {i}" for i in range(table.shape[1])]
    elif len(names) != table.shape[1]:
        raise reject("names", names, f"{table.shape[1]} names, one for each action dimension")
    width = 0.85 * (np.diff(numbers).min() if len(numbers) > 1 else 1)
    bottom = np.zeros(len(numbers))
    for name, column, colour in zip(names, table.T, series_colours(len(names)), strict=True):
        axes.bar(numbers, column, width, bottom, color=colour, label=name)
        bottom = bottom + column
    target = np.array([update.target_kl for update in updates])
    if np.isfinite(target).any():
        axes.plot(numbers, target, "--", color=GREY, label="target_kl")
    axes.set_ylim(bottom=0)
    legend_below(axes, columns=4)
    return figure


def clipped_surrogate(update: RecordedUpdate, clip_range: float | None = None, title: str = "") -> Figure:
    """
    PPO's clipped surrogate of one sample as a function of the probability ratio, for positive and for
    negative advantages (Schulman et al. 2017, figure 1), and below each the ratios of an update's samples
    after it.

    :param update: a kept update of any algorithm
    :param clip_range: epsilon; ``None``: the update's
    :param title: title of the figure; by default the number of the update
    :raises InvalidArgument: if ``clip_range`` is not a positive number
    """
    check_optional(check_number, "clip_range", clip_range, open_minimum=True, allow_infinity=True)
    epsilon = update.clip_range if clip_range is None else float(clip_range)
    figure = new_figure(8, 5.2, title or caption(update))
    rows = figure.subplots(2, 2, sharex=True, height_ratios=(3, 2))
    known = np.isfinite(update.ratios) & np.isfinite(update.advantages)
    ratios, advantages = update.ratios[known], update.advantages[known]
    low, high = _range(ratios, epsilon)
    for column, (sign, name) in enumerate(((1.0, "positive"), (-1.0, "negative"))):
        top, bottom = rows[0][column], rows[1][column]
        _draw_objective(top, sign, epsilon, low, high)
        top.set_title(f"{name} advantage: A = {sign:+.0f}", fontsize="medium")
        _draw_ratios(bottom, ratios[np.sign(advantages) == sign], epsilon, sign, low, high)
        legend_below(bottom, columns=1)
    rows[0][0].set_ylabel("objective of a sample")
    rows[1][0].set_ylabel("samples")
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def _range(ratios: np.ndarray, epsilon: float) -> tuple[float, float]:
    """Ratios to show: twice the clip range and nearly all samples."""
    reach = 2 * epsilon if np.isfinite(epsilon) else 0.5
    low, high = 1 - reach, 1 + reach
    if len(ratios):
        low, high = min(low, np.quantile(ratios, TAIL)), max(high, np.quantile(ratios, 1 - TAIL))
    return max(low, 0.0), high


def _draw_objective(axes: Axes, sign: float, epsilon: float, low: float, high: float) -> None:
    corners = [1 - epsilon, 1 + epsilon] if np.isfinite(epsilon) else []
    ratio = np.sort(np.concatenate([np.linspace(low, high, 201), [r for r in corners if low < r < high]]))
    plain, clipped = terms_of_clipped_surrogate(ratio, np.full_like(ratio, sign), epsilon)
    axes.plot(ratio, plain, "--", color=GREY, label="ratio x A")
    axes.plot(ratio, np.minimum(plain, clipped), color=BLUE, label="clipped")
    axes.plot([1.0], [sign], "o", color=BLACK, label="old policy")
    _mark_range(axes, epsilon, f"1 - epsilon, 1 + epsilon; epsilon = {epsilon:g}")


def _mark_range(axes: Axes, epsilon: float, label: str = "_") -> None:
    """Where the clip range ends."""
    if np.isfinite(epsilon):
        axes.axvline(1 - epsilon, color=VERMILION, lw=0.8, ls=":", label=label)
        axes.axvline(1 + epsilon, color=VERMILION, lw=0.8, ls=":")


def _draw_ratios(
    axes: Axes, ratios: np.ndarray, epsilon: float, sign: float, low: float, high: float
) -> None:
    axes.set(xlabel="probability ratio")
    if len(ratios) == 0:
        message(axes, "no sample")
        return
    flat = (ratios - 1) * sign > epsilon
    edges = np.linspace(low, high, 61)
    kinds = [ratios[~flat], ratios[flat]]
    share = f"{flat.mean():.1%}"
    labels = [f"{len(ratios)} samples", f"no gradient: {share}"]
    axes.hist(kinds, edges.tolist(), stacked=True, color=[BLUE, VERMILION], label=labels)
    outside = int(((ratios < low) | (ratios > high)).sum())
    if outside:
        axes.plot([], [], " ", label=f"outside of the plot: {outside}")
    _mark_range(axes, epsilon)
