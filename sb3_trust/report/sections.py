"""The sections of the page."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from markupsafe import Markup
from stable_baselines3.common.utils import get_system_info

import sb3_trust
from sb3_trust.algorithms.base import TrustRegionAlgorithm
from sb3_trust.recorder import UPDATES_FILE
from sb3_trust.report.drawings import episodes_figure, kl_figure, panel_picture, spread
from sb3_trust.report.pictures import Picture, picture
from sb3_trust.report.run import ARGUMENTS, SETTINGS, Run
from sb3_trust.report.shown import count, number, shown
from sb3_trust.report.statistics import PANELS

ROUNDING = 1e-9  # of a KL divergence; a target_kl that a schedule has brought to 0 is not exceeded by it
LAST_EPISODES = 100  # whose mean return is told
MAX_ROWS = 200  # of a table
NO_UPDATES = (
    f"There is no {UPDATES_FILE} with an update in this folder. `sb3-trust train` writes it, and so does the "
    "callback UpdateRecorder(folder) of sb3_trust."
)


@dataclass
class Table:
    """
    :param headings: of the columns; the first column heads the rows
    :param folded: whether it is shown only when asked for
    :param numeric: whether all but the first column are numbers
    """

    caption: str
    headings: list[str]
    rows: list[list[str]]
    folded: bool = False
    numeric: bool = False


@dataclass
class Section:
    """
    :param id: anchor in the page
    :param half: whether it takes half of a wide page
    :param large: whether its figures need room, and are moved sideways on a narrow page
    :param lead: what it shows, and what came out
    :param notes: what is missing or cannot be read
    :param texts: files shown as they are, by name
    :param clip_data: of the interactive figure, if it stands here
    :param choices: the updates that the figure can show
    """

    id: str
    title: str
    half: bool = False
    large: bool = False
    lead: str = ""
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    clip_data: Markup | None = None
    choices: list[str] = field(default_factory=list)


def problem(run: Run, *names: str) -> list[str]:
    """Notes about files that are there and cannot be read."""
    return [f"{name} cannot be read: {run.problems[name]}" for name in names if name in run.problems]


def algorithms() -> dict[str, type]:
    """Our algorithms by their key in the Zoo."""
    classes = (getattr(sb3_trust, name) for name in sb3_trust.__all__)
    return {
        c.__name__.lower(): c for c in classes if inspect.isclass(c) and issubclass(c, TrustRegionAlgorithm)
    }


def algorithm_class(run: Run) -> type | None:
    """The algorithm of a run, by its key in the Zoo or the name of its class, if it is one of ours."""
    name = run.arguments.get("algo", run.record.algorithm if run.record else None)
    return algorithms().get(name.lower()) if isinstance(name, str) else None


def fill_learning(section: Section, run: Run) -> None:
    """Return of training episodes."""
    section.notes = problem(run, "monitor.csv")
    if len(run.returns) == 0:
        if not section.notes:
            section.notes.append(
                "No training episode is recorded here: there are no monitor files, or none ended."
            )
        return
    last = run.returns[-LAST_EPISODES:]
    section.lead = (
        f"{count(len(run.returns), 'training episode')} that ended, "
        f"{count(int(run.timesteps[-1]), 'time step')} long in all. "
        f"Mean return of the last {len(last)}: {number(last.mean())}, standard deviation "
        f"{number(last.std())}. These are returns of the exploring policy."
    )
    alt = f"Return of each training episode against time steps, with a rolling mean: {spread(run.returns)}."
    section.pictures.append(picture(lambda: episodes_figure(run), "", alt))


def fill_kl(section: Section, run: Run) -> None:
    """KL divergence of each update against its limit."""
    section.notes = problem(run, UPDATES_FILE)
    if run.n_updates == 0:
        section.notes = section.notes or [NO_UPDATES]
        return
    kl, target = run.column("kl"), run.column("target_kl")
    finite = kl[np.isfinite(kl)]
    mean, largest = (number(float(f(finite))) if len(finite) else "-" for f in (np.mean, np.max))
    section.lead = (
        "KL(old || new): exact, summed over action dimensions, averaged over the states of the rollout. "
        f"Over {count(run.n_updates, 'update')}: mean {mean}, largest {largest}. "
    )
    limited = np.isfinite(target) & np.isfinite(kl)
    alt = f"KL divergence of each update: {spread(kl)}."
    if limited.any():
        name, values = "mean over states", kl
        if run.settings.get("kl_statistic") == "max":
            name, values = "worst state", run.column("kl_max")
        above = int((values[limited] > target[limited] + ROUNDING).sum())
        section.lead += (
            f"{above:,} of {count(int(limited.sum()), 'update')} had a KL divergence ({name}) above "
            "target_kl. Under TRPO target_kl is a bound; elsewhere it is what the update aims or stops at."
        )
        alt += f" target_kl: {spread(target)}."
    else:
        section.lead += "The run set no target_kl."
    section.pictures.append(picture(lambda: kl_figure(run), "", alt))


def fill_statistics(section: Section, run: Run) -> None:
    """The other statistics of the updates."""
    section.notes = problem(run, UPDATES_FILE)
    if run.n_updates == 0:
        section.notes = section.notes or [NO_UPDATES]
        return
    rollbacks = run.column("rollbacks")
    undone = int(np.nanmax(rollbacks)) if np.isfinite(rollbacks).any() else 0
    section.lead = "No update was rolled back." if undone == 0 else f"{count(undone, 'update')} rolled back."
    for panel in PANELS:
        if "rollbacks" in panel.columns and undone == 0:
            continue
        if (drawn := panel_picture(panel, run)) is not None:
            section.pictures.append(drawn)
    if run.reasons:
        rows = [[str(update), shown(reason)] for update, reason in run.reasons[:MAX_ROWS]]
        section.tables.append(Table("Updates that were rolled back", ["Update", "Reason"], rows))
    section.tables.append(_all_statistics(run.updates))


def _all_statistics(updates: dict[str, np.ndarray]) -> Table:
    rows = []
    for name, values in list(updates.items())[:MAX_ROWS]:
        finite = values[np.isfinite(values)]
        if name == "update" or not len(finite):
            continue
        cells = (finite[0], finite[-1], finite.min(), float(np.median(finite)), finite.max())
        rows.append([shown(name), *(number(float(cell)) for cell in cells)])
    headings = ["Statistic", "First", "Last", "Smallest", "Median", "Largest"]
    return Table("All statistics in numbers", headings, rows, folded=True, numeric=True)


def fill_settings(section: Section, run: Run) -> None:
    """Hyperparameters, and the command that trained."""
    section.notes = problem(run, SETTINGS, ARGUMENTS, "the saved model")
    section.texts = run.texts
    algorithm = algorithm_class(run)
    entries: dict[str, Any] = {}
    if run.model is not None:
        known = inspect.signature(algorithm).parameters if algorithm else _PUBLIC_ENTRIES
        entries = {name: run.model.entries[name] for name in sorted(known) if name in run.model.entries}
    if run.settings:
        rows = [
            [shown(name), shown(value), shown(entries[name]) if name in entries else ""]
            for name, value in list(run.settings.items())[:MAX_ROWS]
        ]
        headings = ["Setting", f"Asked for ({SETTINGS})", "In the saved model"]
        section.tables.append(Table("Hyperparameters", headings, rows))
    if others := [[name, shown(value)] for name, value in entries.items() if name not in run.settings]:
        folded = bool(run.settings)
        caption = "What else the saved model says" if folded else "Hyperparameters of the saved model"
        section.tables.append(Table(caption, ["Setting", "Value"], others, folded=folded))
    if not section.tables and not section.notes:
        section.notes.append(f"The folder has no {SETTINGS} and no saved model that could be read.")
    given = {name: value for name, value in run.arguments.items() if value is not None}
    if given:
        rows = [[shown(name), shown(value)] for name, value in list(given.items())[:MAX_ROWS]]
        section.tables.append(Table(f"The command ({ARGUMENTS})", ["Argument", "Value"], rows, folded=True))


# of a model whose class is not known
_PUBLIC_ENTRIES = frozenset(
    name for algorithm in algorithms().values() for name in inspect.signature(algorithm).parameters
)


def fill_versions(section: Section, run: Run) -> None:
    """Versions that trained, and that made the page."""
    here, _ = get_system_info(print_info=False)
    here["sb3-trust"] = sb3_trust.__version__
    here.update(_installed("rl_zoo3", "sb3-contrib", "matplotlib"))
    of_run = run.model.versions if run.model else {}
    if not of_run:
        section.notes.append("The folder has no saved model that records the versions of the run.")
    names = [*of_run, *(name for name in here if name not in of_run)][:MAX_ROWS]
    rows = [[shown(n), shown(of_run.get(n, "not recorded")), shown(here.get(n, ""))] for n in names]
    section.tables.append(
        Table("What the run recorded, and what made this page", ["", "Run", "This page"], rows)
    )


def _installed(*packages: str) -> Iterable[tuple[str, str]]:
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue
