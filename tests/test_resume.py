"""Training that goes on from a file is the training that was not interrupted."""

import json
import random
import zipfile

import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback

from sb3_trust import PPO
from tests.resuming import (
    ALGORITHMS,
    STEPS,
    environment,
    everything,
    go_on,
    load,
    make,
    python,
    same,
    save,
    scramble,
    set_state,
)


class Drawing(BaseCallback):
    """Draws from all generators at each step."""

    def _on_training_start(self):
        self.drawn = []

    def _on_step(self):
        space = self.model.action_space
        self.drawn += [random.random(), random.gauss(0.0, 1.0), np.random.normal(), float(th.randn(()))]
        self.drawn += np.ravel(space.sample()).tolist()
        return True


class Saving(BaseCallback):
    """Saves, with the environment, at one call of one method."""

    def __init__(self, method, call, folder):
        super().__init__()
        self.method, self.call, self.folder, self.calls = method, call, folder, 0

    def _maybe(self, method):
        if method == self.method:
            self.calls += 1
            if self.calls == self.call:
                save(self.model, self.folder)
        return True

    def _on_rollout_start(self):
        self._maybe("rollout_start")

    def _on_step(self):
        return self._maybe("step")


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        *[(kind, name, {"engine": "closed_form"}) for kind in ("discrete", "box") for name in ALGORITHMS],
        *[(kind, name, {"engine": "autograd"}) for kind in ("discrete", "box") for name in ALGORITHMS],
        *[("gsde", name, {"sde_sample_freq": -1}) for name in ALGORITHMS],
        *[("gsde", name, {"sde_sample_freq": 5}) for name in ALGORITHMS],
        *[("box", name, {"normalized": True}) for name in ALGORITHMS],
        ("cartpole", "PPO", {}),
        ("multi_binary", "PPOPenalty", {}),
        ("discrete", "TRPO", {"sub_sampling_factor": 2}),
        ("gsde_squashed", "PPO", {"normalized": True, "seed": None}),
        ("box", "PPO", {"learning_rate_kl_target": 0.05, "learning_rate_kl_interval": "epoch"}),
        ("box", "PPO", {"recompute_advantages": True, "max_kl": 0.01, "critic_learning_rate": 1e-3}),
        ("discrete", "TRPO", {"damping_rule": "adaptive", "kl_statistic": "max", "max_chunk": 30}),
    ],
)
def test_goes_on_bit_for_bit(kind, name, options, tmp_path):
    algorithm, normalized = ALGORITHMS[name], options.get("normalized", False)
    model = make(kind, algorithm, **options).learn(STEPS)
    model.n_rollbacks = 3
    save(model, tmp_path / "saved")
    save(model, tmp_path / "bare", exclude=["rng_states"])
    unbroken = go_on(model)
    loaded = load(algorithm, tmp_path / "saved", kind, normalized)
    assert same(unbroken, go_on(loaded))
    # without the states of the generators it is another run
    assert not same(unbroken, go_on(load(algorithm, tmp_path / "bare", kind, normalized)))


@pytest.mark.parametrize(("name", "engine"), [("PPO", "closed_form"), ("PPOPenalty", "autograd")])
def test_goes_on_in_another_process(name, engine, tmp_path):
    model = make("box", ALGORITHMS[name], engine=engine).learn(STEPS)
    save(model, tmp_path)
    unbroken = go_on(model)
    script = "import sys; from tests.resuming import go_on_elsewhere; go_on_elsewhere(*sys.argv[1:])"
    python([script, name, str(tmp_path), "box"])
    assert same(unbroken, th.load(tmp_path / "result.pt", weights_only=False))


def test_every_generator_goes_on(tmp_path):
    callbacks = Drawing(), Drawing()
    model = make("box", PPO).learn(STEPS, callback=callbacks[0])
    save(model, tmp_path)
    unbroken = go_on(model, callback=callbacks[0])
    assert same(unbroken, go_on(load(PPO, tmp_path, "box"), callback=callbacks[1]))
    assert callbacks[0].drawn == callbacks[1].drawn and len(callbacks[0].drawn) == 64 * 7


def test_saving_changes_nothing(tmp_path):
    saved = make("box", PPO).learn(STEPS)
    save(saved, tmp_path)
    assert saved.rng_states is None
    first = go_on(saved)
    assert same(first, go_on(make("box", PPO).learn(STEPS)))


def test_a_model_saved_again_before_it_goes_on_is_the_same(tmp_path):
    model = make("box", PPO).learn(STEPS)
    save(model, tmp_path / "first")
    unbroken = go_on(model)
    save(load(PPO, tmp_path / "first", "box"), tmp_path / "second")
    assert same(unbroken, go_on(load(PPO, tmp_path / "second", "box")))


