"""
What a saved model's pickles may name, what happens when they call it, and which state they may set.

Classes are only named, or made instances of without a constructor. What is called are functions of ours that
check their arguments, in the place of NumPy's too: given a forged type or size, those read memory elsewhere.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sb3_trust.errors import UnsafeModel

Names = Mapping[str, frozenset[str]]  # module -> names in it


def _names(**modules: str) -> Names:
    return {module.replace("__", "."): frozenset(names.split()) for module, names in modules.items()}


# classes that may be named, and neither called nor changed
REFERENCES = _names(
    torch__nn__modules__activation="CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU "
    "LogSigmoid Mish ReLU ReLU6 SELU SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink",
    torch__nn__modules__linear="Identity",
    torch__optim__adadelta="Adadelta",
    torch__optim__adagrad="Adagrad",
    torch__optim__adam="Adam",
    torch__optim__adamax="Adamax",
    torch__optim__adamw="AdamW",
    torch__optim__nadam="NAdam",
    torch__optim__radam="RAdam",
    torch__optim__rmsprop="RMSprop",
    torch__optim__sgd="SGD",
    stable_baselines3__common__sb2_compat__rmsprop_tf_like="RMSpropTFLike",
    stable_baselines3__common__policies="ActorCriticPolicy ActorCriticCnnPolicy MultiInputActorCriticPolicy",
    stable_baselines3__common__torch_layers="CombinedExtractor FlattenExtractor NatureCNN",
    stable_baselines3__common__buffers="DictRolloutBuffer RolloutBuffer",
)
# classes of which instances may be built: no constructor runs, attributes that are no methods are set
INSTANCES = _names(
    gymnasium__spaces__box="Box",
    gymnasium__spaces__dict="Dict",
    gymnasium__spaces__discrete="Discrete",
    gymnasium__spaces__multi_binary="MultiBinary",
    gymnasium__spaces__multi_discrete="MultiDiscrete",
    gymnasium__spaces__tuple="Tuple",
    stable_baselines3__common__utils="ConstantSchedule FloatSchedule LinearSchedule",
    rl_zoo3__utils="SimpleLinearSchedule",
)
NORMALIZATION = {
    **INSTANCES,
    **_names(
        stable_baselines3__common__running_mean_std="RunningMeanStd",
        stable_baselines3__common__vec_env__vec_normalize="VecNormalize",
    ),
}
# named by NumPy's pickles to say what to build: the builders get the name instead
MARKERS = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy.random._pcg64", "PCG64"): "PCG64",
    ("numpy.random.bit_generator", "SeedSequence"): "SeedSequence",
}


def require(condition: Any, what: str) -> None:
    """
    :raises UnsafeModel: that names what was refused, unless the condition holds
    """
    if not condition:
        raise UnsafeModel(what)


def is_listed(kind: Any, names: Names) -> bool:
    """Whether something is a class, and one of those listed."""
    return isinstance(kind, type) and kind.__qualname__ in names.get(kind.__module__, ())


def described(thing: Any) -> str:
    """The name of a class, or that of an object's class; the object itself is not asked."""
    kind = thing if isinstance(thing, type) else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"


def _integers(values: Any) -> bool:
    return type(values) in (tuple, list) and all(type(value) is int for value in values)


# ---- what may be called ----------------------------------------------------------------------------------


