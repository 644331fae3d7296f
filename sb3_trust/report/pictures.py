"""Figures as parts of the page: each drawn for a light and for a dark background."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_trust.report.run import Run
from sb3_trust.report.shown import number
from sb3_trust.report.statistics import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE, NARROW = (5.4, 3.2), (4.2, 2.4)  # inches
_DPI = 150
_COMMON: dict[str, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "legend.frameon": False,
    "grid.alpha": 0.25,
    "axes.grid": True,
}
_INK = {"light": "#1c2330", "dark": "#dde3ec"}
_LINES = {"light": ["#1f6feb", "#c2410c"], "dark": ["#79b0ff", "#ffa657"]}
_MARGIN = 1.05  # of the axis above the largest value


@dataclass
class Picture:
    """
    :param title: above the figure; may be empty
    :param light: address of the figure for a light background, a ``data:`` URI
    :param dark: the same for a dark background
    :param width: in pixels of the page
    :param height: in pixels of the page
    :param alt: what it shows, for those who cannot see it
    :param caption: below it
    :param wide: whether it takes the whole width of the page
    """

    title: str
    light: str
    dark: str
    width: int
    height: int
    alt: str
    caption: str = ""
    wide: bool = False


def picture(
    draw: Callable[[], Figure], title: str, alt: str, caption: str = "", wide: bool = False
) -> Picture:
    """
    :param draw: makes the figure; called once for each background
    """
    addresses, size = {}, (0, 0)
    for theme, ink in _INK.items():
        addresses[theme], size = _drawn(draw, ink, _LINES[theme])
    return Picture(title, addresses["light"], addresses["dark"], *size, alt, caption, wide)


def _drawn(draw: Callable[[], Figure], ink: str, lines: list[str]) -> tuple[str, tuple[int, int]]:
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    keys = (
        "text.color",
        "axes.edgecolor",
        "axes.labelcolor",
        "axes.titlecolor",
        "xtick.color",
        "ytick.color",
    )
    settings: Any = {**_COMMON, **dict.fromkeys(keys, ink), "axes.prop_cycle": cycler(color=lines)}
    with rc_context(settings):
        figure = draw()
        FigureCanvasAgg(figure)  # no window system, and no state of pyplot
        content = _painted(figure)
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return "data:image/png;base64," + base64.b64encode(content).decode(), (width, height)


def _painted(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()


def axes_figure(draw: Callable[[Any], None], size: tuple[float, float] = WIDE) -> Figure:
    """A figure of one pair of axes that ``draw`` draws in."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.set_title("")  # the page has it
    return figure


def panel_picture(panel: Panel, run: Run) -> Picture | None:
    """The statistics of a panel; ``None`` where the run has none of them."""
    series = {label: run.column(name) for name, label in panel.columns.items()}
    series = {label: values for label, values in series.items() if np.isfinite(values).any()}
    if not series:
        return None
    x = run.column("update")

    def draw(axes: Any) -> None:
        for label, values in series.items():
            # a single point makes no line
            axes.plot(x, values, marker="." if len(x) <= 60 else "", ms=4, lw=1.2, label=label)
        values = np.concatenate(list(series.values()))
        finite = values[np.isfinite(values)]
        if panel.log and finite.min() > 0:
            axes.set_yscale("log")
        if panel.floor is not None and finite.min() < panel.floor:
            axes.set_ylim(bottom=panel.floor, top=max(finite.max(), panel.floor + 1) * _MARGIN)
        axes.set(xlabel="update")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(series) > 1:
            axes.legend(fontsize="small")

    alt = f"{panel.title} of each update. " + " ".join(
        f"{label.capitalize()}: {spread(values)}." for label, values in series.items()
    )
    return picture(lambda: axes_figure(draw, NARROW), panel.title, alt, panel.says)


def spread(values: np.ndarray) -> str:
    """First, last, smallest and largest of the finite values in words."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "no value"
    first, last, low, high = (number(float(v)) for v in (finite[0], finite[-1], finite.min(), finite.max()))
    return f"from {first} to {last}, between {low} and {high}"
