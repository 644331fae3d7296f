"""The section with the clip objective, which the reader moves."""

from __future__ import annotations

from sb3_trust.report.ratios import DEFAULT_EPSILON, figure_data, usable_epsilon
from sb3_trust.report.run import Run
from sb3_trust.report.sections import Section

HOW_TO_RECORD = "This run has no recorded probability ratios, so only the objective is drawn."


def clip_section(run: Run) -> Section:
    """The clip objective as an interactive figure."""
    ranges = [found for value in run.column("clip_range") if (found := usable_epsilon(value)) is not None]
    epsilon = ranges[0] if ranges else DEFAULT_EPSILON
    return Section(
        "clip",
        "The clip objective",
        lead="PPO maximises the mean of min(rA, clip(r, 1 − ε, 1 + ε)A), where r is the new probability of "
        "an action over the old one and A its advantage. Move ε and change the sign of A: the red part is "
        "where the objective is flat, so that a sample there no longer moves the policy.",
        notes=[HOW_TO_RECORD],
        clip_data=figure_data([], epsilon, bool(ranges)),
    )
