"""How far an update moved the policy."""

from __future__ import annotations

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trust.algorithms.statistics import NonFiniteUpdate, UpdateStatistics, finite
from sb3_trust.engines.base import PolicyEngine
from sb3_trust.engines.batch import Batch
from sb3_trust.numerics.objectives import required

# sigma^2 is a normal float32 below this
MAX_LOG_STD = 43.0


def check_standard_deviation(policy: ActorCriticPolicy) -> None:
    """
    :raises NonFiniteUpdate: where the square of a Gaussian's sigma has no digits left in float32
    """
    log_std = getattr(policy, "log_std", None)
    if isinstance(log_std, th.Tensor) and bool((log_std.abs() > MAX_LOG_STD).any()):
        raise NonFiniteUpdate("standard deviation")


def measure(engine: PolicyEngine, batch: Batch, statistics: UpdateStatistics) -> None:
    """
    How far the policy moved from ``batch.old_distribution``, on every state, in the mode in which it acts.

    :param statistics: told KL divergence and entropy
    :raises NonFiniteUpdate: if the KL divergence or the value loss is not finite
    """
    engine.policy.set_training_mode(False)
    terms = engine.measure(batch, {"log_prob", "entropy", "kl"})
    kl, log_prob = required(terms.kl), required(terms.log_prob)
    statistics.kl, statistics.kl_max = kl.mean().item(), kl.max().item()
    if terms.entropy is not None:
        statistics.entropy = terms.entropy.mean(dtype=th.float64).item()
    else:
        # the actions are the old policy's: importance weights make them the new one's
        weights = (log_prob - batch.old_log_prob).exp()
        statistics.entropy = -(weights * log_prob).mean(dtype=th.float64).item()
    for name in ("kl", "value_loss"):
        finite(name, getattr(statistics, name))
