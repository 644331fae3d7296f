"""Our algorithms in the RL Zoo's tables, and where their settings are."""

from __future__ import annotations

from pathlib import Path

from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

import sb3_trust
from sb3_trust.algorithms.base import TrustRegionAlgorithm
from sb3_trust.algorithms.npg import NPG
from sb3_trust.algorithms.ppo import PPO
from sb3_trust.algorithms.ppo_penalty import PPOPenalty
from sb3_trust.algorithms.reinforce import REINFORCE
from sb3_trust.algorithms.trpo import TRPO
from sb3_trust.zoo.samplers import (
    convert,
    sample_npg,
    sample_ppo,
    sample_ppo_penalty,
    sample_reinforce,
    sample_trpo,
)

ALGORITHMS: dict[str, type[TrustRegionAlgorithm]] = {
    kind.__name__.lower(): kind for kind in (REINFORCE, NPG, TRPO, PPO, PPOPenalty)
}
SAMPLERS = {
    "reinforce": sample_reinforce,
    "npg": sample_npg,
    "trpo": sample_trpo,
    "ppo": sample_ppo,
    "ppopenalty": sample_ppo_penalty,
}


def register() -> None:
    """
    Put our algorithms, samplers and converters into the Zoo's dictionaries, in place: its scripts hold
    references.
    """
    ALGOS.update(ALGORITHMS)
    HYPERPARAMS_SAMPLER.update(SAMPLERS)
    HYPERPARAMS_CONVERTER.update(dict.fromkeys(ALGORITHMS, convert))


def hyperparams_file(algorithm: str) -> Path:
    """The YAML file with our settings for one of our algorithms, in a wheel as in an editable install."""
    return Path(sb3_trust.__file__).parent / "hyperparams" / f"{algorithm}.yml"
