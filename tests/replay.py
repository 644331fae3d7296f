"""SB3's own rollout loop as the oracle for a rollout whose actions were recorded."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from tests.worlds import model_of

EXACT = ("observations", "actions", "episode_starts")
ROUNDED = ("values", "log_probs", "rewards")
RETURNS = ("advantages", "returns")


def collect(
    model: OnPolicyAlgorithm, callback: BaseCallback | None = None, rollouts: int = 1
) -> list[dict[str, np.ndarray]]:
    """
    Let a model collect, and not train.

    :return: copies of the buffer's arrays after each rollout, up to where it was ended
    """
    _, callback = model._setup_learn(10_000, callback)
    callback.on_training_start(locals(), globals())
    buffers = []
    for _ in range(rollouts):
        assert model.env is not None
        complete = model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        buffer = model.rollout_buffer
        names = (*EXACT, *ROUNDED, *(RETURNS if complete else ()))
        buffers.append({name: getattr(buffer, name)[: buffer.pos].copy() for name in names})
        if not complete:
            break
    return buffers


def normalized(model: OnPolicyAlgorithm) -> OnPolicyAlgorithm:
    """The model with normalised observations and rewards."""
    assert model.env is not None
    model.env = model._vec_normalize_env = VecNormalize(model.env)
    return model


def as_returned(actions: np.ndarray, space: spaces.Space) -> th.Tensor:
    """A step's actions out of a buffer, as a policy returns them."""
    tensor = th.as_tensor(actions)
    if isinstance(space, spaces.Discrete):
        return tensor.long().flatten()
    return tensor.long() if isinstance(space, spaces.MultiDiscrete) else tensor.float()


def replay(
    buffers: list[dict[str, np.ndarray]],
    theirs: OnPolicyAlgorithm,
    callback: BaseCallback | None = None,
    ending: np.ndarray | None = None,
) -> list[dict[str, np.ndarray]]:
    """
    What SB3's loop collects if its policy takes the recorded actions.

    :param theirs: SB3's model, with the policy as it was at the start, on the same environments
    :param ending: actions of the step at which the last rollout was ended, which no buffer has
    """
    recorded = [actions for buffer in buffers for actions in buffer["actions"]]
    steps = iter([*recorded, *([] if ending is None else [ending])])
    policy: Any = theirs.policy

    def forward(observations, deterministic=False):
        actions = as_returned(next(steps), theirs.action_space)
        values, log_prob, _ = policy.evaluate_actions(observations, actions)
        return actions.reshape(-1, *theirs.action_space.shape), values, log_prob

    policy.forward = forward
    result = collect(theirs, callback, len(buffers))
    assert next(steps, None) is None
    return result


def oracle_for(kind: str, model: OnPolicyAlgorithm, **kwargs: Any) -> OnPolicyAlgorithm:
    """SB3's PPO on equal environments with a copy of the model's policy as it is now."""
    theirs = model_of(kind, stable_baselines3.PPO, model.n_envs, n_steps=model.n_steps, **kwargs)
    theirs.policy.load_state_dict(copy.deepcopy(model.policy.state_dict()))
    return theirs


def assert_same(ours: list[dict[str, np.ndarray]], theirs: list[dict[str, np.ndarray]]) -> None:
    """Equal buffers: what comes of the environments exactly, what comes of the networks to rounding."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name, array in mine.items():
            assert array.shape == other[name].shape and array.dtype == other[name].dtype
            if name in EXACT:
                np.testing.assert_array_equal(array, other[name], err_msg=name)
            else:
                np.testing.assert_allclose(array, other[name], rtol=1e-4, atol=1e-4, err_msg=name)
