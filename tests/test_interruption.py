"""A signal ends the training of the command line by a save, and training goes on from there."""

import csv
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sb3_trust import PPOPenalty

pytest.importorskip("rl_zoo3")

from rl_zoo3.exp_manager import ExperimentManager

from sb3_trust.zoo.interruption import Interruption
from sb3_trust.zoo.manager import TrustExperimentManager

ROOT = Path(__file__).parent.parent
ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
SMALL = ["n_steps:32", "n_envs:2", "n_epochs:2", "batch_size:32"]


def train(env, folder, n_timesteps, *arguments):
    command = [sys.executable, "-m", "sb3_trust", "train", "--algo", "ppopenalty", "--env", env]
    options = ["-n", str(n_timesteps), "-f", str(folder), "--eval-freq", "-1", "--num-threads", "1"]
    return subprocess.Popen(
        [*command, *options, *arguments],
        cwd=ROOT,
        env=ENVIRON,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def updates(folder):
    path = folder / "updates.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


def interrupted(number, env, folder, *arguments):
    """Start training, send it a signal after a few updates; its output and the folder of the run."""
    process, run = train(env, folder, 10_000_000, *arguments), folder / "ppopenalty" / f"{env}_1"
    try:
        deadline = time.monotonic() + 60
        while len(updates(run)) < 5:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.05)
        process.send_signal(number)
        process.send_signal(number)  # the same request, twice
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, output
    return output, run


def gone_on(env, run, path, *arguments):
    """Train 128 steps more from a saved model; the folder of that run."""
    process = train(env, run.parent.parent, 128, "-i", str(path), *arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output, run.with_name(f"{env}_2")


def test_ctrl_c_saves_and_ends(tmp_path):
    output, run = interrupted(signal.SIGINT, "CartPole-v1", tmp_path, "-params", *SMALL)
    assert "Traceback" not in output and "Interrupted after" in output
    assert f"{run}/CartPole-v1.zip" in output and not (run / "evaluation.json").exists()
    assert PPOPenalty.load(run / "CartPole-v1.zip")._n_updates >= 5 * 2


def test_sigterm_does_too_and_training_goes_on_from_a_checkpoint(tmp_path):
    options = ["--save-freq", "128", "-params", *SMALL]
    output, run = interrupted(signal.SIGTERM, "Acrobot-v1", tmp_path, *options, "init_kl_coef:3.0")
    assert "Traceback" not in output and not (run / "evaluation.json").exists()
    assert PPOPenalty.load(run / "Acrobot-v1.zip")._n_updates >= 5 * 2

    checkpoint, statistics = run / "rl_model_256_steps.zip", run / "rl_model_vecnormalize_256_steps.pkl"
    saved, seen = PPOPenalty.load(checkpoint), pickle.loads(statistics.read_bytes()).obs_rms.count
    assert saved.init_kl_coef == 3.0 != saved.kl_coef and saved._n_updates == 3 * 2
    output, second = gone_on("Acrobot-v1", run, checkpoint, "-params", *SMALL)
    assert f"Loading saved VecNormalize stats from {statistics}" in output
    after, rows = PPOPenalty.load(second / "Acrobot-v1.zip"), updates(second)
    assert len(rows) == 2 and after.num_timesteps == 256 + 128 and after._n_updates == 5 * 2
    assert float(rows[0]["kl_coef"]) == saved.kl_coef and after.init_kl_coef == 3.0
    normaliser = pickle.loads((second / "Acrobot-v1" / "vecnormalize.pkl").read_bytes())
    assert normaliser.obs_rms.count == seen + 128 + 2  # and a reset


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


@pytest.fixture
def interruption():
    watching = Interruption()
    watching.watch()
    yield watching
    watching.unwatch()


def test_only_training_is_broken_off(interruption):
    assert interruption.exit_code is None
    with interruption.raised():
        pass
    send()  # as the model is saved
    assert interruption.exit_code == 143
    # one that comes before training does not let it begin
    with pytest.raises(KeyboardInterrupt), interruption.raised():
        pytest.fail("training has begun")


def test_what_comes_twice_is_one_request(interruption, monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with interruption.raised():
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        send()  # while what was being done is undone
        now += 5.0
        with pytest.raises(KeyboardInterrupt):
            send()
    assert interruption.exit_code == 130  # the first counts


def test_signals_do_afterwards_what_they_did_before():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    interruption = Interruption()
    interruption.watch()
    assert signal.getsignal(signal.SIGTERM) != before[0]
    interruption.unwatch()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    # another thread than the main one may not ask for signals
    thread = threading.Thread(target=interruption.watch)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before[0]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {"ent_coef"}),
        ({"cg_damping": 0.2, "learning_rate": 1e-3}, {"ent_coef", "cg_damping", "learning_rate"}),
    ],
)
def test_where_adapted_values_started_is_not_where_they_go_on(given, kept, monkeypatch):
    """Arguments that reach ``load`` would set the adapted values back."""
    seen = []
    monkeypatch.setattr(
        ExperimentManager, "_load_pretrained_agent", lambda self, hyperparams, env: seen.append(hyperparams)
    )
    manager = object.__new__(TrustExperimentManager)
    manager.custom_hyperparams = given
    settings = {
        "init_kl_coef": 1.0, "learning_rate": 1e-3, "learning_rate_kl_target": 0.01, "cg_damping": 0.1,
        "damping_rule": "adaptive", "ent_coef": 0.0,
    }  # fmt: skip
    manager._load_pretrained_agent(dict(settings), None)
    assert set(seen[0]) == kept
    fixed = {**settings, "learning_rate_kl_target": None, "damping_rule": "fixed"}
    manager._load_pretrained_agent(dict(fixed), None)
    assert set(seen[1]) == set(fixed) - {"init_kl_coef"}
