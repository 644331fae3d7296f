"""What there is to read in the folder of a run. Nothing in it is executed."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.monitor import get_monitor_files, load_results
from stable_baselines3.common.results_plotter import ts2xy

from sb3_trust.plots import read_updates
from sb3_trust.recorder import UPDATES_FILE
from sb3_trust.report.saved_model import SavedModel, find_model, read_model
from sb3_trust.safe_archive import read_file
from sb3_trust.trust_region.record import TRUST_REGION_FILE, TrustRegionRecord, read_trust_region

ARGUMENTS, SETTINGS, EVALUATION = "args.yml", "config.yml", "evaluation.json"
MAX_BYTES = 2**22  # of a YAML or JSON file
MAX_RECORD = 2**29  # bytes that the file of recorded updates unpacks to
MAX_SHOWN = 20_000  # characters of a file that is shown as it is


@dataclass
class Run:
    """
    A run. What is not there is empty or ``None``; ``problems`` says, by the file's name, what is there and
    cannot be read.

    :param folder: of the run
    :param updates: columns of ``updates.csv``, shape [n_updates] each
    :param reasons: update and reason of each that was rolled back
    :param env: the environment that the monitor files name
    :param timesteps: at the end of each training episode, shape [n_episodes]
    :param returns: of each training episode, shape [n_episodes]
    :param evaluation: ``mean``, ``std`` and ``returns`` of the final policy
    :param arguments: of the command that trained
    :param settings: hyperparameters that were asked for
    :param texts: files that are shown as they are, because they hold more than data
    :param model: the saved model
    :param record: what single updates did
    """

    folder: Path
    updates: dict[str, np.ndarray] = field(default_factory=dict)
    reasons: list[tuple[int, str]] = field(default_factory=list)
    env: str | None = None
    timesteps: np.ndarray = field(default_factory=lambda: np.zeros(0))
    returns: np.ndarray = field(default_factory=lambda: np.zeros(0))
    evaluation: dict[str, Any] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    model: SavedModel | None = None
    record: TrustRegionRecord | None = None
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def n_updates(self) -> int:
        """Rows of ``updates.csv``."""
        return len(self.updates.get("update", ()))

    def column(self, name: str) -> np.ndarray:
        """A column of ``updates.csv``, shape [n_updates]; NaN where there is none."""
        return self.updates.get(name, np.full(self.n_updates, math.nan))


def settings_file(folder: Path, name: str) -> Path | None:
    """A YAML file of a run: the Zoo puts it in a folder of the environment's name."""
    return next((p for p in (folder / name, *sorted(folder.glob(f"*/{name}"))) if p.is_file()), None)


def is_run(folder: Path) -> bool:
    """Whether the folder holds any file that a run leaves."""
    return bool(
        any((folder / name).is_file() for name in (UPDATES_FILE, EVALUATION, TRUST_REGION_FILE))
        or any(settings_file(folder, name) for name in (ARGUMENTS, SETTINGS))
        or get_monitor_files(escape(str(folder)))
    )


def read_run(folder: Path) -> Run:
    """All that can be read of a run."""
    run = Run(folder)
    for name in (ARGUMENTS, SETTINGS):
        _attempt(run, name, _read_yaml)
    _attempt(run, UPDATES_FILE, _read_updates)
    _attempt(run, EVALUATION, _read_evaluation)
    _attempt(run, "monitor.csv", _read_episodes)
    _attempt(run, "the saved model", _read_model)
    _attempt(run, TRUST_REGION_FILE, _read_record)
    return run


def _attempt(run: Run, name: str, read: Any) -> None:
    try:
        read(run, name)
    except Exception as error:  # a damaged or forged file can make a reader raise anything
        run.problems[name] = f"{type(error).__name__}: {error}"[:500]


def _read_yaml(run: Run, name: str) -> None:
    if (path := settings_file(run.folder, name)) is None:
        return
    content = read_file(path, MAX_BYTES).decode("utf-8", "replace")
    try:
        from sb3_trust.safe_settings import plain_settings  # needs PyYAML, which comes with the Zoo

        values = {str(key): value for key, value in plain_settings(content, path.name).items()}
    except (ValueError, ImportError):
        run.texts[name] = content[:MAX_SHOWN]
        raise
    if name == ARGUMENTS:
        run.arguments = values
    else:
        run.settings = values


def _read_updates(run: Run, name: str) -> None:
    path = run.folder / name
    if not path.is_file():
        return
    updates = read_updates(run.folder)
    if not updates:
        return
    if not {"update", "kl"} <= updates.keys():
        raise ValueError("it has no columns `update` and `kl`")
    run.updates = updates
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if reason := row.get("rollback_reason"):
                run.reasons.append((int(row["update"]), reason))


def _read_evaluation(run: Run, name: str) -> None:
    path = run.folder / name
    if not path.is_file():
        return
    found = json.loads(read_file(path, MAX_BYTES))
    returns = [float(value) for value in found["returns"]]
    mean, std = float(found["mean"]), float(found["std"])
    if not all(math.isfinite(value) for value in (mean, std, *returns)):
        raise ValueError("a return is not finite")
    run.evaluation = {"mean": mean, "std": std, "returns": returns}


def _read_episodes(run: Run, _: str) -> None:
    folder = escape(str(run.folder))
    files = [Path(path) for path in get_monitor_files(folder)]
    for path in files:
        if not path.is_file():  # a pipe or a device would be waited for, or never end
            raise ValueError(f"{path.name} is not a regular file")
    if any(path.stat().st_size > 0 for path in files):
        with files[0].open() as file:
            env = json.loads(file.readline(MAX_SHOWN)[1:]).get("env_id")
        run.env = None if env is None else str(env)
        timesteps, returns = ts2xy(load_results(folder), "timesteps")
        run.timesteps, run.returns = np.asarray(timesteps, float), np.asarray(returns, float)


def _read_model(run: Run, _: str) -> None:
    env = run.arguments.get("env")
    path = find_model(run.folder, env if isinstance(env, str) else None)
    if path is not None:
        run.model = read_model(path)


def _read_record(run: Run, name: str) -> None:
    path = run.folder / name
    if not path.is_file():
        return
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_RECORD:
            raise ValueError(f"it unpacks to more than {MAX_RECORD} bytes")
    run.record = read_trust_region(path)
