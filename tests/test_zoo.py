"""The Zoo's three ways in, each as a user starts it, and the settings."""

import contextlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import optuna
import pytest
import yaml

rl_zoo3 = pytest.importorskip("rl_zoo3")

from rl_zoo3.exp_manager import ExperimentManager  # noqa: E402
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402

import sb3_trust  # noqa: E402
from sb3_trust import NPG  # noqa: E402
from sb3_trust.trust_region import read_trust_region  # noqa: E402
from sb3_trust.zoo import ALGORITHMS, hyperparams_file  # noqa: E402
from sb3_trust.zoo.cli import with_own_settings  # noqa: E402
from sb3_trust.zoo.settings import section_of  # noqa: E402

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = (
    "default", "CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0",
    "LunarLander-v3", "LunarLanderContinuous-v3", "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5",
    "Humanoid-v5", "Swimmer-v5", "Reacher-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5",
)  # fmt: skip
FRONT_DOORS = {
    "script": [str(Path(sys.executable).with_name("sb3-trust"))],
    "module": [sys.executable, "-m", "sb3_trust"],
}
SHORT = ["-n", "600", "--eval-freq", "400", "--eval-episodes", "1", "--num-threads", "1", "--seed", "1"]


def run(command, cwd):
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def settings(algorithm):
    return yaml.safe_load(hyperparams_file(algorithm).read_text())


@pytest.mark.parametrize(
    ("door", "algorithm", "env"), [("script", "trpo", "CartPole-v1"), ("module", "ppopenalty", "Pendulum-v1")]
)
def test_front_door_trains_reports_and_enjoys(door, algorithm, env, tmp_path):
    small = ["-params", "n_steps:128", "n_envs:1", "-P"]
    record = ["--trust-region-record"] if door == "script" else []
    output = run(
        [*FRONT_DOORS[door], "train", "--algo", algorithm, "--env", env, *SHORT, *record, *small], tmp_path
    )
    assert str(hyperparams_file(algorithm)) in output
    saved = tmp_path / "logs" / algorithm / f"{env}_1"
    for name in (f"{env}.zip", "updates.csv", "training.png", "evaluation.json"):
        assert (saved / name).stat().st_size > 0
        assert name == "evaluation.json" or f"{algorithm}/{env}_1/{name}" in output
    assert (saved / "trust_region.npz").exists() == bool(record) == (f"{env}_1/trust_region.npz" in output)
    if record:
        assert [update.update for update in read_trust_region(saved).updates] == [1, 2, 3, 4, 5]
    evaluation = json.loads((saved / "evaluation.json").read_text())
    assert len(evaluation["returns"]) == 20
    assert f"Evaluated return: {evaluation['mean']:.2f} +/- {evaluation['std']:.2f}" in output
    assert (
        len((saved / "updates.csv").read_text().splitlines()) == 1 + 5
    )  # a header and five updates of 128 steps
    output = run(
        [*FRONT_DOORS[door], "enjoy", "--algo", algorithm, "--env", env, "-f", "logs", "--no-render"],
        tmp_path,
    )
    assert "Mean reward" in output
    page = saved / "report.html"
    assert str(page) in run([*FRONT_DOORS[door], "report", str(saved)], tmp_path)
    head = page.read_text("utf-8").split("</header>")[0]
    assert f" on {env}</h1>" in head and f"{evaluation['mean']:.4g}" in head


def test_stock_commands_with_a_gym_package(tmp_path):
    common = ["--algo", "trpo", "--env", "CartPole-v1", "--gym-packages", "sb3_trust.zoo"]
    train = [
        sys.executable,
        "-m",
        "rl_zoo3.train",
        *common,
        "-conf",
        str(ROOT / "hyperparams" / "trpo.yml"),
        *SHORT,
    ]
    output = run([*train, "-params", "accept_ratio:0.2", "target_kl:'lin_0.02'"], tmp_path)
    assert "line_search_steps" in output  # ours, not contrib's
    enjoy = [sys.executable, "-m", "rl_zoo3.enjoy", *common, "-f", "logs", "--no-render"]
    assert "Mean reward" in run(enjoy, tmp_path)


def test_optimization_runs_a_trial(tmp_path):
    options = [
        "-optimize",
        "--n-trials",
        "1",
        "--n-startup-trials",
        "1",
        "--n-evaluations",
        "1",
        "--no-optim-plots",
    ]
    command = [
        *FRONT_DOORS["script"],
        "train",
        "--algo",
        "ppopenalty",
        "--env",
        "CartPole-v1",
        *SHORT,
        *options,
    ]
    assert "Best trial" in run(command, tmp_path)


def test_a_missing_zoo_is_said_in_one_line():
    script = "import sys; sys.modules['rl_zoo3'] = None; from sb3_trust.__main__ import main; main()"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1 and "pip install 'sb3-trust[zoo]'" in result.stderr


