"""Saved models: ours, SB3's and sb3-contrib's, in both directions."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch as th

from sb3_trust import NPG, PPO, REINFORCE, TRPO, InvalidArgument, PPOPenalty
from tests.worlds import ACTION_SPACES, KINDS, identical, model_of, on_reference, parameters, state, world

ALGORITHMS = [REINFORCE, NPG, TRPO, PPO, PPOPenalty]


def observations_of(model, n=5):
    return np.stack([model.observation_space.sample() for _ in range(n)])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", ["box", "discrete", "gsde_squashed"])
def test_saved_loaded_and_continued(algorithm, kind, tmp_path):
    model = model_of(kind, algorithm).learn(256)
    model.n_rollbacks = 3
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=model.get_env(), device="cpu")
    assert identical(state(model), state(loaded))
    obs = observations_of(model)
    np.testing.assert_array_equal(*(m.predict(obs, deterministic=True)[0] for m in (model, loaded)))
    assert loaded.n_rollbacks == 3 and loaded._n_updates == model._n_updates
    before = parameters(loaded)
    loaded.learn(256, reset_num_timesteps=False)
    assert loaded.num_timesteps == 512
    assert not th.equal(before, parameters(loaded))


def test_adaptive_state_is_saved_apart_from_the_argument_it_starts_from(tmp_path):
    model = model_of("box", PPOPenalty, kl_rule={"high": 1.2}, init_kl_coef=3.0, target_kl="lin_0.02").learn(
        512
    )
    assert model.kl_coef != 3.0
    model.save(tmp_path / "model")
    loaded = PPOPenalty.load(tmp_path / "model")
    assert (loaded.kl_coef, loaded.init_kl_coef) == (model.kl_coef, 3.0)
    assert (loaded.kl_rule, loaded.target_kl) == ({"high": 1.2}, "lin_0.02")
    loaded._setup_model()
    assert loaded.kl_coef == model.kl_coef


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_parameters_can_be_taken_and_given(algorithm):
    first, second = model_of("box", algorithm).learn(128), model_of("box", algorithm, seed=9)
    assert set(first.get_parameters()) == {"policy", "policy.optimizer"}
    second.set_parameters(first.get_parameters())
    assert identical(state(first), state(second))
    second.learn(128)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_another_env_can_be_set(algorithm):
    model = model_of("box", algorithm).learn(128)
    env = world(ACTION_SPACES["box"])
    model.set_env(env)
    assert model.learn(128).get_env() is env and model.last_update.kl > 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_vector_can_be_loaded_in_mid_training(algorithm):
    model = model_of("box", algorithm).learn(128)
    model.policy.load_from_vector(model.policy.parameters_to_vector() * 0.9)  # rebinds the storage
    before = parameters(model)
    model.learn(128)
    assert not th.equal(before, parameters(model)) and model.last_update.kl > 0


@pytest.mark.parametrize("kind", ["box", "discrete", "dict", "gsde"])
def test_sb3_ppo_loads_into_ours_and_goes_on_as_there(kind, tmp_path):
    theirs = model_of(kind, stable_baselines3.PPO, batch_size=32).learn(128)
    theirs.save(tmp_path / "model")
    continued = []
    for algorithm in (PPO, stable_baselines3.PPO):
        model = algorithm.load(
            tmp_path / "model", env=world(*KINDS[kind][:2]), device="cpu", **on_reference(algorithm)
        )
        assert identical(state(theirs), state(model))
        model.set_random_seed(11)
        continued.append(model.learn(128, reset_num_timesteps=False))
    ours, reference = map(parameters, continued)
    assert float((ours - reference).norm()) < 1e-5 * float((reference - parameters(theirs)).norm())


def test_our_ppo_opens_where_sb3_trust_cannot_be_imported(tmp_path):
    model = model_of("box", PPO, clip_range_vf=0.3, learning_rate=lambda p: 1e-3 * p).learn(128)
    model.save(tmp_path / "model")
    obs = observations_of(model)
    np.save(tmp_path / "obs.npy", obs)
    np.save(tmp_path / "actions.npy", model.predict(obs, deterministic=True)[0])
    script = f"""
