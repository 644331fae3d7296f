"""
Unpickling that builds data and calls nothing that a file names.

A pickle is a program. This one is interpreted by Python's own unpickler with four restrictions: it may use
only the opcodes in ``OPCODES`` and only the globals in :mod:`sb3_trust.safe_globals`, call only the builders
there, and set the state only of what it has built, never that of a class or a function.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict, deque
from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

from sb3_trust.errors import UnsafeModel
from sb3_trust.safe_globals import (
    BUILDERS,
    INSTANCES,
    MARKERS,
    REFERENCES,
    Names,
    described,
    is_listed,
    require,
    set_state,
)

# what pickle writes for data since protocol 3; no persistent ids, no extension codes, no old instances
OPCODE_NAMES = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS EMPTY_SET
    ADDITEMS FROZENSET BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD
"""
OPCODES = [getattr(pickle, name)[0] for name in OPCODE_NAMES.split()]


class _Opcodes(dict):
    """What each opcode does."""

    def __missing__(self, code: int) -> Any:
        raise UnsafeModel(f"the opcode {bytes([code])!r}")


class _RestrictedUnpickler(pickle._Unpickler):
    # of Python's unpickler, which does not declare them
    stack: list[Any]
    metastack: list[list[Any]]
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = _Opcodes(
        {code: pickle._Unpickler.dispatch[code] for code in OPCODES}
    )

    def __init__(self, raw: bytes, instances: Names) -> None:
        super().__init__(io.BytesIO(raw))
        self.instances = instances

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in MARKERS:
            return MARKERS[module, name]
        if (module, name) in BUILDERS:
            return BUILDERS[module, name]
        listed = name in REFERENCES.get(module, ()) or name in self.instances.get(module, ())
        require(listed, f"{module}.{name}")
        return getattr(import_module(module), name)

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        called = any(function is builder for builder in BUILDERS.values())
        require(called and type(arguments) is tuple, f"calling {described(function)}")
        self.stack[-1] = function(*arguments)

    def _new_object(self) -> None:
        arguments = self.stack.pop()
        kind = self.stack.pop()
        require(is_listed(kind, self.instances), f"an instance of {described(kind)}")
        require(arguments == (), f"arguments for {described(kind)}")
        self.stack.append(kind.__new__(kind))

    def _build(self) -> None:
        state = self.stack.pop()
        set_state(self.stack[-1], state, self.instances)

    def _bytearray(self) -> None:
        # Python's own allocates what the file claims before it looks whether that is there
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _new_object
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray


def _into(opcode: bytes, kinds: tuple[type, ...], depth: int | None) -> None:
    """Let an opcode add to built-in containers only; ``depth`` of the container, ``None``: below the mark."""
    own = pickle._Unpickler.dispatch[opcode[0]]

    def checked(unpickler: Any) -> None:
        container = unpickler.metastack[-1][-1] if depth is None else unpickler.stack[-depth]
        require(type(container) in kinds, f"adding to {described(container)}")
        own(unpickler)

    _RestrictedUnpickler.dispatch[opcode[0]] = checked


_into(pickle.APPEND, (list, deque), 2)
_into(pickle.APPENDS, (list, deque), None)
_into(pickle.SETITEM, (dict, OrderedDict), 3)
_into(pickle.SETITEMS, (dict, OrderedDict), None)
_into(pickle.ADDITEMS, (set,), None)


def loads(raw: bytes, instances: Names = INSTANCES) -> Any:
    """
    Unpickle data.

    :param instances: the classes of which instances may be built
    :raises UnsafeModel: with the global or the operation that was refused, or for a damaged pickle
    """
    try:
        return _RestrictedUnpickler(raw, instances).load()
    except UnsafeModel:
        raise
    except Exception as error:  # a damaged pickle can make the unpickler raise anything
        raise UnsafeModel(f"a pickle that cannot be read ({type(error).__name__}: {error})") from error
