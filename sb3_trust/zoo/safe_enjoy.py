"""
The Zoo's ``enjoy`` for models whose author need not be trusted.

Left to itself it runs code from a model's folder in four ways: the model's pickles, those of
``vecnormalize.pkl``, Python objects and expressions in the YAML files, and wrappers that those name.
"""

from __future__ import annotations

import ast
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import rl_zoo3.enjoy
import rl_zoo3.utils

from sb3_trust.errors import UnsafeModel
from sb3_trust.safe_loading import load_normalization_safely, load_safely
from sb3_trust.safe_settings import MAX_SETTINGS, plain_settings
from sb3_trust.zoo.registration import ALGORITHMS

# that a model's settings may ask for; the Zoo imports and calls whatever is named there
WRAPPERS = {
    "stable_baselines3.common.atari_wrappers.AtariWrapper",
    *(
        f"rl_zoo3.wrappers.{name}"
        for name in (
            "ActionNoiseWrapper",
            "ActionSmoothingWrapper",
            "DelayedRewardWrapper",
            "FrameSkip",
            "HistoryWrapper",
            "HistoryWrapperObsDict",
            "MaskVelocityWrapper",
            "TruncatedOnSuccessWrapper",
            "YAMLCompatResizeObservation",
        )
    ),
    *(
        f"gymnasium.wrappers.{name}"
        for name in (
            "ClipAction",
            "ClipReward",
            "DelayObservation",
            "FilterObservation",
            "FlattenObservation",
            "FrameStackObservation",
            "GrayscaleObservation",
            "MaxAndSkipObservation",
            "NormalizeObservation",
            "RescaleAction",
            "RescaleObservation",
            "ResizeObservation",
            "TimeAwareObservation",
            "TimeLimit",
        )
    ),
}


def load_settings(file: Any, Loader: Any = None) -> Any:
    """
    In the place of ``yaml.load``: the settings of a model, of which nothing runs code.

    :param Loader: what the Zoo asks for; not used
    :raises UnsafeModel: for a file that holds anything else than data, or names an unknown wrapper
    """
    path = getattr(file, "name", "the settings")
    settings = plain_settings(file.read(MAX_SETTINGS + 1), path)
    if isinstance(normalize := settings.get("normalize"), str) and not _is_literal(normalize):
        raise UnsafeModel(
            f"{path}: `normalize` must be plain data, as it is evaluated, but it is {normalize!r}"
        )
    for key in ("env_wrapper", "vec_env_wrapper"):
        _check_wrappers(settings.get(key), key, path)
    return settings


def _is_literal(expression: str) -> bool:
    """Whether an expression is a literal, or ``dict(...)`` of literals."""
    try:
        node = ast.parse(expression.strip(), mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            if node.args:
                return False
            for keyword in node.keywords:
                ast.literal_eval(keyword.value)
        else:
            ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _check_wrappers(wrappers: Any, key: str, path: str) -> None:
    for wrapper in wrappers if isinstance(wrappers, list) else [wrappers]:
        names = list(wrapper) if isinstance(wrapper, dict) else [wrapper]
        for name in names:
            if name is not None and not (isinstance(name, str) and name in WRAPPERS):
                raise UnsafeModel(f"{path}: `{key}` names {name!r}, which is not among the stock wrappers")


def enjoy_safely() -> None:
    """Run the Zoo's ``enjoy``, with readers that run nothing of a model's folder."""
    settings_reader = SimpleNamespace(load=load_settings, UnsafeLoader=None)
    algorithms = {
        name: SimpleNamespace(load=partial(load_safely, algorithm=algorithm))
        for name, algorithm in ALGORITHMS.items()
    }
    with (
        patch.object(rl_zoo3.enjoy, "yaml", settings_reader),
        patch.object(rl_zoo3.utils, "yaml", settings_reader),
        patch.object(rl_zoo3.utils, "VecNormalize", SimpleNamespace(load=load_normalization_safely)),
        # no algorithm but ours: the others would be loaded with pickle
        patch.dict(rl_zoo3.utils.ALGOS, algorithms, clear=True),
    ):
        rl_zoo3.enjoy.enjoy()
