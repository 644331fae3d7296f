"""Models of strangers: what is opened without running anything, and what is refused."""

import base64
import collections
import io
import json
import os
import pickle
import random
import struct
import sys
import zipfile
from pathlib import Path

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_trust import PPO, TRPO, InvalidArgument, PPOPenalty, UnsafeModel, load_safely, safe_archive
from sb3_trust.safe_loading import load_normalization_safely
from sb3_trust.safe_pickle import loads
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


class Evil:
    """Unpickled freely, it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def ran(tmp_path):
    """A path that exists once something was run; nothing may have run by the end of a test."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The members of a saved model."""
    path = tmp_path_factory.mktemp("saved") / "model.zip"
    model_of("box", PPO).learn(128).save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(members, path, **kwargs):
    with zipfile.ZipFile(path, "w", **kwargs) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_entries(members, **entries):
    """The members, with some entries of ``data`` replaced by pickles."""
    data = json.loads(members["data"])
    for name, raw in entries.items():
        data[name] = {":type:": "x", ":serialized:": base64.b64encode(raw).decode()}
    return {**members, "data": json.dumps(data).encode()}


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
    with pytest.raises(InvalidArgument, match="for TRPO, but it holds a PPO's"):
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


def test_generators_go_on_where_they_were(tmp_path):
    model = model_of("box", PPO)
    model.action_space.seed(7)
    model.action_space.sample()
    model.save(tmp_path / "model")
    opened = load_safely(tmp_path / "model")
    np.testing.assert_array_equal(opened.action_space.sample(), model.action_space.sample())
    seeds = [m.action_space.np_random.bit_generator.seed_seq for m in (opened, model)]
    assert seeds[0].entropy == seeds[1].entropy
    np.testing.assert_array_equal(*(s.spawn(1)[0].generate_state(4) for s in seeds))


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


class Reduced:
    """Pickled as a call, with a state."""

    def __init__(self, *reduction):
        self.reduction = reduction

    def __reduce__(self):
        return self.reduction


def raw_array(dtype_state, raw=b"\0" * 8):
    dtype = Reduced(np.dtype, ("f8", False, True), dtype_state)
    return pickle.dumps(
        Reduced(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), dtype, False, raw))
    )


