"""The figures show what was recorded."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from sb3_trust import InvalidArgument
from sb3_trust.plots import (
    kl_per_action_dimension,
    kl_per_update,
    learning_curves,
    read_trust_region,
    read_updates,
)
from sb3_trust.plots.learning import bootstrap_interval, read_episodes
from sb3_trust.plots.style import COLOURS
from sb3_trust.trust_region import TrustRegionRecord
from tests.figures import assert_drawn, lines, texts

# ---- learning curves -------------------------------------------------------------------------------------


def test_learning_curves_are_means_over_seeds(tmp_path):
    x = np.arange(0.0, 101.0, 10.0)
    seeds = [(x, x), (x, 3 * x), (x[1:], 5 * x[1:])]
    figure = learning_curves({"mine": seeds, "other": [(x, 7 + 0 * x)]}, title="a title")
    (axes,) = figure.axes
    found = lines(axes)
    assert list(found) == ["mine (3 seeds)", "other (1 seed)"]
    mine = found["mine (3 seeds)"]
    assert mine.get_xdata()[0] == 10 and mine.get_xdata()[-1] == 100  # what all seeds have
    np.testing.assert_allclose(mine.get_ydata(), 3 * mine.get_xdata())
    np.testing.assert_allclose(found["other (1 seed)"].get_ydata(), 7)
    (band,) = axes.collections  # one seed has no interval
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    assert low == pytest.approx(10) and high == pytest.approx(500)  # of three seeds, the extremes
    assert figure.get_suptitle() == "a title"
    assert_drawn(figure, tmp_path)


def test_learning_curves_from_folders(runs, tmp_path):
    figure = learning_curves({"both": [runs["TRPO"], runs["PPO"]], "TRPO": runs["TRPO"]}, window=5)
    found = lines(figure.axes[0])
    timesteps, returns = read_episodes(runs["TRPO"])
    line = found["TRPO (1 seed)"]
    assert line.get_xdata()[0] == timesteps[4] and line.get_xdata()[-1] == timesteps[-1]
    assert line.get_ydata()[0] == pytest.approx(returns[:5].mean())
    assert line.get_ydata()[-1] == pytest.approx(returns[-5:].mean())
    assert "both (2 seeds)" in found
    assert_drawn(figure, tmp_path)
    named = shutil.copytree(runs["TRPO"], tmp_path / "lr=[1e-3]")  # no pattern, but a folder's name
    np.testing.assert_array_equal(read_episodes(named), (timesteps, returns))


def test_learning_curves_of_nothing(tmp_path):
    assert texts(learning_curves({"mine": [tmp_path]})) == ["mine: no episode ended"]
    assert texts(learning_curves({})) == ["no run"]
    nan = ([1.0, 2.0], [np.nan, np.nan])
    assert texts(learning_curves({"mine": [nan]})) == ["mine: no episode ended"]
    apart = [([0.0, 1.0], [1.0, 1.0]), ([2.0, 3.0], [1.0, 1.0])]
    figure = learning_curves({"mine": apart, "other": [([1, 3, 2], [1.0, np.nan, 4.0])]})
    found = lines(figure.axes[0])
    assert set(found) == {"mine: no time steps in common", "other (1 seed)"}
    assert list(found["other (1 seed)"].get_xdata()[[0, -1]]) == [1, 2]
    for bad in ([tmp_path], {"mine": [([1, 2], [1, 2, 3])]}, {"mine": [3.0]}):
        with pytest.raises(InvalidArgument, match="`runs` must be"):
            learning_curves(bad)


def test_bootstrap_interval_is_that_of_the_mean():
    """Of many seeds it is the normal interval; of none that differ it is the mean."""
    curves = np.random.default_rng(3).normal(5.0, 2.0, (400, 3))
    low, high = bootstrap_interval(curves)
    spread = 1.96 * curves.std(0) / 20
    np.testing.assert_allclose(low, curves.mean(0) - spread, atol=0.1 * spread.max())
    np.testing.assert_allclose(high, curves.mean(0) + spread, atol=0.1 * spread.max())
    np.testing.assert_allclose(bootstrap_interval(np.full((4, 2), 3.0)), 3.0)


# ---- KL divergence ---------------------------------------------------------------------------------------


def test_kl_per_update_of_one_run(runs, tmp_path):
    updates = read_updates(runs["TRPO"])
    for given in (runs["TRPO"], str(runs["TRPO"]), updates):
        (axes,) = kl_per_update(given).axes
        found = lines(axes)
        np.testing.assert_array_equal(found["mean over states"].get_ydata(), updates["kl"])
        np.testing.assert_array_equal(found["worst state"].get_ydata(), updates["kl_max"])
        np.testing.assert_array_equal(found["target_kl"].get_ydata(), 0.01)
        np.testing.assert_array_equal(found["mean over states"].get_xdata(), [1, 2, 3, 4, 5, 6])
        assert axes.get_yscale() == "log"
    assert_drawn(axes.figure, tmp_path)


def test_kl_per_update_of_several_runs(runs, tmp_path):
    figure = kl_per_update(runs)
    found = lines(figure.axes[0])
    assert list(found) == ["TRPO", "PPO", "PPOPenalty", "target_kl of TRPO, PPOPenalty"]
    for name, folder in runs.items():
        np.testing.assert_array_equal(found[name].get_ydata(), read_updates(folder)["kl"])
    assert len({line.get_color() for line in found.values()}) == 4
    assert_drawn(figure, tmp_path)
    updates = read_updates(runs["TRPO"])
    other = {**updates, "target_kl": updates["target_kl"] * 2}
    found = lines(kl_per_update({"a": updates, "b": other}).axes[0])
    assert list(found) == ["a", "target_kl of a", "b", "target_kl of b"]
    np.testing.assert_array_equal(found["target_kl of b"].get_ydata(), 0.02)


def test_updates_that_did_not_move_the_policy_are_marked(runs):
    updates = {name: column.copy() for name, column in read_updates(runs["TRPO"]).items()}
    updates["kl"][[1, 3]] = 0.0, 1e-16
    found = lines(kl_per_update(updates).axes[0])
    np.testing.assert_array_equal(found["policy not moved (2)"].get_xdata(), [2, 4])


def test_runs_without_updates_are_named_in_order(runs):
    names = [f"run {i}" for i in range(20)]
    figure = kl_per_update({"PPO": runs["PPO"], **{name: {"kl": np.zeros(0)} for name in names}})
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert [label for label in labels if label.endswith("no update")] == [f"{n}: no update" for n in names]


def test_kl_per_update_of_nothing(tmp_path):
    (tmp_path / "updates.csv").write_text("")
    assert texts(kl_per_update(tmp_path)) == ["no update"] == texts(kl_per_update({"mine": tmp_path}))
    nan = {"update": np.array([1.0]), "kl": np.array([np.nan])}
    assert texts(kl_per_update({"mine": nan})) == ["no update"]
    kl = {"update": np.array([1.0, 2.0]), "kl": np.array([0.0, 0.0])}
    assert set(lines(kl_per_update({"mine": nan, "other": kl}).axes[0])) == {
        "mine: no update", "other", "policy not moved (2)",
    }  # fmt: skip
    assert texts(kl_per_update(read_updates(tmp_path))) == ["no update"]
    for bad in (3, [tmp_path]):
        with pytest.raises(InvalidArgument, match="`runs` must be"):
            kl_per_update(bad)


def test_kl_per_action_dimension_stacks_to_the_joint_kl(runs, tmp_path):
    record = read_trust_region(runs["TRPO"])
    figure = kl_per_action_dimension(runs["TRPO"], title="a title")
    (axes,) = figure.axes
    assert [bars.get_label() for bars in axes.containers] == ["bit 0", "bit 1", "bit 2", "bit 3"]
    for index, bars in enumerate(axes.containers):
        heights = [bar.get_height() for bar in bars]
        expected = [update.kl_per_dimension[index] for update in record.updates]
        np.testing.assert_allclose(heights, expected, rtol=1e-12)
    tops = [bar.get_y() + bar.get_height() for bar in axes.containers[-1]]
    np.testing.assert_allclose(tops, read_updates(runs["TRPO"])["kl"], rtol=1e-9)
    np.testing.assert_array_equal(lines(axes)["target_kl"].get_ydata(), 0.01)
    assert_drawn(figure, tmp_path)
    named = kl_per_action_dimension(record, names="abcd").axes[0].containers
    assert [bars.get_label() for bars in named] == list("abcd")
    with pytest.raises(InvalidArgument, match="`names` must be 4 names"):
        kl_per_action_dimension(record, names=["one"])
    assert texts(kl_per_action_dimension(TrustRegionRecord("TRPO", "Box"))) == ["no update"]


def test_many_dimensions_have_many_colours(runs, tmp_path):
    record = read_trust_region(runs["TRPO"])
    record.updates = [replace(u, kl_per_dimension=np.full(17, u.kl / 17)) for u in record.updates]
    figure = kl_per_action_dimension(record)
    assert len({to_hex(bars[0].get_facecolor()) for bars in figure.axes[0].containers}) == 17 > len(COLOURS)
    assert_drawn(figure, tmp_path)


# ---- all of them -----------------------------------------------------------------------------------------


def luminance_and_chroma(colour):
    """sRGB to what a reader who confuses red with green still sees: brightness, and blue against yellow."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return np.array([0.3 * red + 0.6 * green + 0.1 * blue, blue - (red + green) / 2])


def test_colours_differ_without_red_against_green():
    seen = [luminance_and_chroma(colour) for colour in COLOURS]
    distances = [np.abs(a - b).max() for i, a in enumerate(seen) for b in seen[:i]]
    assert min(distances) > 0.08


def test_plots_do_not_import_pyplot():
    script = (
        "import sys; from sb3_trust.plots import read_updates, training_figure; import sb3_trust.plots;"
        "print({'matplotlib.pyplot'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_examples_of_the_page_run(tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "plots.md").read_text()
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        exec(compile(code, "plots.md", "exec"), names)
    assert names["update"].update == 4
    drawn = {path.name for path in (tmp_path / "runs").glob("*.png")}
    assert drawn == {"kl.png", "landscape.png", "line_search.png"}
