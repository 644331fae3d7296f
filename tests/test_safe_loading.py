"""Models of strangers: what is opened without running anything, and what is refused."""

import base64
import io
import json
import pickle
import random
import zipfile

import cloudpickle
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch as th
from stable_baselines3.common.utils import LinearSchedule

from sb3_trust import PPO, TRPO, InvalidArgument, PPOPenalty, UnsafeModel, load_safely, safe_archive
from tests.strangers import Evil, with_entries, written
from tests.worlds import KINDS, identical, model_of, state, world

OPENED_AS = {
    PPO: PPO,
    TRPO: TRPO,
    PPOPenalty: PPOPenalty,
    stable_baselines3.PPO: PPO,
    sb3_contrib.TRPO: TRPO,
}
SETTINGS = {
    "policy_kwargs": {
        "activation_fn": th.nn.ReLU,
        "ortho_init": False,
        "optimizer_class": th.optim.AdamW,
        "optimizer_kwargs": {"eps": 1e-6},
    },
    "learning_rate": LinearSchedule(1e-3, 1e-4, 0.5),
}
pytestmark = pytest.mark.filterwarnings("ignore:this is a model of sb3-contrib's TRPO:UserWarning")


def observations_of(model, n=5):
    sample = [model.observation_space.sample() for _ in range(n)]
    if isinstance(sample[0], dict):
        return {key: np.stack([s[key] for s in sample]) for key in sample[0]}
    return np.stack(sample)


def same(one, other):
    observations = observations_of(one)
    actions = (m.predict(observations, deterministic=True)[0] for m in (one, other))
    np.testing.assert_array_equal(*actions)
    return identical(state(one), state(other))


@pytest.mark.parametrize("algorithm", OPENED_AS, ids=lambda a: a.__module__)
@pytest.mark.parametrize("kind", ["box", "discrete", "multi_discrete", "multi_binary", "gsde", "cnn", "dict"])
def test_opens_what_load_opens_and_goes_on_as_there(algorithm, kind, tmp_path):
    special = {
        PPO: {"clip_range_vf": 0.2},
        TRPO: {"target_kl": "lin_0.02"},
        PPOPenalty: {"kl_rule": {"high": 1.2}},
    }
    settings = {**SETTINGS, **special.get(algorithm, {})}
    model = model_of(kind, algorithm, n_steps=16, batch_size=16, **settings).learn(32)
    model.save(tmp_path / "model")
    env = world(*KINDS[kind][:2])
    opened = load_safely(tmp_path / "model", env, device="cpu")
    loaded = OPENED_AS[algorithm].load(tmp_path / "model", env, device="cpu")
    assert type(opened) is OPENED_AS[algorithm] and same(model, opened)
    skipped = {"env", "policy", "rollout_buffer", "_logger", "device"}
    assert set(loaded.__dict__) == set(opened.__dict__)
    for name in set(loaded.__dict__) - skipped:
        assert type(getattr(loaded, name)) is type(getattr(opened, name)), name
        assert repr(getattr(loaded, name)) == repr(getattr(opened, name)) or "engine" in name, name
    for m in (opened, loaded):
        m.set_env(world(*KINDS[kind][:2]))
        m.set_random_seed(3)
        m.learn(32, reset_num_timesteps=False)
    assert identical(state(opened), state(loaded)) and opened.num_timesteps == 64


def test_opens_without_an_environment_from_a_stream_and_as_another_class(tmp_path):
    model = model_of("box", PPO, n_steps=16, batch_size=16).learn(32)
    model.save(tmp_path / "model")
    stream = io.BytesIO((tmp_path / "model.zip").read_bytes())
    assert same(model, load_safely(stream, device="cpu"))
    with pytest.warns(UserWarning, match="clip range is dropped"):
        opened = load_safely(tmp_path / "model.zip", algorithm=PPOPenalty, init_kl_coef=2.0)
    assert (opened.kl_coef, opened.target_kl) == (2.0, 0.01)
    with pytest.raises(InvalidArgument, match="for TRPO, but it holds one for PPO"):
        load_safely(tmp_path / "model", algorithm=TRPO)
    with pytest.raises(InvalidArgument, match="target_kl"):
        load_safely(tmp_path / "model", target_kl=-1.0)
    with pytest.raises(InvalidArgument, match="custom_objects"):
        load_safely(tmp_path / "model", custom_objects=["clip_range"])


