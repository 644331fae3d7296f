"""``sb3-trust enjoy --safe`` on the folder of a stranger."""

import collections
import pickle
import sys
from pathlib import Path

import pytest
from stable_baselines3.common.vec_env import VecNormalize

from sb3_trust import PPO, UnsafeModel
from tests.strangers import Evil, normalized, with_entries, written


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a trained model as the Zoo leaves it, and the settings in it."""
    yaml = pytest.importorskip("yaml")
    naming = pytest.importorskip("huggingface_sb3")
    pytest.importorskip("rl_zoo3")
    run = tmp_path / "logs" / "ppo" / "Pendulum-v1_1"
    parameters = run / "Pendulum-v1"
    parameters.mkdir(parents=True)
    PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16).learn(16).save(run / "Pendulum-v1.zip")
    normalized().save(str(parameters / "vecnormalize.pkl"))
    (parameters / "config.yml").write_text(
        yaml.dump(collections.OrderedDict(normalize="dict(norm_obs=True)", n_envs=1))
    )
    arguments = collections.OrderedDict(
        env=naming.EnvironmentName("Pendulum-v1"), env_kwargs={"g": 9.81}, t=(1, 2)
    )
    (parameters / "args.yml").write_text(yaml.dump(arguments))
    monkeypatch.chdir(tmp_path)
    return run


def enjoy(*arguments):
    from sb3_trust.zoo.cli import run

    run(["enjoy", "--env", "Pendulum-v1", "-f", "logs", "--no-render", "-n", "250", "--safe", *arguments])


def test_enjoy_runs_a_model_safely_and_puts_everything_back(folder, monkeypatch, capsys):
    import rl_zoo3.utils

    monkeypatch.setattr(sys, "argv", [])
    enjoy("--algo", "ppo")
    said = capsys.readouterr().out
    assert "Mean reward" in said and "Loading running average" in said
    assert rl_zoo3.utils.ALGOS["ppo"] is PPO and "a2c" in rl_zoo3.utils.ALGOS
    assert rl_zoo3.utils.VecNormalize is VecNormalize and rl_zoo3.utils.yaml.__name__ == "yaml"
    with pytest.raises(SystemExit):
        enjoy("--algo", "a2c")
    assert "invalid choice: 'a2c'" in capsys.readouterr().err


EVIL_SETTINGS = {
    "args.yml": "!!python/object/apply:os.mkdir ['{ran}']",
    "config.yml": "!!python/object/apply:os.mkdir ['{ran}']",
    "config.yml: normalize": "normalize: __import__('os').mkdir('{ran}')",
    "config.yml: normalize dict": "normalize: dict(a=__import__('os').mkdir('{ran}'))",
    "config.yml: normalize pairs": "normalize: dict(__import__('os').mkdir('{ran}'))",
    "config.yml: env_wrapper": "env_wrapper: [evil.Wrapper]",
    "config.yml: vec_env_wrapper": "vec_env_wrapper: [{{evil.Wrapper: {{}}}}]",
}


@pytest.mark.parametrize("name", EVIL_SETTINGS)
def test_enjoy_runs_nothing_in_settings(name, folder, ran, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    # an import of it would be seen
    Path("evil.py").write_text(f"import os; os.mkdir({str(ran)!r})")
    monkeypatch.syspath_prepend(".")
    file = folder / "Pendulum-v1" / name.split(":")[0]
    file.write_text(EVIL_SETTINGS[name].format(ran=ran))
    with pytest.raises(UnsafeModel, match=file.name):
        enjoy("--algo", "ppo")


def test_enjoy_runs_nothing_in_pickles(folder, saved, ran, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    statistics = folder / "Pendulum-v1" / "vecnormalize.pkl"
    whole = statistics.read_bytes()
    statistics.write_bytes(pickle.dumps(Evil(ran)))
    with pytest.raises(UnsafeModel, match=r"vecnormalize.pkl: refused: posix.mkdir"):
        enjoy("--algo", "ppo")
    statistics.write_bytes(whole)
    written(with_entries(saved, extra=pickle.dumps(Evil(ran))), folder / "Pendulum-v1.zip")
    with pytest.raises(UnsafeModel, match=r"extra: refused: posix.mkdir"):
        enjoy("--algo", "ppo")