import sys, warnings
sys.modules["sb3_trust"] = None  # any import of it fails
warnings.simplefilter("error")
import numpy as np
from stable_baselines3 import PPO
model = PPO.load({str(tmp_path / "model")!r}, device="cpu")
actions, _ = model.predict(np.load({str(tmp_path / "obs.npy")!r}), deterministic=True)
assert np.array_equal(actions, np.load({str(tmp_path / "actions.npy")!r}))
assert model.clip_range_vf(1.0) == 0.3
print("same")
"""
    # from elsewhere, and with a learning rate whose pickle does not name a module of the tests
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert result.stdout.strip() == "same", result.stderr


def test_sb3_ppo_loads_into_ppo_penalty_and_says_what_is_set(tmp_path):
    theirs = model_of("box", stable_baselines3.PPO, target_kl=0.3).learn(128)
    theirs.save(tmp_path / "model")
    with pytest.warns(UserWarning, match=r"clip range is dropped.*target_kl=0.01.*kl_rule='paper'"):
        model = PPOPenalty.load(tmp_path / "model", env=theirs.get_env(), device="cpu")
    assert identical(state(theirs), state(model))
    assert not hasattr(model, "clip_range") and (model.target_kl, model.kl_coef) == (0.01, 1.0)
    model.learn(128)
    model.save(tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # said once, not again
        assert PPOPenalty.load(tmp_path / "ours").target_kl == 0.01
    with pytest.warns(UserWarning, match=r"target_kl=0.05, init_kl_coef=2.0"):
        model = PPOPenalty.load(tmp_path / "model", target_kl=0.05, init_kl_coef=2.0)
    assert (model.target_kl, model.kl_coef) == (0.05, 2.0)


@pytest.mark.parametrize(
    ("kind", "d"), [("box", 3), ("multi_binary", 4), ("discrete", 1), ("multi_discrete", 1)]
)
def test_contrib_trpo_loads_into_ours_converted_to_the_joint_kl(kind, d, tmp_path):
    theirs = model_of(kind, sb3_contrib.TRPO, target_kl=0.02, cg_damping=0.05).learn(128)
    theirs.save(tmp_path / "model")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = TRPO.load(tmp_path / "model", env=theirs.get_env(), device="cpu")
    said = [str(w.message) for w in caught if "summed" in str(w.message)]
    assert len(said) == (d > 1)
    assert model.target_kl == pytest.approx(0.02 * d) and model.cg_damping == pytest.approx(0.05 * d)
    assert identical(state(theirs), state(model))
    model.learn(128)
    assert 0 < model.last_update.kl <= 0.02 * d
    model.save(tmp_path / "ours")
    assert TRPO.load(tmp_path / "ours").target_kl == pytest.approx(0.02 * d)  # converted once


def test_what_is_passed_to_load_is_in_our_units_already(tmp_path):
    model_of("box", sb3_contrib.TRPO, cg_damping=0.05).save(tmp_path / "model")
    with pytest.warns(UserWarning, match=r"cg_damping 0.05 -> 0.15$"):
        model = TRPO.load(tmp_path / "model", target_kl=0.04)
    assert (model.target_kl, model.cg_damping) == (0.04, pytest.approx(0.15))


def test_custom_objects_are_in_our_units_too(tmp_path):
    model_of("box", sb3_contrib.TRPO).save(tmp_path / "model")
    with pytest.warns(UserWarning, match="cg_damping"):
        assert TRPO.load(tmp_path / "model", custom_objects={"target_kl": 0.05}).target_kl == 0.05


def test_bad_values_are_refused_at_loading_too(tmp_path):
    model_of("box", TRPO).save(tmp_path / "model")
    with pytest.raises(InvalidArgument, match="target_kl"):
        TRPO.load(tmp_path / "model", target_kl=-1.0)


def test_nothing_of_ours_is_pickled(tmp_path):
    """What is not JSON in the saved data is SB3's or the user's."""
    import json
    import zipfile

    for algorithm in ALGORITHMS:
        model_of("box", algorithm).learn(128).save(tmp_path / "model")
        with zipfile.ZipFile(tmp_path / "model.zip") as archive:
            data = json.loads(archive.read("data"))
        pickled = {
            name: entry[":type:"]
            for name, entry in data.items()
            if isinstance(entry, dict) and ":type:" in entry
        }
        assert not [name for name, kind in pickled.items() if "sb3_trust" in kind]
        assert {"_engine", "_rollout", "last_update", "_loaded_with"}.isdisjoint(data)
        assert data["_trust_format"] == 1


def test_a_model_of_another_algorithm_is_refused(tmp_path):
    for saved in (PPO, TRPO, PPOPenalty, stable_baselines3.PPO, sb3_contrib.TRPO):
        model_of("box", saved).save(tmp_path / "model")
        for algorithm in ALGORITHMS:
            if algorithm.__name__ == saved.__name__ or (algorithm is PPOPenalty and saved.__name__ == "PPO"):
                continue
            with pytest.raises(
                InvalidArgument, match=f"for {algorithm.__name__}, but it holds .*{saved.__name__}"
            ):
                algorithm.load(tmp_path / "model")


def test_our_ppo_loads_into_ppo_penalty_as_sb3s_does(tmp_path):
    model_of("box", PPO, target_kl=0.3).save(tmp_path / "model")
    with pytest.warns(UserWarning, match="clip range is dropped") as caught:
        model = PPOPenalty.load(tmp_path / "model", init_kl_coef=2.0)
    assert (model.target_kl, model.kl_coef) == (0.01, 2.0) and not hasattr(model, "clip_range")
    assert caught[0].filename == __file__  # the warning points at the caller's line


def test_what_ppo_penalty_drops_of_a_ppo_is_named_and_gone(tmp_path):
    options = {"dual_clip": 3.0, "learning_rate_kl_target": 0.01, "clip_range_vf": 0.2, "value_clip": "max"}
    model_of("box", PPO, **options).save(tmp_path / "model")
    with pytest.warns(UserWarning, match="clip range and clip_range_vf and value_clip and dual_clip and"):
        model = PPOPenalty.load(tmp_path / "model")
    assert not {*options, "current_learning_rate", "objective", "kl_stop"} & set(vars(model))
    model.save(tmp_path / "ours")
    PPOPenalty.load(tmp_path / "ours")


def test_a_start_value_passed_to_load_is_where_the_coefficient_starts(tmp_path):
    model = model_of("box", PPOPenalty).learn(512)
    model.save(tmp_path / "model")
    assert PPOPenalty.load(tmp_path / "model").kl_coef == model.kl_coef != 7.0
    assert PPOPenalty.load(tmp_path / "model", init_kl_coef=7.0).kl_coef == 7.0
