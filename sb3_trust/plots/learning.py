"""Learning curves of several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results

from sb3_trust.errors import check_integer, reject
from sb3_trust.plots.style import count_time_steps, legend_below, line_style, message, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROLLING_EPISODES = 50
N_POINTS = 200
N_DRAWS = 2000

Curve: TypeAlias = tuple[np.ndarray, np.ndarray]
Run: TypeAlias = str | Path | tuple[Sequence[float], Sequence[float]]


def read_episodes(folder: str | Path) -> Curve:
    """Time steps at the end of each training episode and its return, from the monitor files of a folder."""
    try:
        episodes = load_results(escape(str(folder)))  # takes a pattern
    except LoadMonitorResultsError:
        return np.zeros(0), np.zeros(0)
    return np.cumsum(episodes["l"].to_numpy()), episodes["r"].to_numpy()


def rolling_mean(timesteps: np.ndarray, returns: np.ndarray, window: int) -> Curve:
    """Means of so many episodes in a row, each at the last of them."""
    return timesteps[window - 1 :], np.convolve(returns, np.full(window, 1 / window), "valid")


def learning_curves(
    runs: Mapping[str, Run | Sequence[Run]], title: str = "", window: int = ROLLING_EPISODES
) -> Figure:
    """
    Return against time steps: the mean over seeds with its 95% bootstrap interval, a line for each label.
    The curves of the seeds are interpolated to the time steps that all of them reached. The interval says
    how well the mean over seeds is known, not how far seeds lie apart; one seed has none, and with fewer than
    five it is too narrow.

    :param runs: the runs of each label, one for each seed. A run is the folder of its monitor files, whose
        training episodes are averaged by a rolling mean, or a pair of time steps and returns (of
        evaluations, say), each [n], which are taken as they are; what is not finite there is left out
    :param title: title of the figure
    :param window: episodes of the rolling mean, or all if there are fewer
    :raises InvalidArgument: if an argument is something else
    """
    check_integer("window", window, 1)
    if not isinstance(runs, Mapping):
        raise reject("runs", runs, "a mapping from labels to lists of runs")
    figure = new_figure(7, 4.2, title)
    axes = figure.subplots()
    count_time_steps(axes)
    axes.set_ylabel("episode return")
    empty = []
    for index, (label, given) in enumerate(runs.items()):
        curves = [curve for run in _as_list(given) if len((curve := _curve(run, window))[0])]
        start = max((x[0] for x, _ in curves), default=np.inf)
        stop = min((x[-1] for x, _ in curves), default=-np.inf)
        if start > stop:
            empty.append(f"{label}: no episode ended" if not curves else f"{label}: no time steps in common")
            continue
        grid = np.linspace(start, stop, N_POINTS)
        table = np.stack([np.interp(grid, x, y) for x, y in curves])
        colour, dashes = line_style(index)
        seeds = f"{len(curves)} seed{'s' if len(curves) > 1 else ''}"
        axes.plot(grid, table.mean(0), dashes, color=colour, label=f"{label} ({seeds})")
        if len(curves) > 1:
            axes.fill_between(grid, *bootstrap_interval(table), color=colour, alpha=0.2, lw=0)
    if not axes.get_lines():
        message(axes, "\n".join(empty) or "no run")
        return figure
    for text in empty:
        axes.plot([], [], " ", label=text)
    axes.set_title("mean over seeds, 95% bootstrap interval", fontsize="medium")
    axes.grid(alpha=0.3)
    legend_below(axes, columns=3)
    return figure


def _as_list(given: Run | Sequence[Run]) -> Sequence[Run]:
    """A pair of arrays is a run, and so is a folder; anything else holds runs."""
    if isinstance(given, (str, Path)):
        return [given]
    pair: Any = given
    if isinstance(pair, tuple) and len(pair) == 2 and np.ndim(pair[0]) == np.ndim(pair[1]) == 1:
        return [pair]
    return pair


def _curve(run: Run, window: int) -> Curve:
    """Time steps in order and returns, [n] each."""
    if isinstance(run, (str, Path)):
        timesteps, returns = read_episodes(run)
        if len(returns) == 0:
            return timesteps, returns
        return rolling_mean(timesteps, returns, min(window, len(returns)))
    try:
        x, y = (np.asarray(values, dtype=np.float64) for values in run)
    except (TypeError, ValueError) as error:
        raise reject("runs", run, "a folder or a pair of time steps and returns") from error
    if x.ndim != 1 or x.shape != y.shape:
        raise reject("runs", run, "a folder or a pair of time steps and returns of the same length")
    known = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[known], kind="stable")
    return x[known][order], y[known][order]


def bootstrap_interval(
    curves: np.ndarray, confidence: float = 0.95, n_draws: int = N_DRAWS
) -> tuple[np.ndarray, np.ndarray]:
    """
    Percentile bootstrap of the mean over seeds, point by point, by a generator of its own.

    :param curves: [n_seeds, n_points]
    :return: lower and upper bound, [n_points] each
    """
    n_seeds = len(curves)
    drawn = np.random.default_rng(0).multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), n_draws)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn @ curves / n_seeds, [tail, 1 - tail], axis=0)
    return low, high
