"""The states of all random generators that training draws from, as JSON can hold them."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

RandomStates = dict[str, Any]


def capture(action_spaces: Iterable[spaces.Space]) -> RandomStates:
    """
    The states of Python's, NumPy's and torch's global generators, those of CUDA devices in use included, and
    of the generators of action spaces.
    """
    version, words, gauss = random.getstate()
    states: RandomStates = {
        "python": [version, _text(np.array(words, np.uint32)), gauss],
        "numpy": _as_json(np.random.get_state(legacy=False)),
        "torch": _text(th.get_rng_state().numpy()),
        "action_spaces": [_as_json(space.np_random.bit_generator.state) for space in action_spaces],
    }
    if th.cuda.is_available() and th.cuda.is_initialized():
        states["cuda"] = [_text(state.numpy()) for state in th.cuda.get_rng_state_all()]
    return states


def restore(states: RandomStates, action_spaces: Iterable[spaces.Space]) -> None:
    """
    Put all generators back to where they were when :func:`capture` made ``states``.

    :param action_spaces: as many as there were, or fewer
    """
    version, words, gauss = states["python"]
    random.setstate((version, tuple(_array(words, np.uint32).tolist()), gauss))
    np.random.set_state(_from_json(states["numpy"]))
    th.set_rng_state(th.from_numpy(_array(states["torch"], np.uint8)))
    for space, state in zip(action_spaces, states["action_spaces"], strict=False):
        space.np_random.bit_generator.state = _from_json(state)
    if th.cuda.is_available():
        # a model that was trained on more devices than there are here goes on with those that there are
        for device, state in zip(range(th.cuda.device_count()), states.get("cuda", ()), strict=False):
            th.cuda.set_rng_state(th.from_numpy(_array(state, np.uint8)), device)


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def _array(text: str, dtype: Any) -> np.ndarray:
    stored = np.frombuffer(base64.b64decode(text), np.dtype(dtype).newbyteorder("<"))
    return stored.astype(dtype)  # a copy, which may be written to


def _as_json(state: Any) -> Any:
    """A bit generator's state, its arrays as text; which arrays there are depends on the generator."""
    if isinstance(state, dict):
        return {key: _as_json(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return {"dtype": state.dtype.name, "base64": _text(state)}
    return state.item() if isinstance(state, np.generic) else state


def _from_json(state: Any) -> Any:
    if not isinstance(state, dict):
        return state
    if set(state) == {"dtype", "base64"}:
        return _array(state["base64"], np.dtype(state["dtype"]))
    return {key: _from_json(value) for key, value in state.items()}
