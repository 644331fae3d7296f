"""Files as a stranger may write them."""

import base64
import json
import os
import zipfile

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize


class Evil:
    """Unpickled freely, it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Reduced:
    """Pickled as a call, with a state."""

    def __init__(self, *reduction):
        self.reduction = reduction

    def __reduce__(self):
        return self.reduction


def written(members, path, **kwargs):
    with zipfile.ZipFile(path, "w", **kwargs) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_entries(members, **entries):
    """The members, with some entries of ``data`` replaced by pickles."""
    data = json.loads(members["data"])
    for name, raw in entries.items():
        data[name] = {":type:": "x", ":serialized:": base64.b64encode(raw).decode()}
    return {**members, "data": json.dumps(data).encode()}


def normalized(env="Pendulum-v1"):
    normalization = VecNormalize(DummyVecEnv([lambda: gym.make(env)]))
    normalization.seed(1)
    normalization.reset()
    for _ in range(20):
        normalization.step([normalization.action_space.sample()])
    return normalization
