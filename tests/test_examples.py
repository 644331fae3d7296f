"""The examples and benchmarks run, and leave what they say."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(script, *arguments, cwd):
    command = [sys.executable, str(ROOT / script), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_train_and_plot(tmp_path):
    output = run("examples/train_and_plot.py", "--timesteps", "2048", "--folder", "here", cwd=tmp_path)
    for name in ("TRPO", "PPO", "PPOPenalty"):
        assert f"{name} " in output
        assert {"model.zip", "training.png", "updates.csv"} <= {
            p.name for p in (tmp_path / "here" / name).iterdir()
        }


@pytest.mark.filterwarnings("ignore")
def test_continue_from_sb3(tmp_path):
    output = run("examples/continue_from_sb3.py", "--timesteps", "1024", cwd=tmp_path)
    assert output.count("return") == 2


def test_own_objective(tmp_path):
    output = run("examples/own_objective.py", "--timesteps", "2048", cwd=tmp_path)
    assert "SPO " in output and "KL of each sample " in output


def test_pictures(tmp_path):
    options = ["--timesteps", "2048", "--seeds", "2", "--continuous-env", "Pendulum-v1"]
    output = run("examples/pictures.py", *options, "--pictures", "drawn", cwd=tmp_path)
    drawn = {path.name: path.stat().st_size for path in (tmp_path / "drawn").iterdir()}
    # the pictures of their page, and no others
    named = re.findall(r"\(images/(\w+\.png)\)", (ROOT / "docs" / "plots.md").read_text())
    assert sorted(drawn) == sorted(named)
    assert all(f"{name} (" in output and size > 5000 for name, size in drawn.items())


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_when_ppo_fails(tmp_path):
    options = ["--quick", "--processes", "1", "--results", "here"]
    output = run("examples/when_ppo_fails.py", *options, cwd=tmp_path)
    names = [f"when_ppo_fails_{name}_quick" for name in ("sparse", "dimensions", "flips")]
    paths = [tmp_path / "here" / f"{name}.csv" for name in names]
    assert all(path.with_suffix(".png").stat().st_size > 20_000 for path in paths)
    sparse, dimensions, flips = map(rows_of, paths)
    check_sparse(sparse)
    assert "| random actions find it | 1.00 | 0.00 |" in output
    check_dimensions(dimensions)
    check_flips(flips)
    # what is there is not run again, and what is missing is
    paths[2].write_text("".join(line for line in paths[2].open() if not line.startswith("TRPO,")))
    again = run("examples/when_ppo_fails.py", *options, "--experiments", "flips", cwd=tmp_path)
    assert output.endswith(again)
    assert rows_of(paths[2]) != flips and sorted(rows_of(paths[2]), key=str) == sorted(flips, key=str)


def check_sparse(rows):
    methods = {"REINFORCE", "NPG", "TRPO", "PPO", "PPOPenalty"}
    cases = {(row["method"], int(row["distance"]), float(row["ent_coef"])) for row in rows}
    assert cases == {(method, *case) for method in methods for case in ((4, 0), (15, 0.01), (30, 0))}
    for row in rows:
        assert int(row["num_timesteps"]) == 4096 and float(row["kl"]) > 0
        assert 0 <= int(row["successes"]) <= int(row["episodes"]) and 0 < float(row["entropy"]) <= 0.6932
        # four right actions in a row are found by chance in an episode of 32, more are not
        assert (int(row["successes"]) > 50) == (row["distance"] == "4")


def check_dimensions(rows):
    bounds = {"PPO, max_kl": 0.01, "TRPO": 0.01, "PPO, kl_stop": None, "PPO": None, "PPOPenalty": None}
    assert {row["method"] for row in rows} == {*bounds, "TRPO, target x d"}
    expected = {(n, steps) for n in "14" for steps in ("1024", "5120")}
    assert {(row["dimensions"], row["num_timesteps"]) for row in rows} == expected
    for row in rows:
        each, kl = [float(k) for k in row["kl_per_dimension"].split()], float(row["kl"])
        assert len(each) == int(row["dimensions"])
        assert sum(each) == pytest.approx(kl, rel=1e-3) and min(each) >= 0
        bound = 0.01 * len(each) if row["method"] == "TRPO, target x d" else bounds[row["method"]]
        assert bound is None or kl <= bound
        # to second order the log ratio's variance is twice the KL divergence
        assert float(row["log_ratio_std"]) ** 2 == pytest.approx(2 * kl, rel=0.4)
        assert float(row["score"]) < 1
    assert any(float(row["kl"]) > 0.02 for row in rows if row["method"] == "PPO")


def check_flips(rows):
    controlled = {"PPO, KL-steered rate", "PPOPenalty", "TRPO"}
    assert {r["method"] for r in rows} == {"PPO", "PPO, falling rate", "PPO, std above 0.37", *controlled}
    for row in rows:
        assert 0 < float(row["kl"]) <= float(row["kl_max"]) and float(row["score"]) < 1
        assert row["method"] != "TRPO" or float(row["kl_max"]) <= 0.01
    steps = [int(row["num_timesteps"]) for row in rows if row["method"] == "TRPO"]
    assert steps == list(range(2048, 10241, 2048))


def test_speed_benchmark_writes_its_row(tmp_path):
    options = ["--cases", "trpo/CartPole-v1/8", "--repeats", "1", "--rollouts", "1", "--results", "speed.csv"]
    assert "ratio" in run("benchmarks/speed.py", *options, cwd=tmp_path)
    with (tmp_path / "speed.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["ours_total"]) > 0 and float(row["ratio"]) > 0


def test_learning_benchmark_does_not_repeat_what_it_has(tmp_path):
    options = ["--algo", "trpo", "--env", "CartPole-v1", "-n", "1024", "--seeds", "0", "--results", "r.csv"]
    assert "1 of 1 runs to do" in run("benchmarks/learning.py", *options, cwd=tmp_path)
    assert "0 of 1 runs to do" in run("benchmarks/learning.py", *options, cwd=tmp_path)
    with (tmp_path / "r.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["seed"], row["n_timesteps"], row["goal"], row["episodes"]) == ("0", "1024", "500", "100")
