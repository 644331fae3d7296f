"""Numbers that may change with the progress of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sb3_trust.errors import InvalidArgument, check_number, check_number_or_schedule, reject

Schedule = Callable[[float], float]


def parse_linear(name: str, value: str) -> float:
    """
    The start value of a string such as "lin_0.02": a linear schedule from there to zero, in the Zoo's
    notation.

    :raises InvalidArgument: for any other string, or a start value that is not a positive number
    """
    prefix, _, number = value.partition("_")
    try:
        start = float(number)
    except ValueError:
        start = float("nan")
    if prefix != "lin":
        raise reject(
            name, value, 'a number, a function of the remaining progress or a string such as "lin_0.02"'
        )
    try:
        check_number(name, start, open_minimum=True)
    except InvalidArgument:
        raise reject(name, value, 'such that a positive number follows "lin_", as in "lin_0.02"') from None
    return start


def value_at(name: str, schedule: float | str | Schedule, progress_remaining: float) -> float:
    """
    The value of a number, schedule or "lin_x" at a point of training.

    :param name: the argument's name, for the error message
    :param progress_remaining: 1 at the start of training, 0 at its end
    :raises ValueError: when a schedule returns something that is not a finite number >= 0
    """
    value: Any
    if isinstance(schedule, str):
        value = parse_linear(name, schedule) * progress_remaining
    elif callable(schedule):
        value = schedule(progress_remaining)
    else:
        value = schedule
    value = float(value)
    if not 0.0 <= value < float("inf"):
        raise ValueError(
            f"the schedule `{name}` returned {value} at remaining progress {progress_remaining:g}"
        )
    return value


def check_target(name: str, value: Any) -> None:
    """
    :raises InvalidArgument: unless ``value`` is a positive number, callable, or a string such as "lin_0.02"
    """
    if isinstance(value, str):
        parse_linear(name, value)
        return
    try:
        check_number_or_schedule(name, value, open_minimum=True)
    except InvalidArgument as error:
        raise InvalidArgument(f'{error}, or a string such as "lin_0.02"') from None
