"""The tables, in Markdown, and the figures of ``when_ppo_fails.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from when_ppo_fails_experiments import (
    ROLLOUT,
    TARGET_KL,
    Dimensions,
    DimensionsRow,
    Experiment,
    Flips,
    FlipsRow,
    Sparse,
    SparseRow,
)
from when_ppo_fails_worlds import Lock

from sb3_trust.plots.learning import bootstrap_interval
from sb3_trust.plots.style import GREY, count_time_steps, line_style, new_figure

LAST_ROWS = 2  # of a run, that its success is taken from
LEVEL_ROWS = 5  # before a jump, that the level is taken from
RECOVERED = 0.9


def style(experiment: type[Experiment], method: str) -> dict[str, Any]:
    """A method looks the same in all panels of a figure."""
    colour, dashes = line_style(list(experiment.methods).index(method))
    return {"color": colour, "ls": dashes, "label": method}


def chosen(rows: Sequence[Any], **values: Any) -> list[Any]:
    """The rows that have these values in these columns."""
    return [row for row in rows if all(getattr(row, name) == value for name, value in values.items())]


def by_seed(rows: Sequence[Any], column: str) -> np.ndarray:
    """A column of the runs of one case, [n_seeds, n_rows]."""
    seeds = sorted({row.seed for row in rows})
    return np.array([[getattr(row, column) for row in chosen(rows, seed=seed)] for seed in seeds])


def line(axes: Axes, rows: Sequence[Any], column: str, look: dict[str, Any]) -> None:
    """A column against time steps: mean over seeds, 95% interval."""
    x, values = by_seed(rows, "num_timesteps")[0], by_seed(rows, column)
    axes.plot(x, values.mean(0), lw=1.3, **look)
    if len(values) > 1:
        axes.fill_between(x, *bootstrap_interval(values), color=look["color"], alpha=0.15, lw=0)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *lines))


def _finish(figure: Figure, panels: Sequence[Axes]) -> Figure:
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.title.set_fontsize("medium")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize="small")
    return figure


def _seeds(rows: Sequence[Any]) -> str:
    n = len({row.seed for row in rows})
    return f"{n} seed{'s' if n > 1 else ''}"


# ---- sparse reward --------------------------------------------------------------------------------------


def success(rows: Sequence[SparseRow]) -> np.ndarray:
    """Share of the last episodes that reached the reward, [n_seeds]."""
    episodes, successes = by_seed(rows, "episodes"), by_seed(rows, "successes")
    return successes[:, -LAST_ROWS:].sum(1) / episodes[:, -LAST_ROWS:].sum(1)


def found_by_chance(distance: int, n_timesteps: int) -> float:
    """Probability that uniformly random actions reach the reward at all in so many time steps."""
    return 1 - (1 - Lock.chance(distance)) ** (n_timesteps // Lock.HORIZON)


def sparse(rows: Sequence[SparseRow]) -> tuple[str, Figure]:
    """Success against distance and entropy bonus, and entropy where no reward is found."""
    plain = chosen(rows, ent_coef=0.0)
    distances = sorted({row.distance for row in plain})
    places = range(len(distances))
    bonuses = sorted({row.ent_coef for row in chosen(rows, distance=Sparse.hard)})
    n_timesteps = max(row.num_timesteps for row in rows)
    figure = new_figure(12, 4.2, f"Sparse reward: a lock of so many right actions in a row, {_seeds(rows)}")
    left, middle, right = figure.subplots(1, 3)
    lines = []
    for method in Sparse.methods:
        look = style(Sparse, method)
        cases = [chosen(plain, method=method, distance=n) for n in distances]
        of_distance = [success(case).mean() for case in cases]
        left.plot(places, of_distance, marker="o", ms=4, **look)
        far = chosen(plain, method=method, distance=distances[-1])
        line(middle, far, "entropy", look)
        hard = [chosen(rows, method=method, distance=Sparse.hard, ent_coef=c) for c in bonuses]
        of_bonus = [success(case).mean() for case in hard]
        right.plot(range(len(bonuses)), of_bonus, marker="o", ms=4, **look)
        found, found_hard = ([sum(by_seed(c, "successes").any(1)) for c in group] for group in (cases, hard))
        lines.append(
            [
                method,
                *(f"{share:.2f} ({seeds})" for share, seeds in zip(of_distance, found, strict=True)),
                " / ".join(map(str, found_hard)),
                " / ".join(f"{share:.2f}" for share in of_bonus),
                " / ".join(f"{by_seed(case, 'entropy')[:, -1].mean():.2f}" for case in hard),
                f"{by_seed(far, 'entropy')[:, -1].mean():.3f} (least {by_seed(far, 'entropy').min():.3f})",
                f"{by_seed(far, 'kl').mean():.4f}",
                f"{max(row.kl for row in chosen(plain, method=method)):.2g}",
            ]
        )
    chances = [found_by_chance(n, n_timesteps) for n in distances]
    left.plot(places, chances, "x:", color=GREY, label="chance that random actions find it at all")
    left.set(xlabel="distance", ylabel="success in the last episodes", title="No entropy bonus")
    left.set_xticks(places, [str(n) for n in distances])
    middle.axhline(np.log(2), color=GREY, lw=0.8, ls=":")
    middle.set(ylabel="entropy, nats", title=f"Entropy at distance {distances[-1]}", ylim=(0, None))
    count_time_steps(middle)
    right.set(
        xlabel="entropy bonus (ent_coef)",
        ylabel="success in the last episodes",
        title=f"With a bonus, at distance {Sparse.hard}",
        ylim=left.get_ylim(),
    )
    right.set_xticks(range(len(bonuses)), [f"{bonus:g}" for bonus in bonuses])
    named = " / ".join(f"{bonus:g}" for bonus in bonuses)
    header = [
        "method",
        *(f"success at {n} (seeds that found it)" for n in distances),
        f"seeds that found it at {Sparse.hard}, ent_coef {named}",
        "success there",
        "entropy there at the end",
        f"entropy at {distances[-1]} at the end",
        "mean KL there",
        "largest KL at any distance, mean of 4 updates",
    ]
    lines.append(["random actions find it", *(f"{chance:.2f}" for chance in chances), *["-"] * 6])
    return markdown(header, lines), _finish(figure, [left, middle, right])


# ---- many action dimensions -----------------------------------------------------------------------------


def dimensions(rows: Sequence[DimensionsRow]) -> tuple[str, Figure]:
    """KL divergence of an update, together and of each dimension, what is clipped, and the score."""
    numbers = sorted({row.dimensions for row in rows})
    figure = new_figure(
        10, 7, f"1 to {numbers[-1]} action dimensions, target_kl = {TARGET_KL}, {_seeds(rows)}"
    )
    panels = [axes for pair in figure.subplots(2, 2) for axes in pair]
    joint, each, clipped, score = panels
    lines = []
    for method in Dimensions.methods:
        cells = []
        look = style(Dimensions, method)
        for n in numbers:
            case = chosen(rows, method=method, dimensions=n)
            kl = float(np.median([row.kl for row in case]))
            cells.append(
                (
                    kl,
                    kl / n,
                    float(np.median([row.clip_fraction for row in case])),
                    float(by_seed(case, "score")[:, -1].mean()),
                    float(np.max([row.kl for row in case])),
                    float(np.median([row.log_ratio_std for row in case])),
                )
            )
        for axes, heights in zip(panels, np.array(cells).T, strict=False):
            axes.plot(numbers, heights, marker="o", ms=4, **look)
        for i in {0, len(numbers) // 2, len(numbers) - 1}:
            kl, one, share, reached, largest, spread = cells[i]
            lines.append(
                [
                    method,
                    str(numbers[i]),
                    f"{kl:.4f}",
                    f"{largest:.4f}",
                    f"{one:.5f}",
                    f"{spread:.3f}",
                    f"{share:.2f}",
                    f"{reached:.3f}",
                ]
            )
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, [str(n) for n in numbers])
        axes.set_xlabel("action dimensions")
    joint.axhline(TARGET_KL, color=GREY, lw=0.8, ls=":")
    joint.set(yscale="log", ylabel="nats", title="KL(old || new) of an update, median")
    each.set(yscale="log", ylabel="nats", title="Mean of one dimension's KL")
    clipped.set(ylim=(0, None), ylabel="share of samples", title="Ratio outside of 0.8 to 1.2, median")
    score.set(ylabel="score (1: optimum)", title=f"After {max(r.num_timesteps for r in rows):,} time steps")
    header = [
        "method", "dimensions", "KL, median", "KL, largest", "KL of one dimension", "spread of log ratio",
        "outside of clip range", "score",
    ]  # fmt: skip
    lines.sort(key=lambda cells: list(Dimensions.methods).index(cells[0]) * 100 + int(cells[1]))
    return markdown(header, lines), _finish(figure, panels)


# ---- a goal that jumps ----------------------------------------------------------------------------------


def recovery(timesteps: np.ndarray, scores: np.ndarray, jump: int, end: float, level: float) -> float:
    """
    Time steps from a jump until the score is back at 90% of a level; ``inf`` if it is not before the end.

    :param timesteps: [n_rows]
    :param scores: of one seed, [n_rows]
    :param jump: in time steps
    :param end: in time steps, of the next jump
    """
    back = (timesteps > jump) & (timesteps <= end) & (scores >= RECOVERED * level)
    return float(timesteps[back][0] - jump) if back.any() else np.inf


def flips(rows: Sequence[FlipsRow]) -> tuple[str, Figure]:
    """Score and KL divergence against time steps, and how long recovering takes."""
    (first,) = {row.first_jump for row in rows}
    jumps = [update * ROLLOUT for update in Flips.jumps(first)]
    ends = [*jumps[1:], np.inf]
    figure = new_figure(12, 4.4, f"A goal that jumps twice, {_seeds(rows)}")
    left, middle, right = figure.subplots(1, 3, width_ratios=(5, 4, 4))
    lines = []
    for index, method in enumerate(Flips.methods):
        case, look = chosen(rows, method=method), style(Flips, method)
        line(left, case, "score", look)
        middle.plot(by_seed(case, "num_timesteps")[0], np.median(by_seed(case, "kl"), axis=0), lw=1.1, **look)
        x, scores = by_seed(case, "num_timesteps")[0], by_seed(case, "score")
        levels = scores[:, x <= jumps[0]][:, -LEVEL_ROWS:].mean(1)
        cells = [method, f"{levels.mean():.2f}"]
        for position, (jump, end) in enumerate(zip(jumps, ends, strict=True)):
            pairs = zip(scores, levels, strict=True)
            times = np.array([recovery(x, run, jump, end, level) for run, level in pairs])
            _recovery_marks(right, position + 0.12 * (index - 2.5), times, min(end, x[-1]) - jump, look)
            std = by_seed(case, "std")[:, x <= jump][:, -1].mean()
            known = np.isfinite(times).sum()
            cells += [f"{std:.3f}", f"{_steps(np.median(times))} ({known} of {len(times)})"]
        divergences = by_seed(case, "kl")
        cells += [f"{np.median(divergences):.4f}", f"{by_seed(case, 'kl_max').max():.4f}"]
        lines.append(cells)
    for axes in (left, middle):
        count_time_steps(axes)
        for jump in jumps:
            axes.axvline(jump, color=GREY, lw=0.8, ls=":")
    left.set(
        ylabel="score (0: staying, 1: straight to the goal)", title="Score: mean over seeds, 95% interval"
    )
    middle.axhline(TARGET_KL, color=GREY, lw=0.8, ls=":")
    middle.set(yscale="log", ylabel="nats", title="KL(old || new) of an update, median", ylim=(2e-3, 0.12))
    middle.set_yticks([0.003, 0.01, 0.03, 0.1], ["0.003", "0.01", "0.03", "0.1"])
    middle.set_yticks([], minor=True)
    right.set(
        ylabel="time steps",
        title="Until 90% of the first level (x: never)",
        xlim=(-0.5, 1.5),
        ylim=(0, None),
    )
    right.set_xticks([0, 1], ["first jump", "second jump"])
    header = ["method", "level before the first jump"]
    for name in ("first", "second"):
        header += [f"std before the {name} jump", f"time steps until {RECOVERED:.0%} of the level (seeds)"]
    header += ["KL, median", "KL, largest"]
    return markdown(header, lines), _finish(figure, [left, middle, right])


def _steps(timesteps: float) -> str:
    return f"{timesteps:,.0f}" if np.isfinite(timesteps) else "never"


def _recovery_marks(axes: Axes, x: float, times: np.ndarray, never: float, look: dict[str, Any]) -> None:
    """Seeds as dots or, those that do not recover, as a cross above; the median as a line."""
    known = np.isfinite(times)
    colour = look["color"]
    axes.plot([x] * known.sum(), times[known], "o", ms=4, color=colour, alpha=0.6)
    axes.plot([x] * (~known).sum(), [1.05 * never] * (~known).sum(), "x", ms=5, color=colour)
    if np.isfinite(np.median(times)):
        axes.hlines(np.median(times), x - 0.05, x + 0.05, color=colour, lw=2)


FIGURES: dict[str, Callable[[Sequence[Any]], tuple[str, Figure]]] = {
    "sparse": sparse,
    "dimensions": dimensions,
    "flips": flips,
}
