"""The front door: ``sb3-trust <script> ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import rl_zoo3.train
from rl_zoo3.enjoy import enjoy

from sb3_trust._version import __version__
from sb3_trust.report.command import report
from sb3_trust.zoo.manager import TrustExperimentManager
from sb3_trust.zoo.registration import ALGORITHMS, hyperparams_file
from sb3_trust.zoo.safe_enjoy import enjoy_safely

DESCRIPTION = """\
The RL Zoo's scripts with the algorithms of sb3-trust.

  train   train a model; saves it with updates.csv and a figure, and evaluates it
  enjoy   run a trained model
  report  write an HTML page about a run

Arguments of train and enjoy are the Zoo's: sb3-trust train --help. Settings come from sb3-trust's own files
unless -conf names another.

  sb3-trust train --algo trpo --env CartPole-v1 -P
  sb3-trust enjoy --algo trpo --env CartPole-v1 -f logs --no-render
  sb3-trust report logs/trpo/CartPole-v1_1

train --trust-region-record also keeps what single updates did to the policy, for pictures (docs/plots.md).
enjoy --safe runs a stranger's model without running code from its folder, or refuses it.
"""


def run(arguments: Sequence[str]) -> None:
    """
    Run one of the scripts.

    :param arguments: the script's name and its arguments
    """
    parser = argparse.ArgumentParser(
        prog="sb3-trust", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"sb3-trust {__version__}")
    parser.add_argument("script", choices=["train", "enjoy", "report"], help="which script to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")
    parsed = parser.parse_args(arguments)
    if parsed.script == "report":
        report(parsed.arguments)
    elif parsed.script == "train":
        record, others = without_flag("--trust-region-record", parsed.arguments)
        # the Zoo's train() looks its manager up in its module when it is called
        manager = partial(TrustExperimentManager, record_trust_region=record)
        rl_zoo3.train.ExperimentManager = manager  # type: ignore[misc, assignment]
        _call(rl_zoo3.train.train, "train", with_own_settings(others))
    else:
        safe, others = without_flag("--safe", parsed.arguments)
        _call(enjoy_safely if safe else enjoy, "enjoy", others)


def _call(script, name: str, arguments: Sequence[str]) -> None:  # type: ignore[no-untyped-def]
    """The Zoo's scripts read ``sys.argv``."""
    sys.argv = [f"sb3-trust {name}", *arguments]
    script()


def with_own_settings(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``train``, with our YAML file unless they name another or another's algorithm."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--algo", default="ppo")
    known, _ = parser.parse_known_args(arguments)
    # first, so that a file that the user names comes later and counts
    own = ["--conf-file", str(hyperparams_file(known.algo))] if known.algo in ALGORITHMS else []
    return [*own, *arguments]


def without_flag(flag: str, arguments: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether a flag of ours is among a script's arguments, and the Zoo's own among them."""
    return flag in arguments, [argument for argument in arguments if argument != flag]
