"""Figures of a run."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results
from stable_baselines3.common.results_plotter import ts2xy, window_func

from sb3_trust.recorder import UPDATES_FILE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROLLING_EPISODES = 50


def read_updates(folder: str | Path) -> dict[str, np.ndarray]:
    """
    The columns of a recorder's ``updates.csv``, by name, shape [n_updates] each; words and blanks become NaN.

    :raises FileNotFoundError: if the folder has none
    """
    with (Path(folder) / UPDATES_FILE).open(newline="") as file:
        rows = list(csv.reader(file))
    names, values = (rows[0], rows[1:]) if rows else ([], [])
    return {name: np.array([_number(row[i]) for row in values]) for i, name in enumerate(names)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def training_figure(folder: str | Path, title: str = "") -> Figure:
    """
    Learning curve and KL divergence of each update of one run.

    :param folder: where the run's monitor files and ``updates.csv`` are
    :param title: title of the figure
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)  # no window system, and no state of pyplot
    left, right = figure.subplots(1, 2)
    learning_curve(left, folder)
    kl_per_update(right, folder)
    figure.suptitle(title)
    return figure


def learning_curve(axes: Axes, folder: str | Path) -> None:
    """Return of each training episode against time steps, from the monitor files, with a rolling mean."""
    axes.set(xlabel="time steps", ylabel="episode return", title="Learning curve")
    try:
        timesteps, returns = ts2xy(load_results(str(folder)), "timesteps")
    except LoadMonitorResultsError:
        timesteps = returns = np.array([])
    if len(returns) == 0:
        axes.text(0.5, 0.5, "no episode ended", ha="center", transform=axes.transAxes)
        return
    axes.plot(timesteps, returns, ".", ms=2, alpha=0.3, color="tab:blue", label="episode")
    window = min(ROLLING_EPISODES, len(returns))
    middle, mean = window_func(timesteps, returns, window, np.mean)
    axes.plot(middle, mean, color="tab:blue", label=f"mean of {window} episodes")
    axes.legend(loc="best", frameon=False)


def kl_per_update(axes: Axes, folder: str | Path) -> None:
    """The exact KL divergence of each update against its limit or target, and at the worst state."""
    updates = read_updates(folder)
    axes.set(xlabel="update", ylabel="KL(old || new)", title="KL divergence of each update")
    if not updates or len(updates["update"]) == 0:
        axes.text(0.5, 0.5, "no update", ha="center", transform=axes.transAxes)
        return
    x = updates["update"]
    axes.plot(x, updates["kl_max"], ".", ms=3, alpha=0.4, color="tab:gray", label="worst state")
    axes.plot(x, updates["kl"], ".-", ms=3, lw=0.8, color="tab:blue", label="mean over states")
    if np.isfinite(updates["target_kl"]).any():
        axes.plot(x, updates["target_kl"], "--", color="tab:red", label="target_kl")
    if (updates["kl_max"] > 0).any():
        axes.set_yscale("log")
        positive = updates["kl"][updates["kl"] > 0]
        if len(positive):
            axes.set_ylim(bottom=max(positive.min() / 2, 1e-8))
    axes.legend(loc="best", frameon=False)