def _is_numeric(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and dtype.kind in "biufc"


def _dtype(name: Any, *_: Any) -> np.dtype:
    require(type(name) is str and len(name) < 5, f"numpy.dtype({name!r})")
    dtype = np.dtype(name, copy=True)  # a copy: its byte order is set afterwards
    # an array of objects or records could be given bytes to take for pointers
    require(_is_numeric(dtype), f"numpy.dtype({name!r})")
    return dtype


def _array_of_buffer(buffer: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    require(isinstance(buffer, (bytes, bytearray)) and _is_numeric(dtype), "an array that is not of numbers")
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _empty_array(kind: Any, *_: Any) -> np.ndarray:
    require(type(kind) is str and kind == "ndarray", "a subclass of numpy.ndarray")
    return np.empty(0)


def _scalar(dtype: Any, raw: Any) -> Any:
    require(_is_numeric(dtype) and type(raw) is bytes and len(raw) == dtype.itemsize, "numpy scalar")
    return np.frombuffer(raw, dtype=dtype)[0]


def _bit_generator(kind: Any = None) -> np.random.PCG64:
    require(type(kind) is str and kind == "PCG64", "a bit generator other than PCG64")
    return np.random.PCG64(0)


def _generator(bit_generator: Any = None, *_: Any) -> np.random.Generator:
    if type(bit_generator) is not np.random.PCG64:  # before NumPy 1.26: its name, and how to build it
        bit_generator = _bit_generator(bit_generator)
    return np.random.Generator(bit_generator)


def _seed_sequence(kind: Any, _checksum: Any, state: Any = None) -> np.random.SeedSequence:
    require(type(kind) is str and kind == "SeedSequence" and state is None, "numpy.random.SeedSequence")
    return np.random.SeedSequence(0)


def _ordered_dict() -> OrderedDict:
    return OrderedDict()


def _deque(items: Any = (), maxlen: Any = None) -> deque:
    return deque(items, maxlen)


def _set(items: Any = ()) -> set:
    return set(items)


def _frozenset(items: Any = ()) -> frozenset:
    return frozenset(items)


def _slice(*limits: Any) -> slice:
    return slice(*limits)


BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _dtype,
    **{  # the private package was renamed in NumPy 2
        (f"numpy.{core}.{module}", name): builder
        for core in ("core", "_core")
        for module, name, builder in (
            ("multiarray", "_reconstruct", _empty_array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _array_of_buffer),
        )
    },
    ("numpy.random._pickle", "__bit_generator_ctor"): _bit_generator,
    ("numpy.random._pickle", "__generator_ctor"): _generator,
    ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"): _seed_sequence,
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "deque"): _deque,
    ("builtins", "set"): _set,
    ("builtins", "frozenset"): _frozenset,
    ("builtins", "slice"): _slice,
}


# ---- what state may be set -------------------------------------------------------------------------------


def _check_generator_state(state: Any) -> None:
    require(
        type(state) is dict
        and {"bit_generator", "state", "has_uint32", "uinteger"} == state.keys()
        and type(state["state"]) is dict
        and {"state", "inc"} == state["state"].keys()
        and _integers([*state["state"].values(), state["has_uint32"], state["uinteger"]]),
        "the state of a random generator",
    )


def _check_seed_state(state: Any) -> None:
    require(type(state) is tuple and len(state) == 5, "the state of a SeedSequence")
    entropy, n_children, pool, pool_size, spawn_key = state
    require(type(entropy) is int or _integers(entropy), "the entropy of a SeedSequence")
    require(_integers([n_children, pool_size]) and _integers(spawn_key), "the state of a SeedSequence")
    require(type(pool) is np.ndarray and pool.dtype == np.uint32, "the pool of a SeedSequence")
    require(pool.shape == (pool_size,) and pool_size >= 4, "the pool of a SeedSequence")


def set_state(target: Any, state: Any, instances: Names) -> None:
    """
    Set the state of an object that a pickle has built.

    :param instances: the classes of which instances may be built
    :raises UnsafeModel: for any other object, or a state that could not have been saved
    """
    if isinstance(target, np.dtype):
        # nothing but the byte order: flags and sizes would let an array read elsewhere
        plain = type(state) is tuple and len(state) == 8 and state[2:] == (None, None, None, -1, -1, 0)
        require(plain and state[0] in (3, 4) and state[1] in ("<", ">", "|", "="), "the state of a dtype")
        target.__setstate__(state)  # type: ignore[attr-defined]
    elif type(target) is np.ndarray:
        require(target.size == 0 and type(state) is tuple and len(state) == 5, "the state of an array")
        _, shape, dtype, _, raw = state
        require(type(shape) is tuple and _integers(shape) and _is_numeric(dtype), "the state of an array")
        fits = type(raw) is bytes and min(shape, default=0) >= 0
        require(fits and math.prod(shape) * dtype.itemsize == len(raw), "the state of an array")
        target.__setstate__(state)
    elif type(target) is np.random.SeedSequence:
        _check_seed_state(state)
        target.__setstate_cython__(state)  # type: ignore[attr-defined]
    elif type(target) is np.random.PCG64:
        if type(state) is tuple:
            require(len(state) == 2 and type(state[1]) is np.random.SeedSequence, "the state of a PCG64")
            _check_generator_state(state[0])
        else:
            _check_generator_state(state)
        target.__setstate__(state)  # type: ignore[attr-defined]
    elif type(target) is np.random.Generator:
        _check_generator_state(state)
        target.bit_generator.state = state
    else:
        require(is_listed(type(target), instances), f"setting the state of {described(target)}")
        require(type(state) is dict and all(type(name) is str for name in state), "the state of an object")
        for name in state:
            method = callable(getattr(type(target), name, None))
            require(not method, f"replacing the method {type(target).__name__}.{name}")
        if hasattr(type(target), "__setstate__"):
            target.__setstate__(state)
        else:
            target.__dict__.update(state)
