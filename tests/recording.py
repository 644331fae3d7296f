"""Runs with a recorder of single updates."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.callbacks import ConvertCallback

from sb3_trust import PPO, PPOPenalty, TrustRegionRecorder
from sb3_trust.trust_region import read_trust_region
from tests.worlds import model_of

BATCH = 128  # two environments, 64 steps


def recorded(tmp_path, kind, algorithm, n_updates=3, recorder=None, **kwargs):
    """A model after some updates, what was kept of them, and what each was to a listener."""
    if algorithm in (PPO, PPOPenalty):
        kwargs = {"batch_size": 32, "n_epochs": 3, **kwargs}
    model = model_of(kind, algorithm, **kwargs)
    recorder = recorder or TrustRegionRecorder(tmp_path)
    seen = []

    def listen(locals_, globals_):
        if not seen:
            model.add_update_listener(seen.append)
            seen.append(None)
        return True

    model.learn(n_updates * BATCH, callback=[recorder, ConvertCallback(listen)])
    return model, read_trust_region(tmp_path), seen[1:]


def at(update, name, fraction):
    """A profile's value at a fraction that is one of its points."""
    (index,) = np.flatnonzero(update.profile.fractions == fraction)
    return getattr(update.profile, name)[index]
