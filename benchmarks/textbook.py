"""
Run REINFORCE, TRPO and PPO of ``textbook_loop.py``, a row of results for each batch, on one thread a run.

The rows of a run are written when it has ended; started again, only what is missing is run.

    python -m benchmarks.textbook --algo trpo --seed 0 --batches 30    # prints; --results FILE writes
    python -m benchmarks.textbook --all --processes 2                  # writes results/textbook.csv

``--all`` runs every algorithm with seeds 0 to 9, each until the mean return of a batch has reached 400 and 20
batches more; ``--algo`` and ``--seed`` narrow it.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch as th
from tqdm import tqdm

from benchmarks.textbook_loop import ALGORITHMS, BATCH_STEPS, COLUMNS, ENV, Row, train

RESULTS = Path(__file__).parent / "results" / "textbook.csv"
BATCHES, SEEDS = 100, range(10)
GOAL, BATCHES_AFTER_GOAL, HELD = 400.0, 20, 450.0
Key = tuple[str, int]


@dataclass(frozen=True)
class Run:
    """One run: ``batches`` of them, or with ``until_goal`` those until the goal and some more, if fewer."""

    method: str
    seed: int
    batches: int
    until_goal: bool
    batch_steps: int = BATCH_STEPS
    env: str = ENV

    @property
    def key(self) -> Key:
        """What tells the run from others in the results."""
        return self.method, self.seed

    def complete(self, rows: list[Row]) -> bool:
        """Whether these are all the batches of the run, in order, or more."""
        reached = first_batch(rows) if self.until_goal else None
        enough = self.batches if reached is None else min(self.batches, reached + BATCHES_AFTER_GOAL)
        return len(rows) >= enough


def first_batch(rows: list[Row]) -> int | None:
    """The number of the first batch of a run whose mean return reached the goal."""
    return next((int(row["batch"]) for row in rows if float(row["mean_return"]) >= GOAL), None)


def execute(run: Run) -> list[Row]:
    """All rows of a run."""
    th.set_num_threads(1)
    rows: list[Row] = []
    for row in train(run.method, run.seed, run.batch_steps, run.env):
        rows.append(row)
        if run.complete(rows):
            break
    return rows


def read(path: Path | None) -> dict[Key, list[Row]]:
    """The rows of each run in a file, which need not be there."""
    found: dict[Key, list[Row]] = defaultdict(list)
    if path is not None and path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                found[row["method"], int(row["seed"])].append(row)
    return found


def write(path: Path, runs: dict[Key, list[Row]]) -> None:
    """Put all runs into a file, in order; a break leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        order = list(ALGORITHMS)
        for key in sorted(runs, key=lambda key: (order.index(key[0]), key[1])):
            writer.writerows(runs[key])
    partial.replace(path)


def summary(runs: dict[Key, list[Row]]) -> str:
    """A Markdown table: batches until the goal, returns after it, KL divergences, steps per second."""
    lines = [
        f"| method | seeds | reached {GOAL:.0f} | first batch: median (range) | batches after it "
        f"| of them below {HELD:.0f} | lowest | mean KL | largest KL | steps/s | collecting | updating |",
        "|---" * 12 + "|",
    ]
    for method in dict.fromkeys(key[0] for key in runs):
        members = [rows for key, rows in runs.items() if key[0] == method]
        firsts = [first for rows in members if (first := first_batch(rows)) is not None]
        batches = f"{np.median(firsts):g} ({min(firsts)} to {max(firsts)})" if firsts else "-"
        after = [
            float(row["mean_return"])
            for rows in members
            if (first := first_batch(rows)) is not None
            for row in rows[first : first + BATCHES_AFTER_GOAL]
        ]
        kl, collecting, updating = (
            np.array([float(row[name]) for rows in members for row in rows])
            for name in ("kl", "collect_seconds", "update_seconds")
        )
        steps = sum(int(rows[-1]["num_timesteps"]) for rows in members)
        rates = (steps / seconds.sum() for seconds in (collecting + updating, collecting, updating))
        cells = [method, len(members), len(firsts), batches, len(after)]
        cells += [sum(value < HELD for value in after), f"{min(after):.0f}" if after else "-"]
        cells += [f"{kl.mean():.4f}", f"{kl.max():.4f}", *(f"{rate:.0f}" for rate in rates)]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def run_all(runs: Iterable[Run], results: Path | None, processes: int) -> dict[Key, list[Row]]:
    """Run what the file lacks, write each run when it has ended, and return the rows of all."""
    runs, recorded = list(runs), read(results)
    pending = [run for run in runs if not run.complete(recorded[run.key])]
    with (
        multiprocessing.get_context("spawn").Pool(processes) as pool,
        tqdm(total=len(runs), initial=len(runs) - len(pending), unit="run") as bar,
    ):
        for rows in pool.imap_unordered(execute, pending):
            method, seed = rows[0]["method"], rows[0]["seed"]
            recorded[method, seed] = rows
            if results is not None:
                write(results, recorded)
            bar.set_postfix_str(f"{method} {seed}: {GOAL:.0f} at batch {first_batch(rows)} of {len(rows)}")
            bar.update()
    return {run.key: recorded[run.key] for run in runs}


def main() -> None:
    """Run what the command line asks for and print a summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="until the goal and 20 batches more")
    parser.add_argument("--algo", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    parser.add_argument("--seed", nargs="+", type=int, help="default: 0, or 0 to 9 with --all")
    parser.add_argument("--batches", type=int, default=BATCHES, help="of a run, at most (--all) or exactly")
    parser.add_argument("--batch-steps", type=int, default=BATCH_STEPS, help="steps of a batch, at least")
    parser.add_argument("--env", default=ENV)
    parser.add_argument("--results", type=Path, help="CSV file of one environment and one size of batches")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    if args.batches < 1 or args.processes < 1:
        parser.error("--batches and --processes must be at least 1")
    results = args.results
    if args.all and results is None:
        if (args.env, args.batch_steps) != (ENV, BATCH_STEPS):
            parser.error("--all with another environment or size of batches needs --results")
        results = RESULTS
    seeds = args.seed or (list(SEEDS) if args.all else [0])
    # seed by seed, so that a broken-off study has something of everything
    runs = [
        Run(algo, seed, args.batches, args.all, args.batch_steps, args.env)
        for seed in dict.fromkeys(seeds)
        for algo in args.algo
    ]
    found = run_all(runs, results, args.processes)
    if not args.all:
        print(",".join(COLUMNS))
        for rows in found.values():
            print("\n".join(",".join(str(value) for value in row.values()) for row in rows))
    print(summary(found))


if __name__ == "__main__":
    main()
