"""The figures show what was recorded."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from stable_baselines3.common.env_util import make_vec_env

from sb3_trust import PPO, TRPO, InvalidArgument, PPOPenalty, TrustRegionRecorder, UpdateRecorder
from sb3_trust.plots import (
    clipped_surrogate,
    kl_per_action_dimension,
    kl_per_update,
    learning_curves,
    line_search_trace,
    read_trust_region,
    read_updates,
    surrogate_landscape,
)
from sb3_trust.plots.learning import bootstrap_interval, read_episodes
from sb3_trust.plots.style import COLOURS
from sb3_trust.trust_region import TrustRegionRecord
from tests.worlds import ACTION_SPACES, World


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with all files of a run, for each algorithm."""
    folders = {}
    for algorithm in (TRPO, PPO, PPOPenalty):
        folder = folders[algorithm.__name__] = tmp_path_factory.mktemp(algorithm.__name__)
        env = make_vec_env(lambda: World(ACTION_SPACES["multi_binary"]), 2, seed=0, monitor_dir=str(folder))
        kwargs = {"line_search_shrinking_factor": 0.9} if algorithm is TRPO else {"learning_rate": 3e-3}
        model = algorithm("MlpPolicy", env, n_steps=64, batch_size=64, seed=3, device="cpu", **kwargs)
        model.learn(6 * 128, callback=[UpdateRecorder(folder), TrustRegionRecorder(folder)])
    return folders


@pytest.fixture(scope="module")
def update(runs):
    """The update of TRPO whose line search tried the most points."""
    updates = read_trust_region(runs["TRPO"]).updates
    return max(updates, key=lambda u: len(u.line_search.fractions))


def lines(axes):
    """The lines of the axes by label; two with one label would be a defect."""
    labelled = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
    found = {line.get_label(): line for line in labelled}
    assert len(found) == len(labelled)
    return found


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text()]


def assert_drawn(figure, tmp_path):
    """It can be drawn, each axis has a label, its own or its neighbour's, and no legend hides data."""
    figure.savefig(tmp_path / "figure.png")
    rows = {axes.get_subplotspec().rowspan.start for axes in figure.axes}
    for axes in figure.axes:
        spec = axes.get_subplotspec()
        assert axes.get_xlabel() or spec.rowspan.start < max(rows)
        assert axes.get_ylabel() or spec.colspan.start > 0
        if axes.get_legend() is not None:
            box, inside = axes.get_legend().get_window_extent(), axes.get_window_extent()
            assert box.y1 <= inside.y0
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0


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


# ---- single updates --------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [None, 0.01, 0.3, np.inf])
def test_clipped_surrogate(epsilon, runs, tmp_path):
    update = read_trust_region(runs["PPO"]).updates[-1]
    figure = clipped_surrogate(update, clip_range=epsilon)
    epsilon = 0.2 if epsilon is None else epsilon
    for column, sign in enumerate((1, -1)):
        top, bottom = figure.axes[column], figure.axes[2 + column]
        found = lines(top)
        ratio = found["clipped"].get_xdata()
        expected = np.minimum(sign * ratio, sign * np.clip(ratio, 1 - epsilon, 1 + epsilon))
        np.testing.assert_allclose(found["clipped"].get_ydata(), expected)
        np.testing.assert_allclose(found["ratio x A"].get_ydata(), sign * ratio)
        if np.isfinite(epsilon):
            assert {1 - epsilon, 1 + epsilon} <= set(ratio)
        ratios = update.ratios[np.sign(update.advantages) == sign]
        drawn = sum(bar.get_height() for bars in bottom.containers for bar in bars)
        labels = [text.get_text() for text in bottom.get_legend().get_texts()]
        outside = [int(label.split(": ")[1]) for label in labels if label.startswith("outside")]
        assert drawn + sum(outside) == len(ratios)
        flat = (ratios > 1 + epsilon) if sign > 0 else (ratios < 1 - epsilon)
        assert f"no gradient: {flat.mean():.1%}" in labels and f"{len(ratios)} samples" in labels
    assert_drawn(figure, tmp_path)


def test_clipped_surrogate_without_samples(update, tmp_path):
    nothing = replace(update, ratios=np.full(3, np.nan), advantages=np.ones(3))
    figure = clipped_surrogate(nothing)
    assert texts(figure) == ["no sample", "no sample"]
    figure.savefig(tmp_path / "figure.png")
    with pytest.raises(InvalidArgument, match="`clip_range` must be"):
        clipped_surrogate(update, clip_range=-1)