def test_contrib_units_are_converted_as_by_load(tmp_path):
    model_of("box", sb3_contrib.TRPO, target_kl=np.float64(0.02)).save(tmp_path / "model")
    with pytest.warns(UserWarning, match="summed"):
        assert load_safely(tmp_path / "model").target_kl == pytest.approx(0.06)
    with pytest.warns(UserWarning, match="summed"):
        assert load_safely(tmp_path / "model", custom_objects={"target_kl": 0.05}).target_kl == 0.05


def test_a_schedule_that_is_a_function_is_refused_until_it_is_given(tmp_path):
    model_of("box", PPO, clip_range=lambda p: 0.1 * p, learning_rate=lambda p: 1e-3).save(tmp_path / "model")
    with pytest.raises(UnsafeModel) as caught:
        load_safely(tmp_path / "model")
    said = str(caught.value)
    assert "clip_range: refused: cloudpickle.cloudpickle._" in said and "learning_rate: refused" in said
    assert 'custom_objects={"learning_rate": ..., "clip_range": ...}' in said and "lr_schedule" not in said
    opened = load_safely(tmp_path / "model", custom_objects={"clip_range": 0.3, "learning_rate": 2e-3})
    assert opened.clip_range(1.0) == 0.3 and opened.lr_schedule(1.0) == 2e-3


def test_code_in_data_is_not_run(saved, ran, tmp_path):
    path = written(with_entries(saved, _last_obs=cloudpickle.dumps(Evil(ran))), tmp_path / "model.zip")
    with pytest.raises(
        UnsafeModel, match=r"_last_obs: refused: posix.mkdir(.|\n)*custom_objects=\{\"_last_obs\""
    ):
        load_safely(path)
    assert load_safely(path, custom_objects={"_last_obs": None})._last_obs is None
    # the attack is real: SB3's own `load` runs it
    PPO.load(path)
    assert ran.is_dir()
    ran.rmdir()


@pytest.mark.parametrize("name", ["policy.pth", "policy.optimizer.pth", "pytorch_variables.pth"])
def test_code_among_tensors_is_not_run(name, saved, ran, tmp_path):
    for new_format in (True, False):
        content = io.BytesIO()
        th.save({"weight": Evil(ran)}, content, _use_new_zipfile_serialization=new_format)
        path = written({**saved, name: content.getvalue()}, tmp_path / "model.zip")
        reason = r"needs posix.mkdir" if new_format else "cannot be read"
        with pytest.raises((UnsafeModel, InvalidArgument), match=f"{name}.*{reason}"):
            load_safely(path)


def test_tensors_for_other_attributes_are_refused(saved, tmp_path):
    content = io.BytesIO()
    th.save({"policy.log_std": th.zeros(3)}, content)
    path = written({**saved, "pytorch_variables.pth": content.getvalue()}, tmp_path / "model.zip")
    with pytest.raises(UnsafeModel, match=r"pytorch_variables.pth.*policy.log_std"):
        load_safely(path)


@pytest.mark.parametrize("name", ["env", "rollout_buffer", "learn", "_setup_model", "_loaded_with"])
def test_entries_that_no_save_writes_are_refused(name, saved, tmp_path):
    data = {**json.loads(saved["data"]), name: "this:CartPole-v1"}
    path = written({**saved, "data": json.dumps(data)}, tmp_path / "model.zip")
    with pytest.raises(UnsafeModel, match=f"{name}: no saved model has"):
        load_safely(path)


def test_a_value_that_looks_pickled_is_not_unpickled(saved, ran, tmp_path):
    evil = {":serialized:": base64.b64encode(pickle.dumps(Evil(ran))).decode()}
    path = written(with_entries(saved, extra=pickle.dumps(evil)), tmp_path / "model.zip")
    assert load_safely(path).extra == evil


