"""The table, the chart, the sweep and the animation of ``cartpole_five_methods.py``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from cartpole_five_methods import METHODS, Row, Run, iterations, make_model
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sb3_trust.plots.learning import bootstrap_interval
from sb3_trust.plots.style import GREY, legend_below, line_style, new_figure

if TYPE_CHECKING:
    from PIL.Image import Image

NAMES = {key: kind.__name__ for key, kind in METHODS.items()}
TARGET_KL = 0.01
# a return that counts as learned, and one that counts as staying there
LEARNED = {"CartPole-v1": (400.0, 450.0), "LunarLander-v3": (100.0, 100.0)}
STAYS = 20
FRAMES = 40
BATCHES_SHOWN = (1, 3, 6, 10, 15, 22, 30)


def style(method: str) -> dict[str, Any]:
    """A method looks the same everywhere."""
    colour, dashes = line_style(list(METHODS).index(method))
    return {"color": colour, "ls": dashes}


def curves(rows: Sequence[Row], method: str, name: str) -> np.ndarray:
    """A column of one method, [n_seeds, n_batches]; the batches that all seeds have."""
    by_seed: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        if row.method == method:
            by_seed.setdefault(row.seed, []).append((row.batch, getattr(row, name)))
    runs = [[value for _, value in sorted(run)] for _, run in sorted(by_seed.items())]
    n = min(map(len, runs), default=0)
    return np.array([run[:n] for run in runs])


def first_batch(returns: np.ndarray, level: float) -> float:
    """The first batch whose mean return reaches the level, counted from 1; ``inf`` if none does."""
    reached = np.flatnonzero(returns >= level)
    return reached[0] + 1 if len(reached) else np.inf


def methods_of(rows: Sequence[Row]) -> list[str]:
    """The methods that there are rows of, oldest first."""
    return [method for method in METHODS if any(row.method == method for row in rows)]


def table(rows: Sequence[Row]) -> str:
    """What the chart says, in numbers; a line for each method and setting, in Markdown."""
    learned, stays = LEARNED[rows[0].env]
    lines = [
        f"| method | setting | seeds | batches until {learned:.0f} (median, range) "
        f"| seeds that then stay above {stays:.0f} for {STAYS} batches "
        f"| of the last {STAYS} batches below {stays:.0f} | mean KL | largest KL | steps/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method in methods_of(rows):
        for setting in dict.fromkeys(row.setting for row in rows if row.method == method):
            chosen = [row for row in rows if (row.method, row.setting) == (method, setting)]
            returns, kl = curves(chosen, method, "mean_return"), [row.kl for row in chosen]
            first = np.array([first_batch(run, learned) for run in returns])
            after = [run[int(n) :][:STAYS] for run, n in zip(returns, first, strict=True) if np.isfinite(n)]
            stayed = sum(len(run) == STAYS and run.min() >= stays for run in after)
            last = returns[:, -STAYS:]
            seconds = sum(row.collect_seconds + row.update_seconds for row in chosen)
            steps = sum(row.num_timesteps // row.batch for row in chosen)
            lines.append(
                f"| {NAMES[method]} | {setting or '-'} | {len(returns)} | {_number(np.median(first))} "
                f"({_number(first.min())} to {_number(first.max())}) | {stayed} of {len(returns)} "
                f"| {(last < stays).sum()} of {last.size} "
                f"| {np.mean(kl):.4f} | {np.max(kl):.4f} | {steps / seconds:,.0f} |"
            )
    return "\n".join(lines)


def _number(batches: float) -> str:
    return f"{batches:g}" if np.isfinite(batches) else "never"


def chart(rows: Sequence[Row]) -> Figure:
    """Return of each batch with 95% intervals, KL divergence of each update, seconds of an iteration."""
    n_seeds = len({row.seed for row in rows})
    title = f"Five methods on {rows[0].env}, settings of modular_rl, {n_seeds} seeds"
    figure = new_figure(12, 4.2, title)
    left, middle, right = figure.subplots(1, 3, width_ratios=(5, 4, 3))
    methods = methods_of(rows)
    for method in methods:
        for axes, name in ((left, "mean_return"), (middle, "kl")):
            _draw(axes, curves(rows, method, name), method)
    left.axhline(LEARNED[rows[0].env][0], color=GREY, lw=0.8, ls=":")
    left.set(xlabel="batch", ylabel="mean return of the batch", title="Return: mean over seeds, 95% interval")
    middle.axhline(TARGET_KL, color=GREY, lw=0.8, ls=":", label="0.01")
    middle.set(xlabel="batch", ylabel="KL(old || new), nats", yscale="log", title="KL of each update")
    names = [NAMES[method] for method in methods]
    collect, update = (
        [np.median(curves(rows, method, f"{part}_seconds")) for method in methods]
        for part in ("collect", "update")
    )
    right.barh(names, collect, color="0.8")
    right.barh(names, update, left=collect, color=[style(method)["color"] for method in methods])
    right.invert_yaxis()
    right.set(xlabel="seconds: rollout (grey) + update", title="An iteration (median)")
    for axes in (left, middle):
        axes.grid(alpha=0.3)
    legend_below(left, columns=3)
    return figure


def _draw(axes: Axes, values: np.ndarray, method: str) -> None:
    x = np.arange(1, values.shape[1] + 1)
    axes.plot(x, values.mean(0), label=NAMES[method], lw=1.3, **style(method))
    if len(values) > 1:
        axes.fill_between(x, *bootstrap_interval(values), color=style(method)["color"], alpha=0.2, lw=0)


def sweep(rows: Sequence[Row], name: str) -> Figure:
    """How fast and how well each method learns, and how far its updates go, against one setting."""
    env = rows[0].env
    figure = new_figure(12, 4.2, f"Sensitivity to {name} on {env}")
    panels = figure.subplots(1, 3)
    titles = (
        f"Time steps until {LEARNED[env][0]:.0f}",
        "Mean return of the last quarter",
        "KL divergence: mean (dotted: largest)",
    )
    for method in methods_of(rows):
        values = sorted({_value(row) for row in rows if row.method == method})
        cells = [[row for row in rows if row.method == method and _value(row) == value] for value in values]
        returns = [curves(cell, method, "mean_return") for cell in cells]
        sizes = [cell[0].num_timesteps // cell[0].batch for cell in cells]
        first = [
            np.median([first_batch(run, LEARNED[env][0]) for run in runs]) * size
            for runs, size in zip(returns, sizes, strict=True)
        ]
        last = [np.nanmean(runs[:, -max(runs.shape[1] // 4, 1) :]) for runs in returns]
        mean = [np.mean([row.kl for row in cell]) for cell in cells]
        largest = [np.max([row.kl for row in cell]) for cell in cells]
        for axes, heights in zip(panels, (first, last, mean), strict=True):
            axes.plot(values, heights, marker="o", ms=4, label=NAMES[method], **style(method))
        panels[2].plot(values, largest, lw=0.8, **{**style(method), "ls": ":"})
        never = [value for value, steps in zip(values, first, strict=True) if not np.isfinite(steps)]
        panels[0].plot(
            never, [1.02] * len(never), "x", color=style(method)["color"], clip_on=False,
            transform=panels[0].get_xaxis_transform(),
        )  # fmt: skip
    for axes, title in zip(panels, titles, strict=True):
        axes.set(xscale="log" if name != "gae_lambda" else "linear", xlabel=name, title=title)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("median over seeds (x: more than half never)")
    panels[2].set_yscale("log")
    legend_below(panels[1], columns=5)
    return figure


def _value(row: Row) -> float:
    return float(row.setting.split("=")[1])


# ---- the animation --------------------------------------------------------------------------------------


def animate(methods: Sequence[str], env: str, path: Path) -> Path:
    """Train each method with seed 0, and show an episode after some of the batches, side by side."""
    warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
    shown = {method: _episodes(Run(method, env, 0, BATCHES_SHOWN[-1])) for method in methods}
    frames = []
    for k, batch in enumerate(BATCHES_SHOWN):
        for t in range(FRAMES):
            frames.append(_side_by_side([(NAMES[m], batch, *shown[m][k]) for m in methods], t))
    path.parent.mkdir(parents=True, exist_ok=True)
    palette = [frame.quantize(16) for frame in frames]
    palette[0].save(path, save_all=True, append_images=palette[1:], duration=50, loop=0, optimize=True)
    return path


def _episodes(run: Run) -> list[tuple[list[np.ndarray], float]]:
    """Frames and mean return of the policies that collect the batches to be shown."""
    model = make_model(run)
    found = []
    env = gym.make(run.env, render_mode="rgb_array")
    policies = iterations(model, run.n_batches)
    for batch in range(1, run.n_batches + 1):
        frames = _frames(model, env) if batch in BATCHES_SHOWN else []
        iteration = next(policies)
        if frames:
            found.append((frames, iteration["mean_return"]))
    env.close()
    return found


def _frames(model: Any, env: gym.Env) -> list[np.ndarray]:
    """An episode of the policy as it acts in training; its last frame stays."""
    observation, _ = env.reset(seed=1)
    frames: list[np.ndarray] = []
    done = False
    while len(frames) < FRAMES:
        if not done:
            for _ in range(3):
                if not done:
                    action, _ = model.predict(observation)
                    observation, _, terminated, truncated, _ = env.step(action)
                    done = terminated or truncated
            image: Any = env.render()
            frames.append(image[::3, ::3])
        else:
            frames.append(frames[-1] // 2 + 100)  # pale: it is over
            frames += [frames[-1]] * (FRAMES - len(frames))
    return frames


def _side_by_side(panels: Sequence[tuple[str, int, list[np.ndarray], float]], t: int) -> Image:
    from PIL import Image, ImageDraw

    height, width = panels[0][2][0].shape[:2]
    sheet = Image.new("RGB", (len(panels) * (width + 4), height + 30), "white")
    draw = ImageDraw.Draw(sheet)
    for k, (name, batch, frames, mean_return) in enumerate(panels):
        sheet.paste(Image.fromarray(frames[t]), (k * (width + 4), 30))
        said = f"{name}\nbatch {batch}: mean return {mean_return:.0f}"
        draw.text((k * (width + 4) + 4, 2), said, fill="black")
    return sheet
