"""
Time steps per second of ``examples/cartpole_five_methods.py`` and of the textbook's loop, batch by batch in
alternation, one thread each: the same settings, batches of 10,000 steps.

    python -m benchmarks.textbook_speed     # prints and writes results/textbook_speed.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
import warnings
from pathlib import Path

import numpy as np
import torch as th

from benchmarks.sides import cpu_name
from benchmarks.textbook_loop import ALGORITHMS, train

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

from cartpole_five_methods import Run, iterations, make_model  # noqa: E402

COLUMNS = ("method", "ours", "textbook", "ratio", "ratio_min", "ratio_max", "batches", "cpu")


def measure(method: str, batches: int, seed: int) -> dict[str, object]:
    """Steps per second of both sides: medians over batches, and the spread of the ratio batch by batch."""
    ours = iterations(make_model(Run(method, "CartPole-v1", seed, batches)), batches)
    theirs = train(method, seed)
    speeds, before = [], [0, 0]
    for _ in range(batches):
        pair = []
        for side, rows in enumerate((ours, theirs)):
            row = next(rows)
            steps = int(row["num_timesteps"]) - before[side]
            before[side] += steps
            pair.append(steps / (float(row["collect_seconds"]) + float(row["update_seconds"])))
        speeds.append(pair)
    ratios = [a / b for a, b in speeds]
    mine, other = np.median(speeds, axis=0)
    return {
        "method": method,
        "ours": round(mine),
        "textbook": round(other),
        "ratio": round(mine / other, 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        "batches": batches,
        "cpu": cpu_name(),
    }


def main() -> None:
    """Measure each method."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "textbook_speed.csv")
    args = parser.parse_args()
    th.set_num_threads(1)
    warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
    rows = []
    for method in args.methods:
        rows.append(measure(method, args.batches, args.seed))
        line = "{method:12} {ours:7,} {textbook:7,} steps/s  ratio {ratio} ({ratio_min} to {ratio_max})"
        print(line.format(**rows[-1]), flush=True)
    with args.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
