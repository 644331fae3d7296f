"""Pickles of strangers: what is built from them, and what is refused."""

import collections
import pickle
import struct

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

from sb3_trust import UnsafeModel, load_safely
from sb3_trust.safe_loading import load_normalization_safely
from sb3_trust.safe_pickle import loads
from tests.strangers import Evil, Reduced, normalized, with_entries, written


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
        "setting the state of stable_baselines3.common.buffers.RolloutBuffer",
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
    "a nested name": (b"\x80\x04\x8c\x05numpy\x8c\x09dtype.mro\x93.", "numpy.dtype.mro"),
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
        collections.OrderedDict(a=np.arange(6.0).reshape(2, 3), b=np.zeros((0, 2), "i4")),
        collections.deque([{"r": 1.5}], maxlen=3),
        {1, 2}, frozenset([3]), slice(1, None, 2), np.float32(2.5), np.bool_(True),
        np.asfortranarray(np.eye(3)), np.ones((2, 2), ">i4"),
        spaces.Tuple((spaces.Discrete(3, start=1), spaces.MultiBinary([2, 3]))),
        spaces.Dict(x=spaces.Box(-np.inf, 1.0, (2,)), y=spaces.MultiDiscrete([2, 3])), th.nn.Tanh,
        bytearray(b"x"),
    ]  # fmt: skip
    if protocol < 5:
        things.pop()  # calls `bytearray`
    for thing in things:
        raw = pickle.dumps(thing, protocol=protocol)
        read, freely = loads(raw), pickle.loads(raw)
        assert type(read) is type(freely) and repr(read) == repr(freely)
    assert loads(pickle.dumps(FloatSchedule(LinearSchedule(1.0, 0.0, 1.0)), protocol))(0.5) == 0.5


@pytest.mark.parametrize("protocol", [3, 5])
def test_generators_go_on_where_they_were(protocol):
    space = spaces.Box(-1.0, 1.0, (3,))
    space.seed(7)
    space.sample()
    opened = loads(pickle.dumps(space, protocol))
    np.testing.assert_array_equal(opened.sample(), space.sample())
    seeds = [s.np_random.bit_generator.seed_seq for s in (opened, space)]
    assert seeds[0].entropy == seeds[1].entropy == 7
    np.testing.assert_array_equal(*(seed.spawn(1)[0].generate_state(4) for seed in seeds))
    # as NumPy wrote it before 1.26: by the name of the bit generator, then its state
    state = space.np_random.bit_generator.state
    old = Reduced(
        np.random._pickle.__generator_ctor, ("PCG64", np.random._pickle.__bit_generator_ctor), state
    )
    assert loads(pickle.dumps(old, protocol)).random() == space.np_random.random()


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
    with pytest.raises(UnsafeModel, match=r"extra: refused: stable_baselines3.common.running_mean_std"):
        load_safely(path)
