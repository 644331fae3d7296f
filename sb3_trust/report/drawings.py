"""Figures that only the page has: training episodes, and statistics of updates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sb3_trust.plots import kl_per_update
from sb3_trust.plots.learning import ROLLING_EPISODES, rolling_mean
from sb3_trust.plots.style import BLUE, VERMILION, count_time_steps, count_updates, legend_below, new_figure
from sb3_trust.report.pictures import Picture, picture
from sb3_trust.report.run import Run
from sb3_trust.report.shown import number
from sb3_trust.report.statistics import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HALF, THIRD = (5.4, 3.4), (4.2, 2.4)  # inches
MANY = 60  # points, that would run into each other with a marker each
_MARGIN = 1.05  # of the axis above the largest value


def episodes_figure(run: Run) -> Figure:
    """Return of each training episode against time steps, with a rolling mean."""
    figure = new_figure(*HALF)
    axes = figure.subplots()
    count_time_steps(axes)
    axes.set_ylabel("episode return")
    axes.plot(run.timesteps, run.returns, ".", ms=4, alpha=0.5, mew=0, color=BLUE, label="episode")
    window = min(ROLLING_EPISODES, len(run.returns))
    axes.plot(
        *rolling_mean(run.timesteps, run.returns, window), color=BLUE, label=f"mean of {window} episodes"
    )
    legend_below(axes)
    return figure


def kl_figure(run: Run) -> Figure:
    """The KL divergence of each update, for half of the page."""
    figure = kl_per_update(run.updates)
    figure.set_size_inches(HALF)
    legend_below(figure.axes[0])
    return figure


def panel_picture(panel: Panel, run: Run) -> Picture | None:
    """The statistics of a panel; ``None`` where the run has none of them."""
    series = {label: run.column(name) for name, label in panel.columns.items()}
    series = {label: values for label, values in series.items() if np.isfinite(values).any()}
    if not series:
        return None
    alt = f"{panel.title} of each update. " + " ".join(
        f"{label.capitalize()}: {spread(values)}." for label, values in series.items()
    )
    return picture(lambda: _panel_figure(panel, run, series), panel.title, alt, panel.says)


def _panel_figure(panel: Panel, run: Run, series: dict[str, np.ndarray]) -> Figure:
    figure = new_figure(*THIRD)
    axes = figure.subplots()
    count_updates(axes)
    x = run.column("update")
    for (label, values), colour, dashes in zip(series.items(), (BLUE, VERMILION), ("-", "--"), strict=False):
        marker = "" if len(x) > MANY else "."
        axes.plot(x, values, dashes, marker=marker, ms=4, lw=1.2, color=colour, label=label)
    values = np.concatenate(list(series.values()))
    finite = values[np.isfinite(values)]
    if panel.log and finite.min() > 0:
        axes.set_yscale("log")
    if panel.floor is not None and finite.min() < panel.floor:
        axes.set_ylim(panel.floor, max(finite.max(), panel.floor + 1) * _MARGIN)
    if len(series) > 1:
        legend_below(axes)
    return figure


def spread(values: np.ndarray) -> str:
    """First, last, smallest and largest of the finite values in words."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "no value"
    first, last, low, high = (number(float(v)) for v in (finite[0], finite[-1], finite.min(), finite.max()))
    return f"from {first} to {last}, between {low} and {high}"
