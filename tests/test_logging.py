"""What is logged, recorded and drawn."""

import csv
import math
from dataclasses import fields

import numpy as np
import pytest
import stable_baselines3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, configure
from stable_baselines3.common.monitor import Monitor

from sb3_trust import NPG, PPO, REINFORCE, TRPO, PPOPenalty, UpdateRecorder
from sb3_trust.plots import read_updates, training_figure
from tests.worlds import ACTION_SPACES, World, model_of

ALGORITHMS = [REINFORCE, NPG, TRPO, PPO, PPOPenalty]
EVERYWHERE = {
    "train/kl", "train/kl_max", "train/entropy", "train/rollbacks", "train/learning_rate", "train/value_loss",
    "train/explained_variance", "train/n_updates", "train/std", "time/update_seconds",
}  # fmt: skip
MINIBATCH = {
    "train/policy_gradient_loss",
    "train/entropy_loss",
    "train/approx_kl",
    "train/loss",
    "train/gradient_norm",
}
NATURAL_GRADIENT = {
    f"train/{name}"
    for name in (
        "target_kl", "cg_iterations", "cg_residual", "cg_damping", "curvature", "gradient_norm", "step_norm",
        "predicted_kl", "fisher_products", "policy_objective",
    )
}  # fmt: skip
OWN = {
    REINFORCE: {"train/policy_loss", "train/policy_gradient_loss", "train/gradient_norm"},
    NPG: NATURAL_GRADIENT,
    PPO: MINIBATCH | {"train/clip_fraction", "train/clip_range"},
    PPOPenalty: MINIBATCH | {"train/kl_coef", "train/penalty", "train/target_kl"},
    TRPO: NATURAL_GRADIENT
    | {
        f"train/{name}"
        for name in (
            "line_search_steps", "expected_improvement", "actual_improvement", "is_line_search_success",
            "kl_divergence_loss",
        )
    },
}  # fmt: skip


class Rows(KVWriter):
    """Keeps every dump."""

    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append((step, dict(key_values)))

    def close(self):
        pass


def logged(algorithm, timesteps=3 * 128, **learn):
    model, rows = model_of("box", algorithm), Rows()
    model.set_logger(Logger(folder=None, output_formats=[rows]))
    model.learn(timesteps, **learn)
    return model, rows.rows


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_update_is_logged_the_last_one_too(algorithm):
    model, rows = logged(algorithm)
    assert [step for step, _ in rows] == [128, 256, 384]
    keys = [set(row) for _, row in rows]
    expected = EVERYWHERE | OWN[algorithm]
    assert all(expected | {"time/collect_seconds", "time/fps", "rollout/ep_rew_mean"} <= k for k in keys)
    kls = [row["train/kl"] for _, row in rows]
    assert len(set(kls)) == 3 and kls[-1] == model.last_update.kl
    # as after SB3's learn, the values can still be read
    kept = {name for name in model.logger.name_to_value if name.startswith("train/")}
    assert kept >= {name for name in expected if name.startswith("train/")}
    assert model.logger.name_to_value["train/kl"] == model.last_update.kl


def test_kept_values_are_not_written_again():
    model, rows = logged(PPO)
    model.logger.record("mine/value", 1.0)
    model.learn(256, reset_num_timesteps=False)
    assert [(step, row["train/n_updates"]) for step, row in rows] == [(128 * n, 10 * n) for n in range(1, 6)]
    assert "mine/value" in rows[3][1]


def test_a_row_holds_the_rollout_and_the_update_made_from_it():
    class Collected(BaseCallback):
        values = []  # noqa: RUF012

        def _on_rollout_end(self):
            self.values.append(float(self.model.rollout_buffer.rewards.sum()))
            self.logger.record("rollout/sum", self.values[-1])

        def _on_step(self):
            return True

    model, rows = logged(TRPO, callback=Collected())
    assert [row["rollout/sum"] for _, row in rows] == Collected.values
    assert [row["train/n_updates"] for _, row in rows] == [1, 2, 3]
    assert model.last_update.n_updates == 3


def test_a_train_of_the_users_own_is_logged_too():
    class Own(PPO):
        def train(self):
            self.logger.record("train/mine", self.num_timesteps)

    _, rows = logged(Own)
    # it does not say when it is done: its values come with the next logs, as in SB3, the last ones at the end
    assert [(step, row["train/mine"]) for step, row in rows if "train/mine" in row] == [
        (256, 128),
        (384, 256),
        (384, 384),
    ]


