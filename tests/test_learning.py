"""Training to a score, with the settings in hyperparams/: the grid of benchmarks/learning.yml."""

from collections import defaultdict
from pathlib import Path

import pytest

from benchmarks.learning import execute, grid

RUNS = defaultdict(list)
for run in grid(Path(__file__).parent.parent / "benchmarks" / "learning.yml"):
    RUNS[run.algo, run.env].append(run)


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "env"), RUNS)
def test_goal_is_reached(algo, env, tmp_path):
    rows = [execute(run, tmp_path) for run in RUNS[algo, env]]
    scores = [row["return_mean"] for row in rows]
    goal = rows[0]["goal"]
    assert len(rows) == 3
    if env == "CartPole-v1":
        assert scores == [goal] * 3
    # the standard error of the mean return over all evaluated episodes: what evaluating again may change
    error = sum(row["return_std"] ** 2 / row["episodes"] for row in rows) ** 0.5 / len(rows)
    assert sum(scores) / len(scores) >= goal - error
    assert not any(row["rollbacks"] for row in rows)
    if algo == "trpo":
        assert all(float(row["kl_max_update"]) <= float(row["target_kl"]) * 1.001 for row in rows)
