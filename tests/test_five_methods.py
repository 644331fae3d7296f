"""The example of five methods: what it runs, writes and draws."""

import csv
import sys
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import cartpole_five_methods as example  # noqa: E402
import five_methods_figures as figures  # noqa: E402

ROW = example.Row("ppo", "CartPole-v1", "", 0, 1, 10_000, 0.0, 20, 0.004, 0.5, 1.0)


def rows_of(method, *runs, setting="", size=10_000):
    """A row for each batch of each run, of its mean return."""
    return [
        replace(ROW, method=method, setting=setting, seed=seed, batch=b, num_timesteps=b * size,
                mean_return=float(value), kl=0.001 * b)
        for seed, returns in enumerate(runs)
        for b, value in enumerate(returns, 1)
    ]  # fmt: skip


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Batches of 128 steps."""

    def settings(text):
        found = load(text)
        for section in found.values():
            section["CartPole-v1"].update(n_steps=64, n_envs=2, batch_size=64)
        return found

    load = example.yaml.safe_load
    monkeypatch.setattr(example.yaml, "safe_load", settings)


@pytest.mark.parametrize("method", example.METHODS)
def test_a_run_has_a_row_for_each_batch(method):
    told = []
    rows = example.train(example.Run(method, "CartPole-v1", 3, 3), told.append)
    assert [(row.method, row.seed, row.batch, row.num_timesteps) for row in rows] == [
        (method, 3, n, 128 * n) for n in (1, 2, 3)
    ]
    assert told == [128] * 3
    # an episode that ends belongs to one batch
    steps = sum(row.mean_return * row.episodes for row in rows)
    assert 3 * 128 - 2 * 60 < steps <= 3 * 128
    assert all(row.kl > 0 and row.collect_seconds > 0 and row.update_seconds > 0 for row in rows)


def test_runs_are_reproduced_and_differ_by_seed():
    def returns(seed):
        run = example.Run("trpo", "CartPole-v1", seed, 2)
        return [(row.mean_return, row.kl) for row in example.train(run, print)]

    assert returns(0) == returns(0) != returns(1)


def test_what_is_there_is_not_run_again(tmp_path):
    ran = []

    def train(run, tell):
        ran.append(run)
        return rows_of(run.method, [21.0])

    results = example.Results(tmp_path / "results.csv", example.Row, example.KEY)
    runs = [example.Run(method, "CartPole-v1", 0, 1) for method in ("npg", "ppo")]
    results.add(runs[0], rows_of("npg", [20.0]))
    example.run_all(train, runs, results, 1)
    assert ran == [runs[1]]
    again = example.Results(tmp_path / "results.csv", example.Row, example.KEY)
    assert again.rows == results.rows and [row.mean_return for row in again.of(runs)] == [20.0, 21.0]
    with (tmp_path / "results.csv").open() as file:
        assert csv.DictReader(file).fieldnames == list(asdict(ROW))


@pytest.mark.parametrize("name", example.SWEEPS)
def test_a_sweep_varies_one_setting_of_those_who_have_it(name, monkeypatch):
    found = sweep_runs(name)
    expected = {
        "clip_range": {"ppo"},
        "target_kl": {"npg", "trpo", "ppopenalty"},
        "n_epochs": {"ppo", "ppopenalty"},
        "cg_damping": {"npg", "trpo"},
    }.get(name, set(example.METHODS))
    assert {run.method for run in found} == expected
    values = {run.setting for run in found}
    assert len(values) == len(example.SWEEPS[name])
    for run in found[:2]:
        model = example.make_model(run)
        value = float(run.setting.split("=")[1])
        held = getattr(model, name)
        assert (held(1.0) if callable(held) else held) == value
        assert run.n_batches == 1024 // (model.n_steps * model.n_envs)


def sweep_runs(name):
    arguments = {"sweep": name, "env": "CartPole-v1", "methods": list(example.METHODS), "seeds": 1}
    return example.runs_of(example.argparse.Namespace(**arguments, steps=1024))


# ---- figures --------------------------------------------------------------------------------------------


def test_the_table_counts_batches_from_one_and_says_who_stayed():
    stays = [100, 400, *[460] * 20]
    dips = [100, 200, 450, *[460] * 10, 300, *[460] * 9]
    rows = [*rows_of("ppo", stays, dips), *rows_of("reinforce", [20] * 22)]
    header, _, reinforce, ppo = figures.table(rows).splitlines()
    cells = [cell.strip() for cell in ppo.strip("|").split("|")]
    assert header.count("|") == len(cells) + 1
    assert cells[:5] == ["PPO", "-", "2", "2.5 (2 to 3)", "1 of 2"]
    # of the 22 batches that both have; the longest run's last KL; 10,000 steps in 1.5 s
    assert cells[5:] == ["1 of 40", "0.0118", "0.0230", "6,667"]
    assert "never (never to never) | 0 of 1" in reinforce


def test_the_chart_shows_the_rows():
    rows = [*rows_of("ppo", [20, 100, 300], [40, 200, 500]), *rows_of("trpo", [10, 20, 30])]
    left, middle, right = figures.chart(rows).axes
    drawn = lines(left)
    np.testing.assert_allclose(drawn["PPO"].get_ydata(), [30, 150, 400])
    np.testing.assert_allclose(drawn["TRPO"].get_ydata(), [10, 20, 30])
    np.testing.assert_allclose(drawn["PPO"].get_xdata(), [1, 2, 3])
    (band,) = left.collections  # of the method with two seeds
    bounds = band.get_datalim(left.transData)
    assert 20 <= bounds.y0 < 30 and 400 < bounds.y1 <= 500
    np.testing.assert_allclose(lines(middle)["PPO"].get_ydata(), [0.001, 0.002, 0.003])
    assert middle.get_yscale() == "log" and lines(middle)["0.01"].get_ydata()[0] == 0.01
    assert [label.get_text() for label in right.get_yticklabels()] == ["TRPO", "PPO"]
    widths = [bar.get_width() for bar in right.patches]
    assert widths == [0.5, 0.5, 1.0, 1.0]
    assert to_rgba(drawn["PPO"].get_color()) == right.patches[3].get_facecolor()


def test_the_figure_of_a_sweep_shows_the_rows():
    rows = [
        *rows_of("ppo", [100, 450, 460, 480], setting="clip_range=0.1"),
        *rows_of("ppo", [100, 200, 100, 50], setting="clip_range=0.5"),
    ]
    first, last, kl = figures.sweep(rows, "clip_range").axes
    steps = lines(first)["PPO"]
    np.testing.assert_array_equal(steps.get_xdata(), [0.1, 0.5])
    assert steps.get_ydata()[0] == 20_000 and np.isinf(steps.get_ydata()[1])
    np.testing.assert_array_equal(lines(last)["PPO"].get_ydata(), [480, 50])
    np.testing.assert_allclose(lines(kl)["PPO"].get_ydata(), [0.0025, 0.0025])
    crosses = [line for line in first.get_lines() if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[0.5]]


def test_the_animation_has_a_panel_for_each_method(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "BATCHES_SHOWN", (1, 2))
    monkeypatch.setattr(figures, "FRAMES", 4)
    path = figures.animate(["reinforce", "ppo"], "CartPole-v1", tmp_path / "learning.gif")
    with Image.open(path) as image:
        assert image.n_frames >= 2
        assert image.size == (2 * (200 + 4), 134 + 30)


def test_the_command_line_draws_a_chart(tmp_path, capsys):
    example.main(
        ["--methods", "trpo", "--seeds", "1", "--batches", "2", "--folder", str(tmp_path), "--processes", "1"]
    )
    output = capsys.readouterr().out
    assert "| TRPO | - | 1 | never" in output
    picture = matplotlib.image.imread(tmp_path / "CartPole-v1" / "results.png")
    assert picture.shape[1] > 1000 and picture.std() > 0.05
