"""
Steps per second of our algorithms and of their peers, in alternation in one process.

Each case trains for some rollouts on either side, several times in turn, with the same hyperparameters (the
peer's defaults unless the case says otherwise) and on the same number of threads. What is reported is the
median over the repeats, and the smallest and the largest ratio of neighbouring runs. Peak memory is that of a
process of its own for each side.

    python benchmarks/speed.py
    python benchmarks/speed.py --cases ppo/CartPole-v1/1 --repeats 5 --threads 2
    python benchmarks/speed.py --sbx-python sbx-venv/bin/python     # SBX's PPO too, run by that interpreter
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import sb3_contrib
import stable_baselines3
import torch as th
from sides import CASES, Case, Timing, cpu_name, environment_alone, peak_mb, timed, use_threads

import sb3_trust

HERE = Path(__file__).parent
COLUMNS = (
    "case", "peer", "threads", "repeats", "env_alone",
    "ours_total", "peer_total", "ratio", "ratio_min", "ratio_max", "ours_collect", "peer_collect",
    "ours_update", "peer_update", "update_ratio", "ours_share_of_env", "peer_share_of_env",
    "ours_peak_mb", "peer_peak_mb", "sb3_trust", "torch", "numpy", "stable_baselines3", "sb3_contrib", "cpu",
)  # fmt: skip
SIDES: dict[str, dict[str, Any]] = {
    "ours": {"ppo": sb3_trust.PPO, "trpo": sb3_trust.TRPO},
    "peer": {"ppo": stable_baselines3.PPO, "trpo": sb3_contrib.TRPO},
}
SBX_CASES = ("ppo/CartPole-v1/8", "ppo/HalfCheetah-v5/8")
PEERS = {"ppo": "stable_baselines3.PPO", "trpo": "sb3_contrib.TRPO"}


class Sbx:
    """SBX's PPO in a process of another interpreter, which keeps its compiled functions between repeats."""

    def __init__(self, python: Path) -> None:
        self._process = subprocess.Popen(
            [python, HERE / "sbx_worker.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, case: Case, rollouts: int, seed: int) -> Timing:
        assert self._process.stdin is not None and self._process.stdout is not None
        job = {"env": case.env, "n_envs": case.n_envs, "transitions": case.transitions}
        self._process.stdin.write(json.dumps({**job, "rollouts": rollouts, "seed": seed}) + "\n")
        self._process.stdin.flush()
        while not (line := self._process.stdout.readline()).startswith("{"):
            if not line:
                raise RuntimeError("the process with SBX has ended")
        return Timing(**json.loads(line))


def side(name: str, case: Case, rollouts: int, seed: int) -> Timing:
    """Train for some rollouts, after one that is not counted."""
    model = case.make_model(SIDES[name][case.algorithm], seed)
    timed(model, case.transitions, 1)
    timing = timed(model, case.transitions, rollouts)
    model.env.close()  # type: ignore[union-attr]
    return timing


def peak_memory(case_name: str, name: str) -> int:
    """Peak resident memory in MB of a process that trains one side for two rollouts."""
    command = [sys.executable, __file__, "--memory-of", name, "--cases", case_name]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(output.split()[-1])


def measure(case_name: str, repeats: int, rollouts: int, threads: int, sbx: Sbx | None) -> list[dict]:
    """The rows of one case: against the peer, and against SBX where that is asked for."""
    case = CASES[case_name]
    rollouts = min(rollouts, case.rollouts)
    env = case.make_env(seed=0)
    alone = environment_alone(env)
    env.close()
    timings: dict[str, list[Timing]] = {"ours": [], "peer": [], "sbx": []}
    with_sbx = sbx is not None and case_name in SBX_CASES
    for repeat in range(repeats):
        for name in SIDES:
            timings[name].append(side(name, case, rollouts, repeat))
        if sbx is not None and with_sbx:
            timings["sbx"].append(sbx(case, rollouts, repeat))
    memory = {name: peak_memory(case_name, name) for name in SIDES}
    rows = [row(case_name, PEERS[case.algorithm], timings["ours"], timings["peer"], alone, memory, threads)]
    if with_sbx:
        alone_memory = {"ours": memory["ours"]}
        rows.append(row(case_name, "sbx.PPO", timings["ours"], timings["sbx"], alone, alone_memory, threads))
    return rows


def row(
    case_name: str,
    peer: str,
    ours: list[Timing],
    theirs: list[Timing],
    alone: float,
    memory: dict[str, int],
    threads: int,
) -> dict[str, object]:
    """One line of the results."""

    def median(timings: list[Timing], name: str) -> float:
        return float(np.median([getattr(timing, name) for timing in timings]))

    def ratios(name: str) -> list[float]:
        return [getattr(a, name) / getattr(b, name) for a, b in zip(ours, theirs, strict=True)]

    speeds = {
        f"{name}_{part}": round(median(timings, part))
        for name, timings in (("ours", ours), ("peer", theirs))
        for part in ("total", "collect", "update")
    }
    return {
        "case": case_name,
        "peer": peer,
        "threads": threads,
        "repeats": len(ours),
        "env_alone": round(alone),
        **speeds,
        "ratio": round(float(np.median(ratios("total"))), 2),
        "ratio_min": round(min(ratios("total")), 2),
        "ratio_max": round(max(ratios("total")), 2),
        "update_ratio": round(float(np.median(ratios("update"))), 2),
        "ours_share_of_env": round(speeds["ours_total"] / alone, 3),
        "peer_share_of_env": round(speeds["peer_total"] / alone, 3),
        "ours_peak_mb": memory["ours"],
        "peer_peak_mb": memory.get("peer", ""),
        **{
            name: version(name.replace("_", "-"))
            for name in ("sb3_trust", "torch", "numpy", "stable_baselines3", "sb3_contrib")
        },
        "cpu": cpu_name(),
    }


def table(rows: list[dict]) -> str:
    """The results in Markdown."""
    lines = [
        "| case | against | env alone | ours | peer | ratio (smallest to largest) | rollouts | updates "
        "| share of the env's rate | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        collect = float(r["ours_collect"]) / float(r["peer_collect"])
        lines.append(
            f"| {r['case']} | {r['peer']} | {r['env_alone']} | {r['ours_total']} | {r['peer_total']} "
            f"| **{r['ratio']}x** ({r['ratio_min']} to {r['ratio_max']}) | {collect:.1f}x "
            f"| {r['update_ratio']}x | {float(r['ours_share_of_env']):.0%} / "
            f"{float(r['peer_share_of_env']):.0%} | {r['ours_peak_mb']} / {r['peer_peak_mb'] or '-'} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure the cases and store them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=3, help="in each repeat")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--sbx-python",
        type=Path,
        help="interpreter of an environment with sbx-rl, threadpoolctl and gymnasium[mujoco]",
    )
    parser.add_argument("--results", type=Path, default=HERE / "results" / "speed.csv")
    parser.add_argument("--memory-of", choices=list(SIDES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    use_threads(args.threads)
    if args.memory_of:
        side(args.memory_of, CASES[args.cases[0]], 1, 0)
        print(peak_mb())
        return
    sbx = Sbx(args.sbx_python) if args.sbx_python else None
    print(f"torch {th.__version__}, numpy {np.__version__}, {args.threads} thread(s), {cpu_name()}")
    args.results.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    with args.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for case_name in args.cases:
            new = measure(case_name, args.repeats, args.rollouts, args.threads, sbx)
            writer.writerows(new)
            file.flush()
            rows += new
            for r in new:
                ratio = f"{r['ratio']}x ({r['ratio_min']} to {r['ratio_max']})"
                speeds = f"{r['ours_total']} against {r['peer_total']} steps/s"
                print(f"{case_name:34} {ratio} of {r['peer']}: {speeds}", flush=True)
    print(table(rows))
    print(f"written to {args.results}")


if __name__ == "__main__":
    main()
