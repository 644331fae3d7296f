"""What single updates did to the policy, kept for pictures."""

from sb3_trust.trust_region.record import (
    LineSearch,
    Profile,
    RecordedUpdate,
    TrustRegionRecord,
    read_trust_region,
)
from sb3_trust.trust_region.recorder import TrustRegionRecorder

__all__ = [
    "LineSearch",
    "Profile",
    "RecordedUpdate",
    "TrustRegionRecord",
    "TrustRegionRecorder",
    "read_trust_region",
]
