"""Figures of what runs recorded. Each function returns a Matplotlib figure and leaves pyplot alone."""

from sb3_trust.plots.learning import learning_curves
from sb3_trust.plots.runs import kl_per_update, read_updates, training_figure
from sb3_trust.plots.steps import line_search_trace, surrogate_landscape
from sb3_trust.plots.updates import clipped_surrogate, kl_per_action_dimension
from sb3_trust.trust_region.record import read_trust_region

__all__ = [
    "clipped_surrogate",
    "kl_per_action_dimension",
    "kl_per_update",
    "learning_curves",
    "line_search_trace",
    "read_trust_region",
    "read_updates",
    "surrogate_landscape",
    "training_figure",
]
