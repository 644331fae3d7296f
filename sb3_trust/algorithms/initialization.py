"""How a policy starts, where that is not the policy's own affair."""

from __future__ import annotations

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trust.errors import reject


def initialize_action_net(policy: ActorCriticPolicy, gain: float) -> None:
    """
    Initialize the policy's last layer anew: orthogonal weights with a gain, biases of 0. SB3's own gain is
    0.01: all actions about equally likely (Andrychowicz et al. 2021, section 3.2).

    :raises InvalidArgument: if the last layer is not linear
    """
    layer = getattr(policy, "action_net", None)
    if not isinstance(layer, th.nn.Linear):
        raise reject("action_net_gain", gain, "`None` for a policy whose `action_net` is not linear")
    th.nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        th.nn.init.zeros_(layer.bias)
