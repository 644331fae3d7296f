"""Figures of whole runs from their ``updates.csv`` and monitor files."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sb3_trust.errors import reject
from sb3_trust.plots.learning import ROLLING_EPISODES, read_episodes, rolling_mean
from sb3_trust.plots.style import (
    BLACK,
    BLUE,
    GREY,
    VERMILION,
    count_time_steps,
    count_updates,
    legend_below,
    line_style,
    message,
    new_figure,
)
from sb3_trust.recorder import UPDATES_FILE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# columns of ``updates.csv`` by name, [n_updates] each
Updates = Mapping[str, np.ndarray]
# what is below is rounding: the KL divergence of a policy from itself
SMALLEST_KL = 1e-13


def read_updates(folder: str | Path) -> dict[str, np.ndarray]:
    """
    The columns of a recorder's ``updates.csv``, by name, shape [n_updates] each; words and blanks become NaN.
    A row that was not written to its end is left out.

    :raises FileNotFoundError: if the folder has none
    """
    with (Path(folder) / UPDATES_FILE).open(newline="") as file:
        rows = list(csv.reader(file))
    names = rows[0] if rows else []
    values = [row for row in rows[1:] if len(row) == len(names)]
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
    figure = new_figure(10, 4, title)
    left, right = figure.subplots(1, 2)
    _draw_episodes(left, folder)
    _draw_run(right, read_updates(folder))
    return figure


def _draw_episodes(axes: Axes, folder: str | Path) -> None:
    """Return of each training episode against time steps, from the monitor files, with a rolling mean."""
    count_time_steps(axes)
    axes.set(ylabel="episode return", title="Learning curve")
    timesteps, returns = read_episodes(folder)
    if len(returns) == 0:
        message(axes, "no episode ended")
        return
    axes.plot(timesteps, returns, ".", ms=2, alpha=0.3, color=BLUE, label="episode")
    window = min(ROLLING_EPISODES, len(returns))
    axes.plot(*rolling_mean(timesteps, returns, window), color=BLUE, label=f"mean of {window} episodes")
    legend_below(axes)


def kl_per_update(runs: str | Path | Updates | Mapping[str, str | Path | Updates], title: str = "") -> Figure:
    """
    The exact KL(old || new) of each update against its limit or target, on a logarithmic scale. Updates that
    did not move the policy are crosses on the axis. Of a single run also the KL divergence at the worst
    state.

    :param runs: a run, or several by the name that the legend is to give each; a run is its folder, or what
        :func:`read_updates` made of it
    :param title: title of the figure
    :raises InvalidArgument: if ``runs`` is something else
    :raises FileNotFoundError: if a folder has no ``updates.csv``
    """
    figure = new_figure(7, 4.2, title)
    axes = figure.subplots()
    named = _by_name(runs)
    if named is None:
        _draw_run(axes, _updates(runs))  # type: ignore[arg-type]
        return figure
    tables = {name: _updates(run) for name, run in named.items()}
    _label(axes)
    drawn = {name: table for name, table in tables.items() if _has_updates(table)}
    if not drawn:
        message(axes, "no update")
        return figure
    targets = [_target(table) for table in drawn.values()]
    values = {value for target in targets for value in target[np.isfinite(target)]}
    for index, ((name, table), target) in enumerate(zip(drawn.items(), targets, strict=True)):
        colour, dashes = line_style(index)
        _draw_kl(axes, table, colour, label=name, linestyle=dashes)
        if len(values) > 1 and np.isfinite(target).any():
            axes.plot(table["update"], target, ":", color=colour, label=f"target_kl of {name}")
    if len(values) == 1:
        which = [name for name, target in zip(drawn, targets, strict=True) if np.isfinite(target).any()]
        of = "" if len(which) == len(drawn) else f" of {', '.join(which)}"
        axes.axhline(values.pop(), ls=":", color=BLACK, label=f"target_kl{of}")
    _scale(axes, list(drawn.values()))
    for name in (name for name in tables if name not in drawn):
        axes.plot([], [], " ", label=f"{name}: no update")
    legend_below(axes, columns=3)
    return figure


def _by_name(runs: object) -> Mapping[str, str | Path | Updates] | None:
    """The runs by name, ``None`` if it is a single one."""
    if isinstance(runs, (str, Path)) or (isinstance(runs, Mapping) and _is_table(runs)):
        return None
    if isinstance(runs, Mapping) and runs:
        return runs
    raise reject("runs", runs, "a folder, what `read_updates` returns, or a mapping from names to such")


def _is_table(runs: Mapping[str, object]) -> bool:
    return not runs or any(isinstance(column, np.ndarray) for column in runs.values())


def _updates(run: str | Path | Updates) -> Updates:
    return run if isinstance(run, Mapping) else read_updates(run)


def _has_updates(updates: Updates) -> bool:
    return "kl" in updates and bool(np.isfinite(updates["kl"]).any())


def _target(updates: Updates) -> np.ndarray:
    return updates.get("target_kl", np.full(len(updates["kl"]), math.nan))


def _label(axes: Axes) -> None:
    count_updates(axes)
    axes.set(ylabel="KL(old || new) [nats]", title="KL divergence of each update")


def _draw_run(axes: Axes, updates: Updates) -> None:
    """One run with the KL divergence at the worst state."""
    _label(axes)
    if not updates or not _has_updates(updates):
        message(axes, "no update")
        return
    x = updates["update"]
    if "kl_max" in updates:
        axes.plot(x, updates["kl_max"], ".", ms=3, alpha=0.5, color=GREY, label="worst state")
    _draw_kl(axes, updates, BLUE, label="mean over states", linestyle="-")
    target = _target(updates)
    if np.isfinite(target).any():
        axes.plot(x, target, "--", color=VERMILION, label="target_kl")
    _scale(axes, [updates])
    legend_below(axes, columns=4)


def _draw_kl(axes: Axes, updates: Updates, colour: str, label: str, linestyle: str) -> None:
    x, kl = updates["update"], updates["kl"]
    axes.plot(x, kl, linestyle, marker=".", ms=3, lw=0.8, color=colour, label=label)
    still = kl <= SMALLEST_KL
    if still.any():
        low = axes.get_xaxis_transform()
        n = int(still.sum())
        # on the axis itself, as zero has no place on a logarithmic scale
        axes.plot(
            x[still], np.zeros(n), "x", ms=5, color=colour, transform=low, clip_on=False, zorder=5,
            label=f"policy not moved ({n})",
        )  # fmt: skip


def _scale(axes: Axes, tables: list[Updates]) -> None:
    """Logarithmic, from below the smallest mean that is drawn."""
    kl = np.concatenate([table["kl"] for table in tables])
    positive = kl[np.isfinite(kl) & (kl > SMALLEST_KL)]
    if len(positive):
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylim(bottom=positive.min() / 2)
