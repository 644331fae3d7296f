"""Which engine serves a policy."""

from __future__ import annotations

from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trust.engines.autograd import AutogradEngine
from sb3_trust.engines.base import PolicyEngine
from sb3_trust.engines.closed_form import ClosedFormEngine
from sb3_trust.engines.recognition import Unserved, recognize
from sb3_trust.errors import InvalidArgument


def choose_engine(policy: ActorCriticPolicy, wanted: str, present: PolicyEngine | None) -> PolicyEngine:
    """
    An engine for a policy as it is now.

    :param wanted: "auto", "autograd" or "closed_form"
    :param present: the engine so far, kept if it still serves
    :raises InvalidArgument: if "closed_form" is wanted and cannot serve
    """
    if present is not None and present.policy is not policy:
        present = None
    if wanted != "autograd":
        try:
            perceptrons = recognize(policy)
        except Unserved as reason:
            if wanted == "closed_form":
                raise InvalidArgument(
                    '`engine` must be "auto" or "autograd" for this policy, but got "closed_form", '
                    f"which cannot serve it exactly: {reason}"
                ) from None
        else:
            if isinstance(present, ClosedFormEngine) and present.perceptrons.same_as(perceptrons):
                return present
            return ClosedFormEngine(policy, perceptrons)
    return present if isinstance(present, AutogradEngine) else AutogradEngine(policy)
