"""Figures as parts of the page: each painted for a light and for a dark background."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 150
_CSS_DPI = 96
_COMMON: dict[str, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "figure.titlesize": "medium",
    "legend.frameon": False,
    "grid.alpha": 0.25,
    "axes.grid": True,
}
INK, _LIGHT_INK = "#1c2330", "#dde3ec"  # as in page.css
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
_DARK_GROUND = "#1a1f28"  # as in page.css
_CONTRAST = 4.5  # of lines on it, as WCAG 2 reckons; 3 is what it asks for


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
    """

    title: str
    light: str
    dark: str
    width: int
    height: int
    alt: str
    caption: str = ""


def picture(draw: Callable[[], Figure], title: str, alt: str, caption: str = "") -> Picture:
    """
    :param draw: makes the figure
    """
    from matplotlib import rc_context

    settings: Any = {**_COMMON, **dict.fromkeys(_INKED, INK)}
    with rc_context(settings):
        figure = draw()
        if len(figure.axes) == 1:
            figure.axes[0].set_title("")  # the page has it
        light = _address(_painted(figure))
        # everything has its place by now
        figure.set_layout_engine("none")
        lighten(figure)
        dark = _address(_painted(figure))
    width, height = (round(_CSS_DPI * inches) for inches in figure.get_size_inches())
    return Picture(title, light, dark, width, height, alt, caption)


def _address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _painted(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()


def lighten(figure: Figure) -> None:
    """Make text, lines and areas of a figure light enough for a dark background."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Text

    for artist in figure.findobj():
        if isinstance(artist, Line2D):
            artist.set_color(legible(artist.get_color()))
            artist.set_markerfacecolor(legible(artist.get_markerfacecolor()))
            artist.set_markeredgecolor(legible(artist.get_markeredgecolor()))
            if (alpha := artist.get_alpha()) is not None:
                artist.set_alpha(min(1.6 * alpha, 1.0))  # faint dots are fainter on a dark background
        elif isinstance(artist, Patch):
            artist.set_facecolor(legible(artist.get_facecolor()))
            artist.set_edgecolor(legible(artist.get_edgecolor()))
        elif isinstance(artist, Text):
            artist.set_color(legible(artist.get_color()))


def legible(colour: Any) -> tuple[float, float, float, float]:
    """A colour mixed with as much white as it takes to be seen on the dark background, as RGBA."""
    from matplotlib.colors import to_rgba

    if to_rgba(colour) == to_rgba(INK):
        return to_rgba(_LIGHT_INK)
    red, green, blue, alpha = to_rgba(colour)
    while alpha > 0 and _contrast((red, green, blue), to_rgba(_DARK_GROUND)[:3]) < _CONTRAST:
        red, green, blue = (channel + 0.1 * (1 - channel) for channel in (red, green, blue))
    return red, green, blue, alpha


def _contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """Contrast ratio of two colours, 1 to 21: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: tuple[float, float, float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
