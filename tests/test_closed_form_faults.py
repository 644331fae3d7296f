"""Copied models, callbacks that interfere, gradients whose memory lies otherwise."""

import copy
import pickle

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.logger import Logger

from sb3_trust import PPO, TRPO
from sb3_trust.engines.closed_form import ClosedFormEngine
from tests.worlds import ACTION_SPACES, IMAGE, fill, model_of, parameters, world


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(cloudpickle.dumps(m))])
@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_a_copy_of_a_model_trains_as_the_model_does(algorithm, copied):
    model = model_of("discrete", algorithm, n_steps=32)
    twin = copied(model)
    for one in (model, twin):
        one.set_random_seed(1)
        one.learn(256)
    assert isinstance(twin._policy_engine(), ClosedFormEngine)
    assert twin.last_update.kl > 0
    assert th.equal(parameters(model), parameters(twin))


def test_a_callback_may_stop_before_the_first_step_is_stored():
    model = PPO("MlpPolicy", world(ACTION_SPACES["box"], length=1), n_steps=16, batch_size=16, seed=0)
    model.learn(64, StopTrainingOnMaxEpisodes(1))
    assert model.rollout_buffer.pos == 0 and model.num_timesteps == 2


def test_optimizer_state_that_was_only_looked_at_does_no_harm():
    model = fill(model_of("box", PPO))
    for parameter in model.policy.parameters():
        assert model.policy.optimizer.state[parameter] == {}
    model.train()
    assert model.last_update.kl > 0


def test_a_policy_that_is_changed_as_a_rollout_starts_is_the_one_that_acts():
    class Replace(BaseCallback):
        def _on_rollout_start(self):
            with th.no_grad():
                self.model.policy.action_net.bias = th.nn.Parameter(th.full((3,), 50.0))

        def _on_step(self):
            return True

    model = model_of("box", PPO, n_steps=16)
    _, callback = model._setup_learn(100, Replace())
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 16)
    assert model.rollout_buffer.actions.min() > 40.0


@pytest.mark.parametrize("images", [IMAGE, spaces.Box(0, 255, (2, 44, 44), np.uint8)])
def test_one_call_of_adam_steps_a_convolutional_critic_as_a_loop_does(images):
    """Images lie with channels last, and so may the gradients of what convolves them."""
    results = []
    for foreach in (None, False):  # False: the optimizer's own loop
        model = TRPO(
            "CnnPolicy",
            world(ACTION_SPACES["discrete"], images),
            n_steps=32,
            batch_size=32,
            seed=0,
            policy_kwargs={
                "share_features_extractor": False,
                "features_extractor_kwargs": {"features_dim": 16},
                "optimizer_kwargs": {"foreach": foreach},
            },
            device="cpu",
        )
        model.set_logger(Logger(None, []))
        before = parameters(model)
        fill(model).train()
        results.append((parameters(model), before))
    (one_call, old), (loop, _) = results
    assert float((one_call - loop).norm()) < 1e-4 * float((loop - old).norm())
