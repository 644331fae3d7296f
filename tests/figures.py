"""What figures are asked."""

from __future__ import annotations


def lines(axes):
    """The lines of the axes by label; two with one label would be a defect."""
    labelled = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    found = {line.get_label(): line for line in labelled}
    assert len(found) == len(labelled)
    return found


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def assert_drawn(figure, tmp_path):
    """It can be drawn, each axis has a label, its own or its neighbour's, and no legend hides data."""
    figure.savefig(tmp_path / "figure.png")
    rows = {axes.get_subplotspec().rowspan.start for axes in figure.axes}
    for axes in figure.axes:
        spec = axes.get_subplotspec()
        assert axes.get_xlabel() or spec.rowspan.start < max(rows)
        assert axes.get_ylabel() or spec.colspan.start > 0
        if axes.get_legend() is not None:
            box, inside = axes.get_legend().get_window_extent(), axes.get_window_extent()
            assert box.y1 <= inside.y0
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0
