"""Values of a stranger's run as short text: whatever they are, the text stays short."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_TEXT = 400  # characters of a value
MAX_ITEMS = 16  # of a list, a set or a dict
MAX_DEPTH = 3


def shown(value: Any, depth: int = MAX_DEPTH) -> str:
    """
    A value of plain data in a line. What is nested too deep or too long is cut: YAML's aliases make lists
    that hold themselves, and short files whose ``repr`` would fill the memory.
    """
    if isinstance(value, str):
        text = value
    elif isinstance(value, float):
        text = number(value) if math.isfinite(value) else str(value)
    elif isinstance(value, (list, tuple, set, Mapping)):
        text = _container(value, depth)
    elif value is None or isinstance(value, (bool, bytes)):
        text = str(value)
    elif isinstance(value, int):
        # Python refuses to print integers of very many digits
        text = str(value) if value.bit_length() < 4096 else "an integer of very many digits"
    else:  # a date, or what else YAML knows
        text = str(value)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "…"


def _container(value: Any, depth: int) -> str:
    opening, closing = (
        "{}" if isinstance(value, (Mapping, set)) else "()" if isinstance(value, tuple) else "[]"
    )
    if depth == 0 and value:
        return f"{opening}…{closing}"
    parts = []
    for i, item in enumerate(value):
        if i == MAX_ITEMS:
            parts.append("…")
            break
        text = shown(item, depth - 1)
        if isinstance(value, Mapping):
            text += f": {shown(value[item], depth - 1)}"
        parts.append(text)
    return opening + ", ".join(parts) + closing


def number(value: float) -> str:
    """A number with four significant digits, or ``-`` for NaN."""
    if math.isnan(value):
        return "-"
    if abs(value) < 1e15 and value == round(value):
        return str(round(value))
    return f"{value:.4g}"


def count(value: int, noun: str) -> str:
    """``1 update``, ``2,000 updates``."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"
