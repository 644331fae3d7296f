"""SB3's callbacks, and the arguments of `learn`, do what they do in SB3."""

import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import (
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)

from sb3_trust import NPG, PPO, REINFORCE, TRPO, PPOPenalty
from tests.worlds import KINDS, LOOP, model_of, on_reference, parameters, world


def callbacks(folder):
    env = world(*KINDS["box"][:2], n_envs=1)
    return CallbackList(
        [
            EvalCallback(env, log_path=str(folder), eval_freq=50, n_eval_episodes=2, verbose=0),
            EveryNTimesteps(100, CheckpointCallback(1, str(folder), name_prefix="model")),
            LogEveryNTimesteps(70),
            StopTrainingOnMaxEpisodes(35),
        ]
    )


def test_sb3s_callbacks_see_and_do_what_they_do_there(tmp_path):
    results = []
    for algorithm in (PPO, stable_baselines3.PPO):
        folder = tmp_path / algorithm.__module__.split(".")[0]
        model = model_of("box", algorithm, policy_kwargs=LOOP, **on_reference(algorithm))
        model.learn(5 * 128, callbacks(folder))
        with np.load(folder / "evaluations.npz") as evaluations:
            results.append((model, evaluations["results"], sorted(p.name for p in folder.glob("*.zip"))))
    (ours, our_evaluations, our_files), (theirs, evaluations, files) = results
    assert th.equal(parameters(ours), parameters(theirs))
    np.testing.assert_array_equal(our_evaluations, evaluations)
    assert our_files == files and len(files) >= 3
    assert ours.num_timesteps == theirs.num_timesteps < 5 * 128  # stopped after so many episodes


@pytest.mark.parametrize("algorithm", [REINFORCE, NPG, TRPO, PPO, PPOPenalty])
def test_checkpoints_load_and_a_reward_threshold_stops(algorithm, tmp_path):
    env = world(*KINDS["box"][:2], n_envs=1)
    stop = EvalCallback(env, StopTrainingOnRewardThreshold(-1e9, verbose=0), eval_freq=100, verbose=0)
    model = model_of("box", algorithm).learn(10_000, [stop, CheckpointCallback(64, str(tmp_path))])
    assert model.num_timesteps == 200
    assert algorithm.load(tmp_path / "rl_model_128_steps", env=model.get_env()).num_timesteps == 128


@pytest.mark.parametrize("algorithm", [REINFORCE, NPG, TRPO, PPO, PPOPenalty])
def test_tensorboard_and_progress_bar(algorithm, tmp_path):
    model = algorithm(
        "MlpPolicy", world(*KINDS["box"][:2]), n_steps=64, batch_size=64, tensorboard_log=str(tmp_path)
    )
    model.learn(128, progress_bar=True)
    assert [p.name for p in tmp_path.iterdir()] == [f"{algorithm.__name__}_1"]
    model.learn(128, tb_log_name="named")
    assert (tmp_path / "named_1").is_dir()
