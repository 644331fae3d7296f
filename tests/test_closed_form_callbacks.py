"""Callbacks in the closed form's rollout: they see and do what they see and do in SB3's loop."""

import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common import callbacks as sb3
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_trust import PPO, TRPO
from sb3_trust.engines.autograd import AutogradEngine
from sb3_trust.engines.closed_form import ClosedFormEngine
from tests.replay import assert_same, collect, oracle_for, replay
from tests.twins import perturb
from tests.worlds import CLOSED_FORM_KINDS, KINDS, World, model_of, world


class Level(World):
    """Its reward is the same whatever is done."""

    def _reward(self, action):
        return 1.0


def evaluation_env():
    return make_vec_env(lambda: Level(*KINDS["box"][:2]), 1, seed=0)


class User(BaseCallback):
    def _on_step(self):
        return True


CALLS = []


def count_calls(local_names, global_names):
    CALLS.append(local_names["self"].num_timesteps)
    return local_names["n_steps"] < 50


LEARNING = {
    "evaluation": lambda path: EvalCallback(
        evaluation_env(), eval_freq=30, n_eval_episodes=2, verbose=0, log_path=str(path),
        best_model_save_path=str(path),
    ),
    "checkpoint": lambda path: CheckpointCallback(25, str(path)),
    "episodes": lambda path: sb3.StopTrainingOnMaxEpisodes(12),
    "threshold": lambda path: EvalCallback(
        evaluation_env(), sb3.StopTrainingOnRewardThreshold(0.0), eval_freq=45, verbose=0
    ),
    "no_improvement": lambda path: EvalCallback(
        evaluation_env(), callback_after_eval=sb3.StopTrainingOnNoModelImprovement(1), eval_freq=20, verbose=0
    ),
    "every": lambda path: sb3.EveryNTimesteps(60, CheckpointCallback(1, str(path))),
    "progress": lambda path: sb3.ProgressBarCallback(),
    "lists": lambda path: CallbackList(
        [CheckpointCallback(25, str(path)), CallbackList([sb3.StopTrainingOnMaxEpisodes(12), User()])]
    ),
    "function": lambda path: count_calls,
}  # fmt: skip


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_learning_under_a_callback_goes_as_with_the_reference(algorithm, name, tmp_path):
    results = []
    for engine in ("closed_form", "autograd"):
        CALLS.clear()
        callback = LEARNING[name](tmp_path / engine)
        model = model_of("box", algorithm, n_steps=60, batch_size=60, engine=engine)
        model.learn(200, callback)
        files = sorted(path.name for path in (tmp_path / engine).glob("*"))
        counters = (model.num_timesteps, model._n_updates, model.rollout_buffer.pos, model._episode_num)
        results.append((counters, getattr(callback, "n_calls", None), files, list(CALLS)))
        for path in (tmp_path / engine).glob("*.zip"):
            assert algorithm.load(path, env=model.get_env()).engine == engine
        model.learn(60, reset_num_timesteps=False)
    assert results[0] == results[1]
    if name in ("episodes", "threshold", "no_improvement", "lists", "function"):
        assert results[0][0][0] < 200


def model_on(kind, n_steps=40):
    model = model_of(kind, PPO, n_steps=n_steps, engine="closed_form")
    perturb(model.policy, 0.3)
    return model


NAMES = ("self", "env", "callback", "rollout_buffer", "n_rollout_steps", "n_steps", "obs_tensor", "actions",
         "values", "log_probs", "clipped_actions", "new_obs", "rewards", "dones", "infos")  # fmt: skip


def described(value):
    shape = getattr(value, "shape", None)
    return type(value).__name__, None if shape is None else tuple(shape), str(getattr(value, "dtype", ""))


class Names(BaseCallback):
    """Keeps what it finds, as it is and as it was, and asks the policy for the same."""

    def __init__(self):
        super().__init__()
        self.found, self.copies, self.descriptions, self.last = [], [], [], []

    def _on_step(self):
        found = {name: self.locals[name] for name in NAMES}
        self.descriptions.append({name: described(value) for name, value in found.items()})
        kept = (
            "obs_tensor",
            "actions",
            "values",
            "log_probs",
            "clipped_actions",
            "new_obs",
            "rewards",
            "dones",
        )
        self.found.append({name: found[name] for name in kept})
        self.copies.append({name: np.array(found[name]) for name in kept})
        assert found["self"] is self.model and found["rollout_buffer"] is self.model.rollout_buffer
        assert found["env"] is self.training_env and found["n_rollout_steps"] == self.model.n_steps
        assert found["n_steps"] == self.n_calls - 1 and isinstance(found["callback"], BaseCallback)
        assert found["obs_tensor"].numpy() is not None and len(found["infos"]) == self.training_env.num_envs
        np.testing.assert_array_equal(found["obs_tensor"].numpy(), self.model._last_obs)
        with th.no_grad():
            actions = th.as_tensor(found["actions"]).reshape(len(found["actions"]), -1).squeeze(-1)
            values, log_probs, _ = self.model.policy.evaluate_actions(found["obs_tensor"], actions)
        th.testing.assert_close(found["values"], values, rtol=1e-4, atol=1e-5)
        th.testing.assert_close(found["log_probs"], log_probs, rtol=1e-4, atol=1e-5)
        return True

    def _on_rollout_end(self):
        self.last = {name: described(value) for name, value in self.locals.items() if name in NAMES}


