"""``python -m sb3_trust`` and ``sb3-trust``: the RL Zoo's commands with our algorithms."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; a missing RL Zoo is said in one line."""
    if sys.argv[1:2] == ["report"]:  # needs no RL Zoo
        from sb3_trust.report.command import report

        return report(sys.argv[2:])
    try:
        from sb3_trust.zoo.cli import run
    except ImportError as error:
        sys.exit(f"sb3-trust: {error}")
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
