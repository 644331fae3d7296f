"""Folders of small runs, as training leaves them."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.env_util import make_vec_env

from sb3_trust import TrustRegionRecorder, UpdateRecorder
from sb3_trust.algorithms.base import TrustRegionAlgorithm

SETTINGS = {"batch_size": 64, "gamma": 0.9, "n_steps": 64}
EVALUATION = {"mean": 123.456, "std": 7.0, "returns": [116.456, 130.456]}


def make_run(
    folder: Path,
    kind: type[TrustRegionAlgorithm],
    env: str = "CartPole-v1",
    records: bool = True,
    **arguments: Any,
) -> Path:
    """
    A short run with all the files that the Zoo, our recorders and an evaluation leave.

    :param records: whether single updates are recorded
    :param arguments: of the algorithm
    """
    vec_env = make_vec_env(env, 2, seed=0, monitor_dir=str(folder))
    model = kind("MlpPolicy", vec_env, seed=3, device="cpu", **SETTINGS, **arguments)
    callbacks = [UpdateRecorder(folder), *([TrustRegionRecorder(folder)] if records else [])]
    model.learn(640, callback=callbacks)
    vec_env.close()
    model.save(folder / f"{env}.zip")
    write_yaml(folder, "args.yml", {"algo": kind.__name__.lower(), "env": env, "seed": 3})
    write_yaml(folder, "config.yml", {**SETTINGS, "policy": "MlpPolicy", "frame": (1, 2)})
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    return folder


def write_yaml(folder: Path, name: str, values: dict) -> Path:
    """Settings as the Zoo writes them, in a folder within that of the run."""
    path = folder / "Env" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.dump(OrderedDict(values)))
    return path
