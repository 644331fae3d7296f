"""Signals that end a run of training."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# a signal sent to a group of processes, and to each of them too, comes twice
SAME_REQUEST = 1.0


class Interruption:
    """
    Ends training at SIGINT (Ctrl-C) or SIGTERM by a ``KeyboardInterrupt``. What comes after training is not
    broken off by a signal, so that the model is saved.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._last = 0.0
        self._raises = False
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int | None:
        """128 and the signal's number, as shells have it; ``None``: no signal has come."""
        return None if self.signal is None else 128 + self.signal

    def watch(self) -> None:
        """Note signals from now on, where they can be: in the main thread."""
        if not self._before and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def unwatch(self) -> None:
        """Let signals do what they did before."""
        while self._before:
            signal.signal(*self._before.popitem())

    @contextmanager
    def raised(self) -> Iterator[None]:
        """A signal within the block, or noted before it, ends it by a ``KeyboardInterrupt``."""
        self._raises = True
        try:
            if self.signal is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.signal is not None and time.monotonic() - self._last < SAME_REQUEST
        self.signal, self._last = self.signal or number, time.monotonic()
        # a second one would break off the undoing of an update; but the first may have been raised where
        # Python drops exceptions, in a finalizer
        if self._raises and not again:
            raise KeyboardInterrupt
