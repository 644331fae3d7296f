"""What sb3_trust raises for a bad argument, and the checks that raise it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from numbers import Integral, Real
from typing import Any

# no setting is larger; what is, overflows somewhere
MAX_INTEGER, MAX_NUMBER = 2**31 - 1, 1e18


class InvalidArgument(ValueError, AssertionError):
    """
    An argument has a value that cannot work.

    It is an ``AssertionError`` too, because Stable-Baselines3 signals bad arguments with assertions
    and code written for it catches those.
    """


def reject(name: str, value: Any, allowed: str) -> InvalidArgument:
    """The error that names an argument, the value it was given and what it may be."""
    return InvalidArgument(f"`{name}` must be {allowed}, but got {value!r}")


def check_integer(name: str, value: Any, minimum: int, maximum: int = MAX_INTEGER) -> None:
    """
    :raises InvalidArgument: unless ``value`` is an integer (NumPy's included, bool not) within the bounds
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise reject(name, value, f"an integer >= {minimum}")
    if int(value) > maximum:
        raise reject(name, value, f"an integer in [{minimum}, {maximum}]")


def is_number(value: Any) -> bool:
    """
    Whether ``value`` is a real number that is not NaN and, unless infinite, of a size that a float32 is
    certain to hold; a bool is not a number here.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        size = abs(float(value))
    except OverflowError:
        return False
    return size <= MAX_NUMBER or size == math.inf


def plain_number(value: Any) -> Any:
    """A number of NumPy's or another library's as Python's own; anything else as it is."""
    if isinstance(value, (bool, int, float)) and type(value) in (bool, int, float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if is_number(value) else value


def check_number(
    name: str,
    value: Any,
    minimum: float = 0.0,
    maximum: float = math.inf,
    *,
    open_minimum: bool = False,
    allow_infinity: bool = False,
) -> None:
    """
    :param open_minimum: the minimum itself is not allowed
    :param allow_infinity: ``math.inf`` is allowed
    :raises InvalidArgument: unless ``value`` is a number within the bounds
    """
    fits = is_number(value) and minimum <= value <= maximum
    fits = fits and not (open_minimum and value == minimum) and (allow_infinity or not math.isinf(value))
    if not fits:
        if maximum < math.inf:
            allowed = f"a number in {'(' if open_minimum else '['}{minimum:g}, {maximum:g}]"
        else:
            allowed = (
                f"a{' ' if allow_infinity else ' finite '}number {'>' if open_minimum else '>='} {minimum:g}"
            )
        real = isinstance(value, Real) and not isinstance(value, bool)
        too_large = real and value == value and not is_number(value)
        raise reject(name, value, f"{allowed}, and at most {MAX_NUMBER:g}" if too_large else allowed)


def check_number_or_schedule(name: str, value: Any, **bounds: Any) -> None:
    """
    :raises InvalidArgument: unless ``value`` is a function of the remaining progress that returns a number,
        or passes :func:`check_number`
    """
    if callable(value):
        try:
            fits = is_number(value(1.0))
        except Exception as error:
            raise reject(name, value, f"a number or a function that takes a number ({error})") from error
        if not fits:
            raise reject(name, value, "a number or a function that returns one")
        return
    try:
        check_number(name, value, **bounds)
    except InvalidArgument as error:
        raise InvalidArgument(f"{error} (a function of the remaining progress is allowed too)") from None


def check_optional(check: Callable[..., None], name: str, value: Any, *args: Any, **kwargs: Any) -> None:
    """
    :raises InvalidArgument: unless ``value`` is ``None`` or passes ``check``
    """
    if value is None:
        return
    try:
        check(name, value, *args, **kwargs)
    except InvalidArgument as error:
        raise InvalidArgument(f"{error} (`None` is allowed too)") from None


def check_boolean(name: str, value: Any) -> None:
    """
    :raises InvalidArgument: unless ``value`` is a bool
    """
    if not isinstance(value, bool):
        raise reject(name, value, "True or False")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """
    :raises InvalidArgument: unless ``value`` is one of ``choices``
    """
    if not isinstance(value, str) or value not in choices:
        raise reject(name, value, "one of " + ", ".join(repr(choice) for choice in choices))


class UnsafeModel(ValueError):
    """A file holds what may not be built from it, as building it could run its author's code."""
