"""Which statistics of an update the page draws, and what it says of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """
    A figure of statistics against updates.

    :param title: of the figure
    :param columns: of ``updates.csv``, with the name that each has in the legend
    :param says: what the figure shows, in a sentence
    :param log: logarithmic axis, where all values are positive
    :param floor: what is below is cut off
    """

    title: str
    columns: dict[str, str]
    says: str
    log: bool = False
    floor: float | None = None


PANELS = (
    Panel(
        "Explained variance",
        {"explained_variance": "explained variance"},
        "Share of the variance of the returns that the value function explains: 1 is all of it, 0 or less "
        "is no better than their mean.",
        floor=-1.0,
    ),
    Panel(
        "Entropy",
        {"entropy": "entropy"},
        "Mean entropy of the policy after each update, in nats. It should fall slowly.",
    ),
    Panel(
        "Step fraction",
        {"step_fraction": "step fraction"},
        "How much of the full step was taken: under TRPO what the line search accepted, 0 where it accepted "
        "none; under PPO what was left after the step was taken back to max_kl.",
    ),
    Panel(
        "Improvement of the surrogate",
        {"expected_improvement": "expected", "actual_improvement": "actual"},
        "What the linear model promised for the last point that the line search tried, and what came of it.",
    ),
    Panel(
        "Clipping",
        {"clip_fraction": "clip fraction", "clip_range": "clip range"},
        "Share of samples whose probability ratio was outside of the clip range, and the clip range.",
    ),
    Panel(
        "KL coefficient",
        {"kl_coef": "KL coefficient"},
        "The weight of the KL penalty, which adapts so that the KL divergence comes to its target.",
        log=True,
    ),
    Panel(
        "Value loss",
        {"value_loss": "value loss"},
        "Mean squared error of the value function against the returns.",
        log=True,
    ),
    Panel(
        "Standard deviation",
        {"std": "standard deviation"},
        "Mean standard deviation of the Gaussian policy's actions.",
    ),
    Panel(
        "Gradient norm",
        {"gradient_norm": "gradient norm"},
        "Norm of the policy's gradient; under PPO of the whole loss, before it is clipped.",
        log=True,
    ),
    Panel(
        "Conjugate gradient and line search",
        {"cg_iterations": "CG iterations", "line_search_steps": "points of the line search"},
        "Work that was spent on each step of the policy.",
    ),
    Panel(
        "Rollbacks",
        {"rollbacks": "rollbacks"},
        "Updates that were undone, counted from the start of training.",
    ),
)
