"""Checks of the arguments that all algorithms share."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trust.engines.base import ENGINES
from sb3_trust.errors import (
    InvalidArgument,
    check_boolean,
    check_choice,
    check_integer,
    check_number,
    check_number_or_schedule,
    check_optional,
    is_number,
    reject,
)
from sb3_trust.numerics.schedules import check_target

if TYPE_CHECKING:
    from sb3_trust.algorithms.base import TrustRegionAlgorithm

ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
OBSERVATION_SPACES = (*ACTION_SPACES, spaces.Dict)


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    :raises InvalidArgument: for a space that the policies cannot serve
    """
    for name, space, allowed in (
        ("observation space", observation_space, OBSERVATION_SPACES),
        ("action space", action_space, ACTION_SPACES),
    ):
        if not isinstance(space, allowed):
            kinds = ", ".join(kind.__name__ for kind in allowed)
            raise InvalidArgument(f"`env` must have an {name} among {kinds}, but its {name} is {space}")
    if isinstance(action_space, spaces.MultiBinary) and len(action_space.shape) != 1:
        raise InvalidArgument(
            f"`env` must have flat MultiBinary actions, but its action space is {action_space}"
        )
    if isinstance(action_space, spaces.Box) and not action_space.is_bounded():
        raise InvalidArgument(
            f"`env` must have finite bounds of actions, but its action space is {action_space}"
        )


def check_common_arguments(model: TrustRegionAlgorithm) -> None:
    """
    :raises InvalidArgument: if an argument of the common constructor cannot work
    """
    recurrent = hasattr(model.policy_class, "_process_sequence")  # sb3-contrib's recurrent policies
    if recurrent or not issubclass(model.policy_class, ActorCriticPolicy):
        raise reject("policy", model.policy_class, "an ActorCriticPolicy without recurrence or action masks")
    check_choice("engine", model.engine, ENGINES)
    check_number_or_schedule("learning_rate", model.learning_rate)
    check_integer("n_steps", model.n_steps, 1)
    check_number("gamma", model.gamma, 0.0, 1.0)
    check_number("gae_lambda", model.gae_lambda, 0.0, 1.0)
    check_optional(check_target, "critic_learning_rate", model.critic_learning_rate)
    check_optional(check_number, "action_net_gain", model.action_net_gain, open_minimum=True)
    check_number("ent_coef", model.ent_coef)
    check_boolean("use_sde", model.use_sde)
    check_integer("sde_sample_freq", model.sde_sample_freq, -1)
    check_integer("stats_window_size", model._stats_window_size, 1)
    check_optional(check_integer, "seed", model.seed, 0, 2**32 - 1)


def check_log_std_bounds(bounds: Any, log_std: Any, with_values: bool) -> None:
    """
    :param log_std: the policy's parameter, or ``None``
    :param with_values: the parameter has the values that the bounds are for
    :raises InvalidArgument: unless the bounds are ``None``, or two numbers that ``log_std`` lies between
    """
    if bounds is None:
        return
    pair = isinstance(bounds, (list, tuple)) and len(bounds) == 2 and all(map(is_number, bounds))
    if not pair or not -math.inf < bounds[0] < bounds[1] < math.inf:
        raise reject("log_std_bounds", bounds, "`None` or two finite numbers, the lower one first")
    if log_std is None:
        raise reject("log_std_bounds", bounds, "`None` for a policy without a Gaussian's `log_std`")
    low, high = log_std.min().item(), log_std.max().item()
    # as the parameter would hold them
    lower, upper = log_std.new_tensor([float(bound) for bound in bounds]).tolist()
    if with_values and not lower <= low <= high <= upper:
        held = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        raise reject("log_std_bounds", bounds, f"such that the policy's log_std ({held}) lies between them")


def check_minibatch(
    model: TrustRegionAlgorithm, batch_size: int, normalize_advantage: bool, per_minibatch: bool
) -> None:
    """
    Check the sizes; a batch size that leaves a truncated minibatch only warns, as in SB3.

    :param per_minibatch: advantages are normalised in each minibatch rather than over the rollout
    :raises InvalidArgument: if advantages cannot be normalised
    """
    check_integer("batch_size", batch_size, 1)
    check_boolean("normalize_advantage", normalize_advantage)
    if normalize_advantage and per_minibatch and batch_size < 2:
        raise reject(
            "batch_size", batch_size, "greater than 1 where advantages are normalised in each minibatch"
        )
    if model.env is None:
        return
    n_steps, n_envs = model.n_steps, model.env.num_envs
    buffer_size = n_steps * n_envs
    if normalize_advantage and buffer_size < 2:
        raise InvalidArgument(
            "`n_steps * n_envs` must be greater than 1 where advantages are normalised. "
            f"Currently n_steps={n_steps} and n_envs={n_envs}"
        )
    if buffer_size % batch_size > 0:
        warnings.warn(
            f"You have specified a mini-batch size of {batch_size},"
            f" but because the `RolloutBuffer` is of size `n_steps * n_envs = {buffer_size}`,"
            f" after every {buffer_size // batch_size} untruncated mini-batches,"
            f" there will be a truncated mini-batch of size {buffer_size % batch_size}\n"
            f"We recommend using a `batch_size` that is a factor of `n_steps * n_envs`.\n"
            f"Info: (n_steps={n_steps} and n_envs={n_envs})",
            stacklevel=2,
        )
