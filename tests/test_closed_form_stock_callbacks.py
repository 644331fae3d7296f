"""Which callbacks are known to keep their hands off the policy, so that nobody watches the rollout."""

import pytest
from stable_baselines3.common import callbacks as sb3
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback

from sb3_trust.rollout import is_stock
from tests.worlds import KINDS, world


def evaluation_env():
    return world(*KINDS["box"][:2], n_envs=1)


class User(BaseCallback):
    def _on_step(self):
        return True


class UsersCheckpoint(CheckpointCallback):
    pass


def patched():
    callback = CheckpointCallback(10, "nowhere")
    callback._on_step = lambda: True
    return callback


def lookalike():
    return type("Alike", (User,), {"__module__": "stable_baselines3.common.callbacks_of_mine"})()


STOCK = {
    "evaluation": lambda: EvalCallback(evaluation_env()),
    "checkpoint": lambda: CheckpointCallback(10, "nowhere"),
    "episodes": lambda: sb3.StopTrainingOnMaxEpisodes(3),
    "threshold": lambda: EvalCallback(evaluation_env(), sb3.StopTrainingOnRewardThreshold(0.0)),
    "no_improvement": lambda: EvalCallback(
        evaluation_env(), callback_after_eval=sb3.StopTrainingOnNoModelImprovement(1)
    ),
    "every": lambda: sb3.EveryNTimesteps(10, CheckpointCallback(10, "nowhere")),
    "log": lambda: sb3.LogEveryNTimesteps(10),
    "progress": lambda: sb3.ProgressBarCallback(),
    "empty_list": lambda: CallbackList([]),
    "lists": lambda: CallbackList([CallbackList([sb3.StopTrainingOnMaxEpisodes(3)])]),
    "convert_nothing": lambda: sb3.ConvertCallback(None),
}
NOT_STOCK = {
    "users": User,
    "subclass": lambda: UsersCheckpoint(10, "nowhere"),
    "function": lambda: sb3.ConvertCallback(lambda *_: True),
    "in_a_list": lambda: CallbackList([sb3.StopTrainingOnMaxEpisodes(3), User()]),
    "in_nested_lists": lambda: CallbackList([CallbackList([User()])]),
    "every": lambda: sb3.EveryNTimesteps(10, User()),
    "after_evaluation": lambda: EvalCallback(evaluation_env(), callback_after_eval=User()),
    "on_new_best": lambda: EvalCallback(evaluation_env(), User()),
    "on_new_best_in_a_list": lambda: CallbackList([EvalCallback(evaluation_env(), User())]),
    "patched": patched,
    "lookalike": lookalike,
}


@pytest.mark.parametrize("name", STOCK)
def test_sb3s_own_callbacks_are_stock(name):
    assert is_stock(STOCK[name]())


@pytest.mark.parametrize("name", NOT_STOCK)
def test_what_a_user_has_a_hand_in_is_not_stock(name):
    assert not is_stock(NOT_STOCK[name]())