def test_a_set_env_that_is_not_reset_goes_on_too(tmp_path):
    model = make("box", PPO).learn(STEPS)
    save(model, tmp_path)
    unbroken = go_on(model)
    loaded, env = PPO.load(tmp_path / "model", device="cpu"), environment("box")
    set_state(env, (tmp_path / "env.pkl").read_bytes())
    loaded.set_env(env, force_reset=False)
    scramble()
    assert same(unbroken, go_on(loaded))


def drawn_now():
    return random.random(), np.random.random(), float(th.rand(()))


def test_states_are_restored_only_where_training_goes_on(tmp_path):
    model = make("box", PPO, seed=None).learn(STEPS)
    save(model, tmp_path)
    goes_on = drawn_now()

    def after(prepare=lambda model: None, **kwargs):
        loaded = load(PPO, tmp_path, "box", **kwargs)
        prepare(loaded)
        loaded._setup_learn(STEPS, reset_num_timesteps=False)
        return drawn_now()

    scramble()
    scrambled = drawn_now()
    assert after() == goes_on != scrambled
    assert after(seed=7) == scrambled
    assert after(lambda model: model.set_random_seed(7)) not in (goes_on, scrambled)
    assert after(lambda model: model._setup_learn(STEPS)) == scrambled
    # loading alone leaves the generators alone
    scramble()
    PPO.load(tmp_path / "model", device="cpu").predict(np.zeros((1, 4), np.float32), deterministic=True)
    assert (random.random(), np.random.random()) == scrambled[:2]


def test_states_that_sb3_left_behind_are_not_restored(tmp_path):
    save(make("box", PPO).learn(STEPS), tmp_path)
    theirs = stable_baselines3.PPO.load(tmp_path / "model", env=environment("box"), device="cpu")
    theirs.learn(STEPS, reset_num_timesteps=False).save(tmp_path / "model")
    assert PPO.load(tmp_path / "model").rng_states is None


@pytest.mark.parametrize("name", ALGORITHMS)
def test_states_are_saved_as_json(name, tmp_path):
    make("gsde", ALGORITHMS[name]).learn(STEPS).save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        data = json.loads(archive.read("data"))
    assert data["rng_states"].keys() >= {"python", "numpy", "torch", "action_spaces"}
    assert ":type:" not in data["rng_states"] and "_step_reached" not in data


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
def test_states_of_devices_are_restored(tmp_path):
    env = environment("box")
    model = PPO("MlpPolicy", env, device="cuda", n_steps=32, batch_size=16).learn(STEPS)
    model.save(tmp_path / "model")
    goes_on = th.rand(3, device="cuda")
    loaded = PPO.load(tmp_path / "model", env=env, device="cuda")
    loaded._setup_learn(STEPS, reset_num_timesteps=False)
    assert th.equal(goes_on, th.rand(3, device="cuda"))


# ---- checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["box", "discrete"])
def test_a_checkpoint_at_the_start_of_a_rollout_goes_on_bit_for_bit(kind, tmp_path):
    model = make(kind, PPO).learn(2 * STEPS, callback=Saving("rollout_start", 3, tmp_path))
    unbroken = everything(model)
    loaded = load(PPO, tmp_path, kind)
    assert loaded.num_timesteps == STEPS
    # a callback of the user's own has everything computed step by step, with its own rounding
    assert same(unbroken, go_on(loaded, callback=Saving("rollout_start", 0, tmp_path)))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_checkpoint_within_a_rollout_goes_on_from_where_the_environments_are(name, tmp_path):
    model = make("box", ALGORITHMS[name]).learn(STEPS, callback=Saving("step", 32 + 20, tmp_path))
    loaded = load(ALGORITHMS[name], tmp_path, "box")
    current = np.stack([env.unwrapped.observation for env in loaded.get_env().envs])
    np.testing.assert_array_equal(loaded._last_obs, current)
    # episodes are of seven steps, so the 21st of a rollout of 32 after another of 32 does not begin one
    assert loaded.num_timesteps == 2 * 52 and not loaded._last_episode_starts.any()
    per_update = model._n_updates // 2
    assert loaded._n_updates == per_update
    loaded.learn(STEPS, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded._n_updates) == (2 * 52 + STEPS, 3 * per_update)
    assert model.num_timesteps == STEPS and loaded.last_update.kl > 0


def test_training_that_a_callback_ends_goes_on_from_where_the_environments_are():
    model = make("box", PPO).learn(STEPS, callback=lambda names, _: names["self"].num_timesteps < 20)
    model._setup_learn(STEPS, reset_num_timesteps=False)
    current = np.stack([env.unwrapped.observation for env in model.get_env().envs])
    np.testing.assert_array_equal(model._last_obs, current)


def test_stock_checkpoints_can_be_gone_on_from(tmp_path):
    make("box", PPO).learn(STEPS, callback=CheckpointCallback(20, str(tmp_path)))
    loaded = PPO.load(tmp_path / "rl_model_80_steps", env=environment("box"), device="cpu")
    assert loaded.num_timesteps == 80 and loaded.learn(64, reset_num_timesteps=False).num_timesteps == 144
