"""Figures of a single update's step: what lies along it, and how much of it was taken."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from sb3_trust.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    all_finite,
    caption,
    legend_below,
    message,
    new_figure,
)
from sb3_trust.trust_region.record import LineSearch, RecordedUpdate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRACTION = "fraction of the full step"


def surrogate_landscape(update: RecordedUpdate, title: str = "") -> Figure:
    """
    Along the step of an update: above the surrogate, its linear model and PPO's clipped surrogate, below the
    KL divergence, its quadratic model and the limit. The point that was accepted is marked on both.

    :param update: a kept update of any algorithm; of TRPO the full step is that before the line search
    :param title: title of the figure; by default the number of the update
    """
    figure = new_figure(7, 6.2, title or caption(update))
    top, bottom = figure.subplots(2, 1, sharex=True)
    profile, taken = update.profile, update.accepted_fraction
    top.set(ylabel="improvement of the objective")
    bottom.set(xlabel=FRACTION, ylabel="KL(old || new) [nats]")
    x = profile.fractions
    finite = np.isfinite(profile.surrogate) & np.isfinite(profile.kl)
    if not finite.any() or not all_finite(x):
        message(top, "nothing along this step is finite")
        message(bottom, "")
        return figure
    top.plot(x, profile.surrogate, color=BLUE, label="surrogate")
    top.plot(x, profile.linear, "--", color=ORANGE, label="linear model")
    top.plot(x, profile.clipped, "-.", color=GREEN, label=f"clipped, epsilon = {update.clip_range:g}")
    bottom.plot(x, profile.kl, color=BLUE, label="exact, mean over states")
    if update.limit_at_worst_state:
        bottom.plot(x, profile.kl_max, color=GREY, label="exact, worst state")
    bottom.plot(x, profile.quadratic, "--", color=ORANGE, label="quadratic model")
    _draw_limit(bottom, update)
    bounded = profile.kl_max if update.limit_at_worst_state else profile.kl
    for axes, y in ((top, profile.surrogate), (bottom, bounded)):
        _mark_taken(axes, taken, float(np.interp(taken, x, y)))
        axes.margins(x=0.01)
        axes.grid(alpha=0.3)
    bottom.set_ylim(bottom=0)
    legend_below(bottom, columns=4)
    legend_below(top, columns=4, gap=4)
    return figure


def _mark_taken(axes: Axes, fraction: float, height: float) -> None:
    label = f"taken: {fraction:.3g} of the step" if fraction > 0 else "no step taken"
    axes.axvline(fraction, color=GREY, lw=0.8, ls=":")
    axes.plot([fraction], [height], "o", ms=8, color=BLACK, zorder=5, label=label)


def _draw_limit(axes: Axes, update: RecordedUpdate) -> None:
    """The limit, and what lies beyond it; a target that is none is a line alone."""
    if math.isfinite(update.limit):
        axes.axhline(update.limit, color=VERMILION, lw=1.2, label=f"limit {update.limit:g}")
        top = axes.get_ylim()[1]
        axes.axhspan(update.limit, top, color=VERMILION, alpha=0.08, lw=0)
        axes.set_ylim(top=top)
    elif math.isfinite(update.target_kl):
        label = f"target_kl {update.target_kl:g}"
        axes.axhline(update.target_kl, color=VERMILION, lw=1.2, ls="--", label=label)


def line_search_trace(update: RecordedUpdate, title: str = "") -> Figure:
    """
    The points that TRPO's line search tried, numbered in order: the KL divergence against its limit, and the
    improvement of the surrogate against the share of its linear model that it has to reach.

    :param update: a kept update of TRPO; of others the figure says that there was no line search
    :param title: title of the figure; by default the number of the update
    """
    figure = new_figure(9, 4.2, title or caption(update))
    left, right = figure.subplots(1, 2)
    search = update.line_search
    left.set(xlabel=FRACTION, ylabel="KL(old || new) [nats]", title="the constraint")
    right.set(xlabel=FRACTION, ylabel="improvement of the surrogate", title="the improvement")
    if search is None:
        message(left, "this update had no line search")
        message(right, "")
        return figure
    _draw_context(left, right, update, 1.08 * float(search.fractions[0]))
    state = "worst state" if update.limit_at_worst_state else "mean over states"
    _draw_trials(left, search, search.constrained)
    _draw_trials(right, search, search.improvement)
    left.set_ylabel(f"KL(old || new), {state} [nats]")
    for axes in (left, right):
        axes.set_xlim(0, 1.08 * float(search.fractions[0]))
        axes.grid(alpha=0.3)
        legend_below(axes, columns=2)
    return figure


def _draw_context(left: Axes, right: Axes, update: RecordedUpdate, reach: float) -> None:
    """Limit and required improvement, and the curves on which the points lie."""
    profile, search = update.profile, update.line_search
    assert search is not None
    shown = profile.fractions <= reach
    x = profile.fractions[shown]
    kl = profile.kl_max if update.limit_at_worst_state else profile.kl
    left.plot(x, kl[shown], color=GREY, lw=0.8, label="along the step")
    right.plot(x, profile.surrogate[shown], color=GREY, lw=0.8, label="along the step")
    left.set_ylim(bottom=0)
    _draw_limit(left, update)
    ends = np.array([0.0, reach])
    slope = search.expected_improvement[0] / search.fractions[0]
    right.plot(ends, slope * ends, "--", color=ORANGE, label="linear model")
    needed = update.accept_ratio * slope * ends
    right.plot(ends, needed, color=VERMILION, lw=1.2, label=f"needed: {update.accept_ratio:g} of it")


def _draw_trials(axes: Axes, search: LineSearch, height: np.ndarray) -> None:
    accepted = search.accepted
    refused = ~accepted
    if refused.any():
        axes.plot(search.fractions[refused], height[refused], "X", ms=7, color=VERMILION, label="refused")
    if accepted.any():
        axes.plot(search.fractions[accepted], height[accepted], "o", ms=8, color=BLUE, label="accepted")
    for number, (x, y) in enumerate(zip(search.fractions, height, strict=True), start=1):
        if np.isfinite(y):
            axes.annotate(str(number), (x, y), (4, 6), textcoords="offset points", fontsize="small")
