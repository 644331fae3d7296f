"""What is kept of updates, and the file that holds it."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from sb3_trust.atomic import replacing

TRUST_REGION_FILE = "trust_region.npz"
FORMAT = 1


@dataclass(frozen=True)
class Profile:
    """
    Objective and KL divergence on the straight line from the old parameters through the new ones, over all
    states of the rollout; shape [n_points] each. Objectives are less their value at the old parameters.

    :param fractions: of the full step: TRPO's before its line search, PPO's and PPOPenalty's before they were
        taken back to ``max_kl``, others' whole move. From 0 to beyond 1, the accepted fraction among them
    :param surrogate: the mean of ratio times advantage, and ``ent_coef`` times the mean entropy
    :param linear: its linear model, the gradient at the old parameters times the step
    :param clipped: as ``surrogate``, with each sample clipped as PPO clips it
    :param kl: KL(old || new), exact, averaged over states
    :param kl_max: KL(old || new) at the worst state
    :param quadratic: the quadratic model of ``kl``, half the step times the Fisher matrix times the step
    """

    fractions: np.ndarray
    surrogate: np.ndarray
    linear: np.ndarray
    clipped: np.ndarray
    kl: np.ndarray
    kl_max: np.ndarray
    quadratic: np.ndarray


@dataclass(frozen=True)
class LineSearch:
    """
    The points that TRPO's line search tried, in order; shape [n_trials] each.

    :param fractions: of the full step
    :param improvement: the surrogate's, exact
    :param expected_improvement: the surrogate's by its linear model
    :param constrained: what the limit is on: KL(old || new), averaged over states or at the worst of them
    :param accepted: whether the point was accepted: the last one or none
    """

    fractions: np.ndarray
    improvement: np.ndarray
    expected_improvement: np.ndarray
    constrained: np.ndarray
    accepted: np.ndarray


@dataclass(frozen=True)
class RecordedUpdate:
    """
    One update; ``nan`` where a quantity does not apply.

    :param update: its number, from 1 on, as in ``updates.csv``
    :param num_timesteps: time steps when it was made
    :param kl: KL(old || new), exact, averaged over states
    :param kl_max: KL(old || new) at the worst state
    :param kl_per_dimension: ``kl`` of each action dimension, [n_dimensions]; they sum to ``kl``
    :param target_kl: the KL divergence that it was to keep to or to aim at
    :param limit: the bound that it could not pass: TRPO's ``target_kl``, PPO's and PPOPenalty's ``max_kl``
    :param limit_at_worst_state: whether ``limit`` is on each state and not on the mean
    :param clip_range: PPO's epsilon at the time; 0.2 for algorithms without one
    :param accept_ratio: TRPO's
    :param accepted_fraction: how much of the full step was taken; 0: none
    :param ratios: pi_new(a|s) / pi_old(a|s) of samples of the rollout, [n_samples]
    :param advantages: theirs, normalised over the rollout where the algorithm normalises, [n_samples]
    :param profile: along the step
    :param line_search: TRPO's; ``None``: there was none
    """

    update: int
    num_timesteps: int
    kl: float
    kl_max: float
    kl_per_dimension: np.ndarray
    target_kl: float
    limit: float
    limit_at_worst_state: bool
    clip_range: float
    accept_ratio: float
    accepted_fraction: float
    ratios: np.ndarray
    advantages: np.ndarray
    profile: Profile
    line_search: LineSearch | None = None


@dataclass
class TrustRegionRecord:
    """
    Updates of one run.

    :param algorithm: name of its class
    :param action_space: name of the class of its action space, such as "Box"
    :param n_updates: updates so far, kept or not
    :param stride: distance of two updates that are kept
    :param updates: those that were kept, oldest first
    """

    algorithm: str = ""
    action_space: str = ""
    n_updates: int = 0
    stride: int = 1
    updates: list[RecordedUpdate] = field(default_factory=list)


SCALARS = {
    item.name: {"int": int, "float": float, "bool": bool}[str(item.type)]
    for item in fields(RecordedUpdate)
    if item.type in ("int", "float", "bool")
}
SAMPLES = ("ratios", "advantages")
PROFILE = tuple(item.name for item in fields(Profile))
SEARCH = tuple(item.name for item in fields(LineSearch))


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of different lengths as one array, filled up with NaN (``False``)."""
    longest = max(map(len, rows), default=0)
    kind = rows[0].dtype if rows else np.dtype(np.float64)
    table = np.full((len(rows), longest), False if kind.kind == "b" else math.nan, kind)
    for target, row in zip(table, rows, strict=True):
        target[: len(row)] = row
    return table


def write_trust_region(path: Path, record: TrustRegionRecord) -> None:
    """Write a record, whole or not at all; nothing in the file is pickled."""
    updates = record.updates
    empty = LineSearch(*(np.zeros(0, bool if name == "accepted" else np.float64) for name in SEARCH))
    searches = [update.line_search or empty for update in updates]
    arrays: dict[str, Any] = {
        "format": FORMAT,
        "algorithm": record.algorithm,
        "action_space": record.action_space,
        "n_updates": record.n_updates,
        "stride": record.stride,
        "n_samples": [len(update.ratios) for update in updates],
        "n_trials": [len(search.fractions) for search in searches],
        "kl_per_dimension": _padded([update.kl_per_dimension for update in updates]),
        **{name: [getattr(update, name) for update in updates] for name in SCALARS},
        **{name: _padded([getattr(update, name) for update in updates]) for name in SAMPLES},
        **{f"profile_{name}": _padded([getattr(u.profile, name) for u in updates]) for name in PROFILE},
        **{f"line_search_{name}": _padded([getattr(s, name) for s in searches]) for name in SEARCH},
    }
    with replacing(path) as file:
        np.savez(file, **{name: np.asarray(value) for name, value in arrays.items()})  # type: ignore[arg-type]


def read_trust_region(folder: str | Path) -> TrustRegionRecord:
    """
    Read what a :class:`~sb3_trust.TrustRegionRecorder` has left in a folder.

    :param folder: the folder of the run, or the file itself
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is something else, or of a later version
    """
    path = Path(folder)
    path = path / TRUST_REGION_FILE if path.is_dir() else path
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        version = int(arrays["format"])
        record = _record(arrays) if version == FORMAT else None
    except (ValueError, LookupError, AttributeError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a file of a TrustRegionRecorder ({error})") from error
    if record is None:
        raise ValueError(f"{path} is of format {version}, but this version of sb3-trust reads {FORMAT}")
    return record


def _record(arrays: dict[str, np.ndarray]) -> TrustRegionRecord:
    return TrustRegionRecord(
        algorithm=str(arrays["algorithm"]),
        action_space=str(arrays["action_space"]),
        n_updates=int(arrays["n_updates"]),
        stride=int(arrays["stride"]),
        updates=[_update(arrays, index) for index in range(len(arrays["update"]))],
    )


def _update(arrays: dict[str, np.ndarray], index: int) -> RecordedUpdate:
    n_samples, n_trials = int(arrays["n_samples"][index]), int(arrays["n_trials"][index])
    search = {name: arrays[f"line_search_{name}"][index][:n_trials] for name in SEARCH}
    return RecordedUpdate(
        kl_per_dimension=arrays["kl_per_dimension"][index],
        **{name: kind(arrays[name][index]) for name, kind in SCALARS.items()},
        **{name: arrays[name][index][:n_samples] for name in SAMPLES},
        profile=Profile(**{name: arrays[f"profile_{name}"][index] for name in PROFILE}),
        line_search=LineSearch(**search) if n_trials else None,
    )
