"""The page: its head, its sections, and how they become one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from sb3_trust._version import __version__
from sb3_trust.atomic import replacing
from sb3_trust.errors import InvalidArgument
from sb3_trust.report.run import Run, is_run, read_run
from sb3_trust.report.sections import (
    Section,
    algorithm_class,
    fill_kl,
    fill_learning,
    fill_settings,
    fill_statistics,
    fill_versions,
)
from sb3_trust.report.shown import count, number, shown
from sb3_trust.report.single_updates import fill_clip, fill_steps

REPORT_FILE = "report.html"
NOT_RECORDED = "not recorded"
_HERE = Path(__file__).parent
# by what fills it: anchor, title, whether it takes half of a wide page, whether its figures are large
SECTIONS: dict[Callable[[Section, Run], None], tuple[str, str, bool, bool]] = {
    fill_learning: ("learning", "Learning curve", True, False),
    fill_kl: ("kl", "KL divergence of each update", True, False),
    fill_clip: ("clip", "The clip objective", False, False),
    fill_steps: ("steps", "Steps of single updates", False, True),
    fill_statistics: ("statistics", "Statistics of each update", False, False),
    fill_settings: ("settings", "Settings", False, False),
    fill_versions: ("versions", "Versions", False, False),
}


class NotARun(InvalidArgument):
    """The folder holds nothing that a run leaves."""


@dataclass
class Fact:
    """A number or a name at the head of the page."""

    name: str
    value: str
    detail: str = ""


def write_report(folder: str | Path, output: str | Path | None = None) -> Path:
    """
    Write the page about a run. It is written whole or not at all; nothing of the folder is executed.

    :param folder: of the run: what ``sb3-trust train`` or an ``UpdateRecorder`` left
    :param output: the page; ``None``: ``report.html`` in the folder
    :return: where the page is
    :raises NotARun: if there is nothing of a run in the folder
    :raises OSError: if the page cannot be written, or the folder has a link in its place
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotARun(f"`folder` must be the folder of a run, but there is no folder {str(folder)!r}")
    if not is_run(folder):
        raise NotARun(
            "`folder` must be the folder of a run, with monitor files, updates.csv, evaluation.json or the "
            f"Zoo's YAML files, but {str(folder)!r} has none of them{_runs_below(folder)}"
        )
    path = folder / REPORT_FILE if output is None else Path(output)
    if output is None and path.is_symlink():
        raise FileExistsError(f"{str(path)!r} is a link, which is not followed: say where the page is to be")
    page = render(read_run(folder))
    with replacing(path) as file:
        # what YAML makes of a lone surrogate has no UTF-8
        file.write(page.encode("utf-8", "replace"))
    return path


def _runs_below(folder: Path, most: int = 5) -> str:
    below = []
    with suppress(OSError):  # a folder that may not be read
        folders = (path for pattern in ("*", "*/*") for path in sorted(folder.glob(pattern)))
        below = [path for path in folders if path.is_dir() and is_run(path)]
    if not below:
        return ""
    return "; runs in it: " + ", ".join(map(str, below[:most])) + (", ..." if len(below) > most else "")


def render(run: Run) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((_HERE / name).read_text("utf-8") for name in ("page.css", "page.js"))
    facts = headline(run)
    return environment.get_template("page.html").render(
        title=title(facts),
        folder=str(run.folder),
        facts=facts,
        sections=[filled(Section(*place), fill, run) for fill, place in SECTIONS.items()],
        # the browser runs no other script and applies no other style than these
        style=Markup(style),
        style_hash=Markup(_hash(style)),
        script=Markup(script),
        script_hash=Markup(_hash(script)),
        version=__version__,
    )


def filled(section: Section, fill: Callable[[Section, Run], None], run: Run) -> Section:
    """A section; what a damaged or forged file keeps from being shown is said in it."""
    try:
        fill(section, run)
    except ImportError:
        raise
    except Exception as error:
        section.notes.append(f"This cannot be shown: {type(error).__name__}: {error}"[:500])
    return section


def title(facts: list[Fact]) -> str:
    """The page's title from what stands at its head."""
    algorithm, env = (fact.value for fact in facts[:2])
    return ("A run" if algorithm == NOT_RECORDED else algorithm) + (
        "" if env == NOT_RECORDED else f" on {env}"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def headline(run: Run) -> list[Fact]:
    """What was trained, for how long, and what came of it."""
    entries = run.model.entries if run.model else {}
    algo = run.arguments.get("algo", (run.record.algorithm or None) if run.record else None)
    known = algorithm_class(run)
    seed = run.arguments.get("seed", entries.get("seed"))
    facts = [
        Fact("Algorithm", known.__name__ if known else _or_not_recorded(algo)),
        Fact("Environment", _or_not_recorded(run.arguments.get("env", run.env))),
        Fact("Seed", _or_not_recorded(seed)),
        Fact("Time steps", _timesteps(run)),
    ]
    if run.evaluation is not None:
        evaluation = run.evaluation
        facts.append(
            Fact(
                "Evaluated return",
                f"{number(evaluation['mean'])} ± {number(evaluation['std'])}",
                f"mean ± standard deviation of {count(len(evaluation['returns']), 'episode')}",
            )
        )
    else:
        detail = run.problems.get("evaluation.json", "no evaluation.json in the folder")
        facts.append(Fact("Evaluated return", "-", detail))
    if run.n_updates:
        facts.append(Fact("Updates", f"{run.n_updates:,}"))
    return facts


def _or_not_recorded(value: object) -> str:
    return NOT_RECORDED if value is None else shown(value)


def _timesteps(run: Run) -> str:
    """From the recorded updates, the model or the episodes, whichever got furthest."""
    recorded = run.column("num_timesteps")
    found = [steps[np.isfinite(steps)][-1] for steps in (recorded, run.timesteps) if np.isfinite(steps).any()]
    of_model = run.model.entries.get("num_timesteps") if run.model else None
    if isinstance(of_model, int) and 0 <= of_model < 2**63:
        found.append(of_model)
    return f"{int(max(found)):,}" if found else NOT_RECORDED
