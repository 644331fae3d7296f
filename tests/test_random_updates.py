"""The bound on the KL divergence holds in random updates of TRPO, measured without the library."""

import csv
import sys

import numpy as np
import pytest
import torch as th

from benchmarks import random_updates
from benchmarks.random_updates import CHUNK, Counts, divergence, draw_case, run
from sb3_trust import TRPO


def hold(counts: Counts) -> None:
    """No bound is broken and no weight is infinite; most updates do move the policy, some to the bound."""
    assert counts.wrong == [] and (counts.bound_broken, counts.non_finite) == (0, 0)
    assert counts.accepted + counts.rejected == counts.updates
    assert counts.accepted > counts.updates // 2 and counts.rolled_back < counts.updates // 10
    assert 0.2 < counts.median_ratio < 1.0 and counts.largest_ratio > 0.9


def test_a_hundred_random_updates_keep_the_bound():
    hold(run(100, seed=1))


@pytest.mark.slow
def test_ten_thousand_random_updates_keep_the_bound():
    for chunk in range(10_000 // CHUNK):
        hold(run(CHUNK, seed=0, chunk=chunk))


def test_steps_that_are_too_long_are_seen(monkeypatch):
    """A library that took any step for one within the bound would be found out."""
    monkeypatch.setattr(TRPO, "constrained", lambda self, kl: 0.0)
    monkeypatch.setattr(TRPO, "_after_update", lambda self, statistics, n_samples: None)
    counts = run(50, seed=1)
    assert counts.bound_broken == len(counts.wrong) > 5 and counts.largest_ratio > 1.01


def test_weights_that_are_not_finite_are_seen(monkeypatch):
    def train(self):
        trained(self)
        with th.no_grad():
            self.policy.value_net.bias.fill_(np.inf)

    trained = TRPO.train
    monkeypatch.setattr(TRPO, "train", train)
    assert run(1, seed=1).non_finite == 1


def test_the_measure_is_the_divergence_in_the_direction_old_to_new():
    old = [th.distributions.Normal(th.zeros(4, 2).double(), th.ones(4, 2).double())]
    new = [th.distributions.Normal(th.ones(4, 2).double(), 2 * th.ones(4, 2).double())]
    assert divergence(old, new).tolist() == pytest.approx([2 * (np.log(2) + 2 / 8 - 0.5)] * 4)


def test_the_draws_reach_all_that_they_are_to_reach():
    rng = np.random.default_rng(0)
    cases = [draw_case(rng) for _ in range(300)]
    assert {type(case.action_space).__name__ for case in cases} == {
        "Box",
        "Discrete",
        "MultiDiscrete",
        "MultiBinary",
    }
    for name, wanted in {
        "engine": {"autograd", "closed_form"},
        "use_sde": {True, False},
        "kl_statistic": {"mean", "max"},
        "damping_rule": {"fixed", "adaptive"},
    }.items():
        assert {case.arguments[name] for case in cases} == wanted
    assert min(case.arguments["cg_damping"] for case in cases) == 0.0
    assert {case.policy_kwargs.get("share_features_extractor") for case in cases} == {None, True, False}


def test_the_script_skips_what_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(random_updates, "CHUNK", 5)
    results = tmp_path / "results.csv"
    options = ["--updates", "10", "--processes", "1", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["random_updates.py", *options])
    for to_do in (2, 0):
        random_updates.main()
        assert f"{to_do} of 2 chunks to do" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--updates", "7"])
    random_updates.main()  # a chunk of another size is another chunk
    assert "1 of 2 chunks to do" in capsys.readouterr().out
    rows = list(csv.DictReader(results.open()))
    assert sorted((row["chunk"], row["updates"]) for row in rows) == [("0", "5"), ("1", "2"), ("1", "5")]
    assert all(row["bound_broken"] == "0" for row in rows)
