"""The figures of single updates show what was recorded."""

from dataclasses import replace

import numpy as np
import pytest

from sb3_trust import InvalidArgument
from sb3_trust.plots import (
    clipped_surrogate,
    line_search_trace,
    read_trust_region,
    surrogate_landscape,
)
from tests.figures import assert_drawn, lines, texts


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
    assert_drawn(
        surrogate_landscape(replace(update, profile=replace(update.profile, kl=part))),
        tmp_path,
    )


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