def test_importing_sb3_trust_does_not_import_the_zoo():
    heavy = {"rl_zoo3", "sb3_contrib", "matplotlib.pyplot", "optuna"}
    script = f"import sys, sb3_trust; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_own_settings_are_named_unless_the_user_names_some():
    def conf(*arguments):
        result = with_own_settings(arguments)
        # the user's arguments come last: what they name counts, however they spell it
        assert list(arguments) == result[len(result) - len(arguments) :]
        return result[: len(result) - len(arguments)]

    for key, arguments in {
        "trpo": ["--algo", "trpo", "-conf", "mine.yml"],
        "ppopenalty": ["--algo=ppopenalty", "-P", "--conf=mine.yml"],
        "ppo": ["--env", "X"],
    }.items():
        assert conf(*arguments) == ["--conf-file", str(hyperparams_file(key))]
    assert conf("--al", "trpo") == conf("--algo", "trpo")
    assert conf("--algo", "a2c") == []


def test_a_settings_file_of_the_users_own_counts(tmp_path):
    (tmp_path / "mine.yml").write_text("CartPole-v1: {n_timesteps: 200, policy: MlpPolicy, n_steps: 77}\n")
    options = ["--algo", "trpo", "--env", "CartPole-v1", "--conf", "mine.yml", "--eval-freq", "-1"]
    assert "'n_steps', 77" in run([*FRONT_DOORS["module"], "train", *options], tmp_path)


def test_registered_in_the_zoos_own_dictionaries():
    for key, algorithm in ALGORITHMS.items():
        assert rl_zoo3.ALGOS[key] is algorithm is getattr(sb3_trust, algorithm.__name__)
        assert key in HYPERPARAMS_SAMPLER and key in HYPERPARAMS_CONVERTER
    assert set(ALGORITHMS) == {"reinforce", "npg", "trpo", "ppo", "ppopenalty"}


@pytest.mark.parametrize("key", ALGORITHMS)
@pytest.mark.parametrize("n_actions", [0, 6])
def test_samplers_suggest_what_constructors_take_and_converters_give_it_back(key, n_actions):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(10):
        trial = study.ask()
        sampled = HYPERPARAMS_SAMPLER[key](trial, n_actions, 1, {})
        assert HYPERPARAMS_CONVERTER[key](trial.params) == sampled
        truncated = sampled["n_steps"] % sampled["batch_size"] > 0
        with pytest.warns(UserWarning) if truncated else contextlib.nullcontext():
            model = ALGORITHMS[key]("MlpPolicy", "CartPole-v1", **sampled)
        assert model.gamma == sampled["gamma"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_there_are_settings_for_every_environment(algorithm):
    assert set(ENVIRONMENTS) <= set(settings(algorithm))


CELLS = [(algorithm, env) for algorithm in ALGORITHMS for env in settings(algorithm)]


@pytest.mark.parametrize(("algorithm", "env"), CELLS)
def test_settings_fit_the_constructor(algorithm, env):
    entry = settings(algorithm)[env]
    of_the_zoo = {"n_timesteps", "n_envs", "normalize", "env_wrapper", "frame_stack"}
    arguments = set(inspect.signature(ALGORITHMS[algorithm]).parameters)
    assert set(entry) - of_the_zoo <= arguments
    assert {"n_timesteps", "policy"} <= set(entry)
    if env in ("default", "atari"):
        return
    hyperparams = {k: v for k, v in entry.items() if k not in of_the_zoo}
    hyperparams = ExperimentManager._preprocess_schedules(hyperparams)
    if "policy_kwargs" in hyperparams:
        hyperparams["policy_kwargs"] = eval(hyperparams["policy_kwargs"], {"nn": __import__("torch").nn})
    ALGORITHMS[algorithm](env=gym.make(env), **hyperparams)


def test_a_file_may_hold_the_settings_of_several_algorithms(tmp_path):
    command = [*FRONT_DOORS["script"], "train", "--algo", "npg", "--env", "CartPole-v1", *SHORT]
    several = [
        "-conf",
        str(ROOT / "hyperparams" / "modular_rl.yml"),
        "-params",
        "n_steps:64",
        "batch_size:64",
    ]
    output = run([*command, *several], tmp_path)
    assert "('cg_damping', 0.001)" in output and "('action_net_gain', 0.1)" in output
    saved = NPG.load(tmp_path / "logs" / "npg" / "CartPole-v1_1" / "CartPole-v1.zip")
    assert (saved.cg_max_steps, saved.gae_lambda, saved.n_envs) == (10, 1.0, 8)


@pytest.mark.parametrize("method", ALGORITHMS)
def test_modular_rls_settings_fit_the_constructor(method):
    with section_of(str(ROOT / "hyperparams" / "modular_rl.yml"), method) as path:
        section = yaml.safe_load(Path(path).read_text())
    assert set(section) == {"CartPole-v1", "LunarLander-v3"}
    entry = {k: v for k, v in section["CartPole-v1"].items() if k not in ("n_timesteps", "n_envs")}
    env = make_vec_env("CartPole-v1", section["CartPole-v1"]["n_envs"])
    with pytest.warns(UserWarning, match="truncated"):
        model = ALGORITHMS[method](env=env, **entry)
    assert model.n_steps * model.n_envs == 10_000


def test_a_file_of_one_algorithm_is_read_as_it_is(tmp_path):
    for config in (str(hyperparams_file("trpo")), "some.package", str(tmp_path / "none.yml")):
        with section_of(config, "trpo") as path:
            assert path == config


def test_settings_are_in_the_package():
    assert hyperparams_file("trpo").resolve() == ROOT / "hyperparams" / "trpo.yml"
