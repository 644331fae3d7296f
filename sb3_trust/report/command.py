"""``sb3-trust report RUN_DIR``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

DESCRIPTION = """\
Write one HTML page about a run: learning curve, KL divergence of each update against its limit, other
statistics, settings, versions, and the clip objective to play with. The page needs no network. Nothing of the
run's folder is executed.
"""


def report(arguments: Sequence[str]) -> None:
    """
    Run the command.

    :param arguments: of the command, without its name
    :raises SystemExit: with code 2 where the folder is no run, 1 where the page cannot be made or written
    """
    parser = argparse.ArgumentParser(prog="sb3-trust report", description=DESCRIPTION)
    parser.add_argument("folder", metavar="RUN_DIR", type=Path, help="folder of the run")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the page (default: RUN_DIR/report.html)"
    )
    parsed = parser.parse_args(arguments)
    try:
        from sb3_trust.report.page import NotARun, write_report
    except ImportError as error:
        parser.exit(1, f"{parser.prog}: {error}; install it with: pip install 'sb3-trust[plots]'\n")
    try:
        path = write_report(parsed.folder, parsed.output)
    except NotARun as error:
        parser.error(str(error))
    except (OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"Report:  {path}")