def test_archives_beyond_the_limits_are_refused(saved, tmp_path, monkeypatch):
    path = tmp_path / "model.zip"
    inner = io.BytesIO()
    written({"archive/data.pkl": b"\0" * 30_000_000}, inner, compression=zipfile.ZIP_DEFLATED)
    bombs = (
        ({**saved, "system_info.txt": b"\0" * 30_000_000}, "system_info.txt"),
        ({**saved, "policy.pth": inner.getvalue()}, "data.pkl"),
    )
    for members, name in bombs:
        written(members, path, compression=zipfile.ZIP_DEFLATED)
        with pytest.raises(UnsafeModel, match=f"{name}.*unpacks to more than"):
            load_safely(path)
    written({**saved, **{f"{n}": b"" for n in range(60)}}, path)
    with pytest.raises(UnsafeModel, match="members, more than 64"):
        load_safely(path)
    for name in ("../evil", "/evil", "evil.pth", "tensors.pth"):
        written({**saved, name: b""}, path)
        with pytest.raises(UnsafeModel, match=f"unexpected members: '{name}'"):
            load_safely(path)
    written(saved, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("data", saved["data"])
    with pytest.raises(UnsafeModel, match="several members of the same name: 'data'"):
        load_safely(path)
    written(saved, path, compression=zipfile.ZIP_LZMA)
    with pytest.raises(UnsafeModel, match="neither stored nor deflated"):
        load_safely(path)
    written(saved, path, compression=zipfile.ZIP_DEFLATED)
    load_safely(path)
    monkeypatch.setattr(safe_archive, "MAX_BYTES", sum(map(len, saved.values())) - 1)
    with pytest.raises(UnsafeModel, match="unpacks to more than"):
        load_safely(path)
    monkeypatch.setattr("sb3_trust.safe_loading.MAX_BYTES", 1000)
    with pytest.raises(UnsafeModel, match="larger than 1000 bytes"):
        load_safely(path)


def test_what_is_no_model_is_said(saved, tmp_path):
    path = tmp_path / "model.zip"
    with pytest.raises(FileNotFoundError, match=r"model.zip"):
        load_safely(path)
    with pytest.raises(InvalidArgument, match="not a regular file"):
        load_safely(tmp_path)
    for content in (b"", b"not a zip"):
        path.write_bytes(content)
        with pytest.raises(InvalidArgument, match=r"model.zip cannot be read"):
            load_safely(path)
    written({name: content for name, content in saved.items() if name != "policy.pth"}, path)
    with pytest.raises(InvalidArgument, match=r"model.zip has no policy.pth"):
        load_safely(path)
    for data in (b"{", b"[]", b"{}", b"\xff", b"[" * 100_000):
        written({**saved, "data": data}, path)
        with pytest.raises(InvalidArgument, match=r"`data` of .*model.zip"):
            load_safely(path)
    data = json.loads(saved["data"])
    for changed, said in (({"init_kl_coef": 1.0}, "a PPO's and a PPOPenalty's"), ({}, "none")):
        both = {**data, **changed} if changed else {k: v for k, v in data.items() if k != "clip_range"}
        written({**saved, "data": json.dumps(both)}, path)
        with pytest.raises(InvalidArgument, match=f"holds {said}"):
            load_safely(path)


def test_damaged_files_are_refused_or_give_the_same_model(saved, tmp_path):
    path = written(saved, tmp_path / "model.zip")
    whole, model = path.read_bytes(), load_safely(path)
    generator = random.Random(0)
    damaged = [whole[:n] for n in (1, 100, len(whole) // 3, len(whole) - 30, len(whole) - 1)]
    directory = whole.rindex(b"PK\x01\x02") - 400
    places = [generator.randrange(len(whole)) for _ in range(60)]
    places += [generator.randrange(directory, len(whole)) for _ in range(90)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << generator.randrange(8)
        damaged.append(bytes(flipped))
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            opened = load_safely(path)
        except (InvalidArgument, UnsafeModel) as error:
            assert "model.zip" in str(error)
            refused += 1
        else:
            assert same(model, opened)
    assert len(damaged) // 2 < refused < len(damaged)