def test_our_keys_are_a_superset_of_sb3s():
    ours, theirs = (logged(algorithm)[0].logger.name_to_value for algorithm in (PPO, stable_baselines3.PPO))
    assert set(theirs) <= set(ours)


@pytest.mark.parametrize("log_interval", [None, 2])
def test_log_interval(log_interval):
    model, rows = logged(PPO, timesteps=5 * 128, log_interval=log_interval)
    assert [step for step, _ in rows] == ([] if log_interval is None else [256, 512, 640])
    assert model.logger.name_to_value["train/kl"] == model.last_update.kl


def test_log_goes_through_sb3s_formats(tmp_path):
    model = model_of("discrete", TRPO)
    model.set_logger(configure(str(tmp_path), ["csv", "json", "log", "tensorboard"]))
    model.learn(256)
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["train/kl"]) == pytest.approx(model.last_update.kl)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_recorder_writes_a_row_for_each_update(algorithm, tmp_path):
    model = model_of("box", algorithm)
    recorder = UpdateRecorder(tmp_path / "new" / "folder")
    model.learn(3 * 128, callback=recorder)
    updates = read_updates(tmp_path / "new" / "folder")
    np.testing.assert_array_equal(updates["update"], [1, 2, 3])
    np.testing.assert_array_equal(updates["num_timesteps"], [128, 256, 384])
    columns = [field for field in fields(model.last_update) if field.name != "of_objective"]
    assert list(updates) == ["update", "num_timesteps", *(field.name for field in columns)]
    for field in columns:
        value = getattr(model.last_update, field.name)
        if isinstance(value, str) or math.isnan(value):
            assert math.isnan(updates[field.name][-1])
        else:
            assert updates[field.name][-1] == value, field.name
    model.learn(128, callback=recorder, reset_num_timesteps=False)
    assert list(read_updates(recorder.path.parent)["update"]) == [1, 2, 3, 4]
    model.learn(128, callback=recorder)
    assert list(read_updates(recorder.path.parent)["update"]) == [1]


def test_recorder_tells_a_rolled_back_update(tmp_path):
    model = model_of("box", PPO)
    train = model.train

    def spoil():
        if model.num_timesteps == 256:
            model.rollout_buffer.advantages[0] = math.nan
        train()

    model.train = spoil
    with pytest.warns(RuntimeWarning):
        model.learn(3 * 128, callback=UpdateRecorder(tmp_path))
    updates = read_updates(tmp_path)
    np.testing.assert_array_equal(updates["rollbacks"], [0, 1, 1])
    assert (tmp_path / "updates.csv").read_text().count("advantages") == 1
    assert updates["kl"][1] == 0.0


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_figure_shows_the_run(algorithm, tmp_path):
    env = Monitor(World(ACTION_SPACES["box"]), str(tmp_path / "0"))
    model = algorithm("MlpPolicy", env, n_steps=64, batch_size=64, seed=0)
    model.learn(5 * 64, callback=UpdateRecorder(tmp_path))
    figure = training_figure(tmp_path, title="a run")
    learning, kl = figure.axes
    drawn = lines(kl)
    np.testing.assert_array_equal(drawn["mean over states"].get_ydata(), read_updates(tmp_path)["kl"])
    assert ("target_kl" in drawn) == (
        algorithm not in (REINFORCE, PPO)
    )  # PPO has no limit unless one is given
    assert len(lines(learning)["episode"].get_xdata()) == 5 * 64 // 7
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_figure_of_a_run_that_ended_early(tmp_path):
    (tmp_path / "updates.csv").write_text("")
    figure = training_figure(tmp_path)
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == [
        "no episode ended",
        "no update",
    ]


def test_a_value_that_no_longer_applies_is_not_half_forgotten(tmp_path):
    """The last update's target is 0: it takes no step and has no gradient norm, as the ones before it had."""
    model = model_of("box", TRPO, target_kl="lin_0.02", n_steps=64)
    model.set_logger(configure(str(tmp_path), ["csv", "stdout"]))
    model.learn(4 * 128, log_interval=4)
    (row,) = csv.DictReader((tmp_path / "progress.csv").open())
    assert row["train/target_kl"] == "0.0" and "train/gradient_norm" not in row