@pytest.mark.parametrize("kind", CLOSED_FORM_KINDS)
def test_each_of_sb3s_names_is_there_at_each_step(kind):
    seen = []
    for engine in ("closed_form", "autograd"):
        callback = Names()
        collect(model_of(kind, PPO, n_steps=20, engine=engine), callback)
        assert len(callback.found) == 20
        for found, copy in zip(callback.found, callback.copies, strict=True):
            for name, value in found.items():
                if name != "rewards":  # SB3 too adds a terminal value to them
                    np.testing.assert_array_equal(np.array(value), copy[name], err_msg=name)
        seen.append((callback.descriptions, callback.last))
    assert seen[0] == seen[1]


class Change(BaseCallback):
    """Changes the policy after some steps."""

    def __init__(self, change, at):
        super().__init__()
        self.change, self.at = change, at

    def _on_step(self):
        if self.n_calls in self.at:
            with th.no_grad():
                self.change(self.model.policy)
        return True


def in_place(policy):
    policy.log_std += 0.7


def by_data(policy):
    policy.log_std.data = policy.log_std.data + 0.7


def by_state(policy):
    policy.load_state_dict({name: 1.02 * tensor for name, tensor in policy.state_dict().items()})


def from_vector(policy):
    policy.load_from_vector(1.02 * policy.parameters_to_vector())


def of_the_critic(policy):
    policy.value_net.bias.data = policy.value_net.bias.data + 1.0


CHANGES = (in_place, by_data, by_state, from_vector, of_the_critic)


@pytest.mark.parametrize("at", [(10,), tuple(range(1, 40))], ids=["once", "always"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_policy_that_is_changed_in_mid_rollout_is_evaluated_as_it_is_at_each_step(change, at):
    model = model_on("box")
    theirs = oracle_for("box", model)
    ours = collect(model, Change(change, at))
    assert_same(ours, replay(ours, theirs, Change(change, at)))
    assert isinstance(model._engine, ClosedFormEngine)


def test_kept_distributions_are_those_of_each_step_when_the_policy_is_changed():
    model = model_on("box", 20)
    first = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    collect(model, Change(by_state, (10,)))
    kept = model._rollout.old_distribution
    batch = model._make_batch()
    engine = AutogradEngine(model.policy)
    after = engine.distribution_parameters(batch).view(2, 20, -1).transpose(0, 1)
    model.policy.load_state_dict(first)
    before = engine.distribution_parameters(batch).view(2, 20, -1).transpose(0, 1)
    th.testing.assert_close(kept[:10], before[:10], rtol=1e-4, atol=1e-5)
    th.testing.assert_close(kept[10:], after[10:], rtol=1e-4, atol=1e-5)
    assert float((before - after).abs().max()) > 0.01


def test_a_users_callback_on_a_new_best_model_may_change_the_policy():
    def callback():
        return EvalCallback(
            evaluation_env(), Change(by_state, (1,)), eval_freq=10, n_eval_episodes=1, verbose=0
        )

    model = model_on("box")
    theirs = oracle_for("box", model)
    ours = collect(model, callback())
    assert_same(ours, replay(ours, theirs, callback()))


class Stop(BaseCallback):
    """Ends the rollout, and keeps the actions of its last step."""

    def _on_step(self):
        self.actions = self.locals["actions"]
        return self.n_calls < 23


@pytest.mark.parametrize("kind", ["box", "discrete", "multi_binary"])
def test_a_rollout_that_a_user_ends_leaves_a_complete_buffer(kind):
    model = model_on(kind)
    theirs, stop = oracle_for(kind, model), Stop()
    ours = collect(model, stop)
    assert_same(ours, replay(ours, theirs, Stop(), stop.actions))
    assert len(ours[0]["values"]) == 22 and model.num_timesteps == theirs.num_timesteps == 46


@pytest.mark.parametrize("kind", ["box", "discrete", "multi_binary"])
def test_a_rollout_that_a_stock_callback_ends_leaves_a_complete_buffer(kind):
    model = model_on(kind)
    theirs = oracle_for(kind, model)
    ours = collect(model, sb3.StopTrainingOnMaxEpisodes(3))
    ending = np.zeros_like(ours[0]["actions"][0])  # no buffer has the last step, which changes nothing in it
    assert_same(ours, replay(ours, theirs, sb3.StopTrainingOnMaxEpisodes(3), ending))
    assert len(ours[0]["values"]) == 20 and ours[0]["log_probs"].all()


@pytest.mark.parametrize("stop", [Stop, lambda: sb3.StopTrainingOnMaxEpisodes(1)], ids=["user", "stock"])
def test_learning_goes_on_after_an_end_in_mid_rollout(stop):
    model = model_of("box", PPO, n_steps=40, batch_size=40, engine="closed_form").learn(500, stop())
    assert model.num_timesteps < 80 and model._n_updates == 0
    model.learn(80, reset_num_timesteps=False)
    assert model._n_updates == 10 and model.last_update.kl > 0


def test_an_evaluation_in_mid_rollout_is_of_the_same_policy_as_in_sb3():
    results = []
    for algorithm, kwargs in ((PPO, {"engine": "closed_form"}), (stable_baselines3.PPO, {})):
        callback = EvalCallback(
            world(*KINDS["box"][:2], n_envs=1), eval_freq=10, n_eval_episodes=2, verbose=0
        )
        collect(model_of("box", algorithm, n_steps=40, **kwargs), callback)
        results.append(callback.last_mean_reward)
    assert results[0] == pytest.approx(results[1], rel=1e-5)
