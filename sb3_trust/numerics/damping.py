"""The Levenberg-Marquardt rule for the damping of the Fisher matrix."""

from __future__ import annotations

import math

MIN_DAMPING, MAX_DAMPING = 1e-6, 1e3
# the quadratic model is trusted below the first ratio of measured to predicted KL, and not above the second
TRUSTED, DISTRUSTED = 1.25, 1.5
FACTOR = 1.5
# more damping after a line search that found nothing, and how often it is tried
RETRY_FACTOR = 4.0
MAX_RETRIES = 3


def next_damping(damping: float, kl: float, predicted_kl: float) -> float:
    """
    The damping for the next update (after Marquardt 1963; Martens 2010, section 4.1): divided by 1.5 where
    the KL divergence of the step came out below 1.25 times what the quadratic model predicts, multiplied by
    1.5 above 1.5 times.

    :param kl: measured; one that is not finite leaves the damping as it is
    :param predicted_kl: ``s^T F s / 2`` for the step s
    """
    if math.isfinite(kl) and predicted_kl > 0:
        ratio = kl / predicted_kl
        if ratio > DISTRUSTED:
            damping *= FACTOR
        elif ratio < TRUSTED:
            damping /= FACTOR
    return min(max(damping, MIN_DAMPING), MAX_DAMPING)
