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
    assert drawn.keys() == set(re.findall(r"\(images/(\w+\.png)\)", (ROOT / "docs" / "plots.md").read_text()))
    assert all(f"{name} (" in output and size > 5000 for name, size in drawn.items())


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
