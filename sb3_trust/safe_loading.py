"""Loading of models whose author need not be trusted."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_trust.algorithms.base import TrustRegionAlgorithm
from sb3_trust.algorithms.loading import LOADED_WITH, MARKS
from sb3_trust.algorithms.npg import NPG
from sb3_trust.algorithms.ppo import PPO
from sb3_trust.algorithms.ppo_penalty import PPOPenalty
from sb3_trust.algorithms.reinforce import REINFORCE
from sb3_trust.algorithms.trpo import TRPO
from sb3_trust.errors import InvalidArgument, UnsafeModel, reject
from sb3_trust.safe_archive import (
    MAX_BYTES,
    MAX_DATA_BYTES,
    MAX_MEMBERS,
    MAX_TENSORS,
    pack,
    read_file,
    unpack,
)
from sb3_trust.safe_globals import NORMALIZATION
from sb3_trust.safe_pickle import loads

ALGORITHMS: dict[str, type[TrustRegionAlgorithm]] = {
    algorithm.__name__: algorithm for algorithm in (NPG, PPO, REINFORCE, TRPO, PPOPenalty)
}
TENSORS = ("policy.pth", "policy.optimizer.pth", "pytorch_variables.pth")
MEMBERS = ("data", *TENSORS, "_stable_baselines3_version", "system_info.txt")
REQUIRED = ("data", "policy.pth", "policy.optimizer.pth")
# `_setup_model` makes it from `learning_rate`, whatever the file says
REBUILT = "lr_schedule"
_PICKLED = ":serialized:"


def load_safely(
    path: Any,
    env: GymEnv | None = None,
    *,
    algorithm: type[TrustRegionAlgorithm] | None = None,
    custom_objects: dict[str, Any] | None = None,
    device: th.device | str = "auto",
    **kwargs: Any,
) -> TrustRegionAlgorithm:
    """
    Load a model that sb3-trust, SB3's PPO or sb3-contrib's TRPO has saved, without running what its file
    holds.

    What is pickled in the file is built only where it consists of stock classes and numbers; ``load`` never
    sees a pickle. ``lr_schedule`` is not read: it is rebuilt from ``learning_rate``.

    :param path: the file, or a binary stream
    :param env: as in ``load``
    :param algorithm: the class to load the model as; ``None``: the one whose arguments the file holds
    :param custom_objects: values for entries of the file, which are then not read; for those that are refused
    :param device: as in ``load``
    :param kwargs: arguments to change, as in ``load``
    :raises UnsafeModel: if the file holds anything else; names every refused entry and what it asked for
    :raises InvalidArgument: if the file is damaged or is no such model, or an argument given here cannot work
    :raises FileNotFoundError: if there is no such file
    """
    if not isinstance(custom_objects, (dict, type(None))):
        raise reject("custom_objects", custom_objects, "a dict or None")
    given = custom_objects or {}
    what, members = _read_members(path)
    data = _entries(members["data"], what)
    algorithm = algorithm or _algorithm_of(data, what)
    values = _vetted(data, algorithm, given, what)
    # `load` finds no pickle in the file: it takes these entries from what was vetted
    members["data"] = json.dumps({**data, **dict.fromkeys(values)}).encode()
    overridden = frozenset(kwargs) | frozenset(given)
    return algorithm.load(
        io.BytesIO(pack(members)),
        env,
        device=device,
        custom_objects={**values, **given},
        **{LOADED_WITH: overridden, **kwargs},
    )


def load_normalization_safely(path: Any, venv: VecEnv) -> VecNormalize:
    """
    As ``VecNormalize.load``, without running what the file holds.

    :raises UnsafeModel: if the file holds anything but normalization statistics
    """
    try:
        normalization = loads(read_file(path, MAX_DATA_BYTES), NORMALIZATION)
    except UnsafeModel as error:
        raise UnsafeModel(f"{path}: refused: {error}") from error
    if type(normalization) is not VecNormalize:
        raise UnsafeModel(f"{path}: holds a {type(normalization).__name__}, not a VecNormalize")
    normalization.set_venv(venv)
    return normalization


def _read_members(path: Any) -> tuple[str, dict[str, bytes]]:
    """The file's name for error messages, and its members; those of tensors are vetted."""
    if not hasattr(path, "read") and not Path(path).exists() and Path(f"{path}.zip").exists():
        path = f"{path}.zip"
    what = "the stream" if hasattr(path, "read") else str(path)
    members = unpack(read_file(path, MAX_BYTES), what, MAX_MEMBERS, MEMBERS)
    if missing := [name for name in REQUIRED if name not in members]:
        raise InvalidArgument(f"`path` must be a saved model, but {what} has no {', '.join(missing)}")
    for name in TENSORS:
        if name in members:
            members[name] = _vetted_tensors(members[name], name, what)
    return what, members


