"""What all figures share: canvas, colours, legends, and what they say where there is nothing to draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sb3_trust.trust_region.record import RecordedUpdate

# Okabe and Ito's palette, told apart by colour-blind readers too; yellow is too pale for a line
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
)  # fmt: skip
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
GREY = "#777777"
POINTS_IN_AN_INCH = 72
LINE_STYLES = ("-", "--", ":", "-.")


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """
    A figure that knows no window system and no pyplot.

    :param width: in inches
    :param height: in inches
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    return figure


def caption(update: RecordedUpdate) -> str:
    """Which update a figure shows."""
    return f"update {update.update}, {update.num_timesteps} time steps"


def line_style(index: int) -> tuple[str, str]:
    """Colour and dashes of the line of this number; no two are alike up to 28."""
    return COLOURS[index % len(COLOURS)], LINE_STYLES[index // len(COLOURS) % len(LINE_STYLES)]


def series_colours(n: int) -> list[tuple[float, ...] | str]:
    """Colours that colour-blind readers tell apart: the palette's, or along a scale if those are too few."""
    if n <= len(COLOURS):
        return list(COLOURS[:n])
    from matplotlib import colormaps

    return [tuple(colour) for colour in colormaps["viridis"](np.linspace(0.0, 1.0, n))]


def legend_below(axes: Axes, columns: int = 2, gap: float = 34) -> None:
    """
    A legend under the axes, where it hides nothing.

    :param gap: between them, in points: by default what tick labels and the axis's label take
    """
    from matplotlib.transforms import ScaledTranslation

    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    down = ScaledTranslation(0.0, -gap / POINTS_IN_AN_INCH, axes.figure.dpi_scale_trans)
    axes.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=axes.transAxes + down,
        ncols=columns,
        frameon=False,
        fontsize="small",
        borderaxespad=0.0,
    )


def count_time_steps(axes: Axes) -> None:
    """An axis of time steps, with few enough ticks for their labels."""
    axes.set_xlabel("time steps")
    axes.locator_params(axis="x", nbins=6)


def count_updates(axes: Axes) -> None:
    """An axis of whole numbers of updates."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("update")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def message(axes: Axes, text: str) -> None:
    """Say in the middle of the axes why they are empty."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])


def all_finite(*arrays: np.ndarray) -> bool:
    """Whether there is something in each array and all of it is finite."""
    return all(len(array) > 0 and bool(np.isfinite(array).all()) for array in arrays)
