"""Trust-region policy optimization for Stable-Baselines3."""

from sb3_trust._version import __version__
from sb3_trust.algorithms.npg import NPG
from sb3_trust.algorithms.ppo import PPO
from sb3_trust.algorithms.ppo_penalty import PPOPenalty
from sb3_trust.algorithms.reinforce import REINFORCE
from sb3_trust.algorithms.trpo import TRPO
from sb3_trust.errors import InvalidArgument, UnsafeModel
from sb3_trust.recorder import UpdateRecorder
from sb3_trust.safe_loading import load_safely
from sb3_trust.trust_region.recorder import TrustRegionRecorder

__all__ = [
    "NPG",
    "PPO",
    "REINFORCE",
    "TRPO",
    "InvalidArgument",
    "PPOPenalty",
    "TrustRegionRecorder",
    "UnsafeModel",
    "UpdateRecorder",
    "__version__",
    "load_safely",
]