FORGED = {
    "eval": (pickle.dumps(Reduced(eval, ("1",))), "builtins.eval"),
    "getattr": (pickle.dumps(Reduced(getattr, (spaces.Box, "x"))), "builtins.getattr"),
    "a class is called": (pickle.dumps(Reduced(th.nn.ReLU, ())), "calling torch.nn.modules.activation.ReLU"),
    "a class is made": (cloudpickle.dumps(th.nn.ReLU()), "ReLU|torch"),
    "an instance with arguments": (
        b"\x80\x04cstable_baselines3.common.utils\nFloatSchedule\nK\x01\x85\x81.",
        "arguments for",
    ),
    "a class is changed": (
        b"\x80\x04cstable_baselines3.common.buffers\nRolloutBuffer\nN}\x8c\x03addK\x01s\x86b.",
        "setting the state of abc.ABCMeta",
    ),
    "a method is replaced": (
        b"\x80\x04cgymnasium.spaces.box\nBox\n)\x81}\x8c\x06sampleK\x01sb.",
        "replacing the method Box.sample",
    ),
    "a builder is changed": (
        b"\x80\x04ccollections\ndeque\nN}\x8c\x03addK\x01s\x86b.",
        "state of builtins.function",
    ),
    "adding to an instance": (
        b"\x80\x04cgymnasium.spaces.dict\nDict\n)\x81\x8c\x01aK\x01s.",
        "adding to gymnasium.spaces.dict.Dict",
    ),
    "a nested name": (b"\x80\x04\x8c\x05numpy\x8c\x0bdtype.mro\x93.", "numpy.dtype.mro"),
    "a persistent id": (b"\x80\x04K\x01Q.", "opcode b'Q'"),
    "an old instance": (b"\x80\x04(ios\nmkdir\n.", "opcode b'i'"),
    "an array of objects": (pickle.dumps(np.array([None, 1])), "numpy.dtype"),
    "a record": (pickle.dumps(np.zeros(2, "f4,f4")), "numpy.dtype"),
    "a dtype's flags": (raw_array((3, "<", None, None, None, -1, -1, 63)), "state of a dtype"),
    "a dtype's size": (raw_array((3, "<", None, None, None, 2**20, 8, 0)), "state of a dtype"),
    "an array of another size": (
        raw_array((3, "<", None, None, None, -1, -1, 0), b"\0" * 7),
        "state of an array",
    ),
    "another generator": (pickle.dumps(np.random.Generator(np.random.MT19937(1))), "MT19937"),
    "a huge bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b"x.", "cannot be read"),
    "cut short": (pickle.dumps([1, 2, 3])[:-2], "cannot be read"),
    "nothing": (b"", "cannot be read"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_pickles_are_refused(name):
    raw, reason = FORGED[name]
    add, sample = RolloutBuffer.add, spaces.Box.sample
    with pytest.raises(UnsafeModel, match=reason):
        loads(raw)
    assert (RolloutBuffer.add, spaces.Box.sample) == (add, sample)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_data_survives(protocol):
    things = [
        collections.OrderedDict(a=np.arange(6.0).reshape(2, 3), b=np.zeros((0, 2), ">i4")),
        collections.deque([{"r": 1.5}], maxlen=3),
        {1, 2}, frozenset([3]), slice(1, None, 2), np.float32(2.5), np.bool_(True), np.asfortranarray(np.eye(3)),
        spaces.Tuple((spaces.Discrete(3, start=1), spaces.MultiBinary([2, 3]))),
        spaces.Dict(x=spaces.Box(-np.inf, 1.0, (2,)), y=spaces.MultiDiscrete([2, 3])), th.nn.Tanh, bytearray(b"x"),
    ]  # fmt: skip
    if protocol < 5:
        things.pop()  # calls `bytearray`
    for thing in things:
        read = loads(pickle.dumps(thing, protocol=protocol))
        assert type(read) is type(thing) and repr(read) == repr(thing)
    assert loads(pickle.dumps(FloatSchedule(LinearSchedule(1.0, 0.0, 1.0)), protocol))(0.5) == 0.5


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


def normalized(env="Pendulum-v1"):
    normalization = VecNormalize(DummyVecEnv([lambda: gym.make(env)]))
    normalization.seed(1)
    normalization.reset()
    for _ in range(20):
        normalization.step([normalization.action_space.sample()])
    return normalization


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_normalization_is_opened_and_code_in_it_is_not_run(protocol, ran, tmp_path):
    path, normalization = tmp_path / "vecnormalize.pkl", normalized()
    path.write_bytes(pickle.dumps(normalization, protocol=protocol))
    opened = load_normalization_safely(path, normalization.venv)
    observations = np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(*(n.normalize_obs(observations) for n in (opened, normalization)))
    normalization.obs_rms.mean = Evil(ran)
    path.write_bytes(pickle.dumps(normalization, protocol=protocol))
    with pytest.raises(UnsafeModel, match=r"vecnormalize.pkl: refused: posix.mkdir"):
        load_normalization_safely(path, normalization.venv)
    path.write_bytes(pickle.dumps(RunningMeanStd(), protocol=protocol))
    with pytest.raises(UnsafeModel, match="not a VecNormalize"):
        load_normalization_safely(path, normalization.venv)


def test_statistics_are_no_part_of_a_model(saved, tmp_path):
    path = written(with_entries(saved, extra=pickle.dumps(RunningMeanStd())), tmp_path / "model.zip")
    with pytest.raises(UnsafeModel, match="extra: refused: stable_baselines3.common.running_mean_std"):
        load_safely(path)


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
    with pytest.raises(UnsafeModel, match="vecnormalize.pkl: refused: posix.mkdir"):
        enjoy("--algo", "ppo")
    statistics.write_bytes(whole)
    written(with_entries(saved, extra=pickle.dumps(Evil(ran))), folder / "Pendulum-v1.zip")
    with pytest.raises(UnsafeModel, match="extra: refused: posix.mkdir"):
        enjoy("--algo", "ppo")