def _vetted_tensors(content: bytes, name: str, what: str) -> bytes:
    """A file of tensors, packed anew: PyTorch reads what was measured here and no other format."""
    packed = pack(unpack(content, f"{what}: {name}", MAX_TENSORS))
    try:
        tensors = th.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises many kinds for a forged file
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = refused.group(1) if refused else f"{type(error).__name__}: {error}".splitlines()[0]
        raise UnsafeModel(f"{what}: `{name}` is refused: it needs {reason}") from error
    if not isinstance(tensors, dict):
        raise UnsafeModel(f"{what}: `{name}` must hold a dict, but holds a {type(tensors).__name__}")
    # SB3 assigns those to whatever attribute they name; none of these algorithms has any
    if name == "pytorch_variables.pth" and tensors:
        raise UnsafeModel(f"{what}: `{name}` must be empty, but it holds {', '.join(map(repr, tensors))}")
    return packed


def _entries(content: bytes, what: str) -> dict[str, Any]:
    if len(content) > MAX_DATA_BYTES:
        raise UnsafeModel(f"{what}: `data` is larger than {MAX_DATA_BYTES} bytes")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"`path` must be a saved model, but `data` of {what} is no JSON") from error
    needed = {"observation_space", "action_space", "policy_class", "policy_kwargs"}
    if not isinstance(data, dict) or not needed <= data.keys():
        raise InvalidArgument(f"`path` must be a saved model, but `data` of {what} lacks its arguments")
    data.pop(REBUILT, None)
    return data


def _algorithm_of(data: dict[str, Any], what: str) -> type[TrustRegionAlgorithm]:
    found = [name for name, mark in MARKS.items() if mark in data]
    if len(found) != 1:
        held = " and ".join(f"a {name}'s" for name in found) or "none of their arguments"
        raise InvalidArgument(f"`path` must hold a model for {', '.join(MARKS)}, but {what} holds {held}")
    return ALGORITHMS[found[0]]


def _vetted(
    data: dict[str, Any], algorithm: type[TrustRegionAlgorithm], given: dict[str, Any], what: str
) -> dict[str, Any]:
    """
    The values of the entries that are pickled.

    :param given: entries that are not read
    :raises UnsafeModel: that names all refused entries
    """
    # `load` makes an environment of an entry `env`, which can import any module
    never_saved = {*algorithm.__new__(algorithm)._excluded_save_params(), LOADED_WITH}
    values: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name, entry in data.items():
        if name in given:
            continue
        if name in never_saved or hasattr(algorithm, name):
            refused[name] = "no saved model has an entry of this name"
        elif isinstance(entry, dict) and _PICKLED in entry:
            try:
                values[name] = loads(base64.b64decode(entry[_PICKLED]))
            except (UnsafeModel, ValueError, TypeError) as error:
                refused[name] = f"refused: {error}"
    if refused:
        entries = "".join(f"\n  {name}: {reason}" for name, reason in refused.items())
        passed = ", ".join(f'"{name}": ...' for name in refused)
        raise UnsafeModel(
            f"{what} holds entries that could run its author's code, or that were damaged:{entries}\n"
            f"Nothing of them was run. Give values of your own for them: custom_objects={{{passed}}}"
        )
    return values