@pytest.mark.parametrize("algorithm", ["TRPO", "PPO", "PPOPenalty"])
def test_surrogate_landscape(algorithm, runs, tmp_path):
    update = read_trust_region(runs[algorithm]).updates[-1]
    figure = surrogate_landscape(update)
    top, bottom = figure.axes
    profile, above, below = update.profile, lines(top), lines(bottom)
    for found, label, values in (
        (above, "surrogate", profile.surrogate),
        (above, "linear model", profile.linear),
        (above, "clipped, epsilon = 0.2", profile.clipped),
        (below, "exact, mean over states", profile.kl),
        (below, "quadratic model", profile.quadratic),
    ):
        np.testing.assert_array_equal(found[label].get_xdata(), profile.fractions)
        np.testing.assert_array_equal(found[label].get_ydata(), values)
    label = f"taken: {update.accepted_fraction:.3g} of the step"
    (x,), (kl,) = below[label].get_data()
    assert x == update.accepted_fraction and kl == pytest.approx(update.kl, rel=1e-9)
    assert above[label].get_ydata()[0] == np.interp(x, profile.fractions, profile.surrogate)
    limits = {"TRPO": "limit 0.01", "PPOPenalty": "target_kl 0.01"}
    if algorithm in limits:
        np.testing.assert_array_equal(below[limits[algorithm]].get_ydata(), 0.01)
    assert len(below) == 3 + (algorithm in limits) and str(update.update) in figure.get_suptitle()
    assert_drawn(figure, tmp_path)


def test_landscape_with_the_limit_on_the_worst_state(update, tmp_path):
    figure = surrogate_landscape(replace(update, limit_at_worst_state=True))
    found = lines(figure.axes[1])
    np.testing.assert_array_equal(found["exact, worst state"].get_ydata(), update.profile.kl_max)
    (height,) = found[f"taken: {update.accepted_fraction:.3g} of the step"].get_ydata()
    assert height == np.interp(update.accepted_fraction, update.profile.fractions, update.profile.kl_max)
    assert_drawn(figure, tmp_path)


def test_landscape_of_no_step_and_of_nothing_finite(update, tmp_path):
    figure = surrogate_landscape(replace(update, accepted_fraction=0.0))
    assert lines(figure.axes[0])["no step taken"].get_xydata().tolist() == [[0, 0]]
    assert_drawn(figure, tmp_path)
    nan = np.full_like(update.profile.kl, np.nan)
    figure = surrogate_landscape(replace(update, profile=replace(update.profile, kl=nan)))
    assert texts(figure) == ["nothing along this step is finite"]
    part = update.profile.kl.copy()
    part[-3:] = np.inf
    assert_drawn(surrogate_landscape(replace(update, profile=replace(update.profile, kl=part))), tmp_path)


def test_line_search_trace(update, tmp_path):
    search = update.line_search
    assert len(search.fractions) > 1
    figure = line_search_trace(update, title="a title")
    for axes, values in zip(figure.axes, (search.constrained, search.improvement), strict=True):
        found = lines(axes)
        np.testing.assert_array_equal(
            found["refused"].get_xydata(), np.stack([search.fractions, values], 1)[:-1]
        )
        np.testing.assert_array_equal(found["accepted"].get_xydata(), [[search.fractions[-1], values[-1]]])
        assert [text.get_text() for text in axes.texts] == [str(n + 1) for n in range(len(values))]
        assert axes.get_xlim()[0] == 0 and axes.get_xlim()[1] > search.fractions[0]
    left, right = map(lines, figure.axes)
    np.testing.assert_array_equal(left["limit 0.01"].get_ydata(), 0.01)
    x, y = right["linear model"].get_data()
    np.testing.assert_allclose(np.interp(search.fractions, x, y), search.expected_improvement)
    x, y = right["needed: 0.1 of it"].get_data()
    np.testing.assert_allclose(np.interp(search.fractions, x, y), 0.1 * search.expected_improvement)
    assert "mean over states" in figure.axes[0].get_ylabel()
    assert_drawn(figure, tmp_path)


def test_line_search_trace_where_none_was_accepted_and_where_there_is_none(update, runs, tmp_path):
    nan = np.full_like(update.line_search.constrained, np.nan)
    search = replace(update.line_search, accepted=np.zeros(len(nan), bool), constrained=nan)
    figure = line_search_trace(replace(update, line_search=search, accepted_fraction=0.0))
    assert "accepted" not in lines(figure.axes[0]) and "refused" in lines(figure.axes[1])
    assert_drawn(figure, tmp_path)
    other = line_search_trace(read_trust_region(runs["PPO"]).updates[0])
    assert texts(other) == ["this update had no line search"]
    other.savefig(tmp_path / "figure.png")


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
