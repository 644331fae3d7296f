"""How many threads small networks are computed on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch as th
from threadpoolctl import ThreadpoolController

# torch's default, the number of cores
AT_IMPORT = th.get_num_threads()
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def chosen_by_user() -> bool:
    """
    Whether somebody has said how many threads to use: by an environment variable, or by
    ``torch.set_num_threads`` since this package was imported.
    """
    if any(os.environ.get(name) for name in VARIABLES):
        return True
    return th.get_num_threads() != AT_IMPORT


@contextmanager
def one_thread() -> Iterator[None]:
    """
    Compute on one thread, torch's and the BLAS of NumPy's: matrices of a few thousand entries take longer to
    be handed out than to be multiplied. What the user has chosen stays.
    """
    before = th.get_num_threads()
    if (before > 1 and chosen_by_user()) or any(os.environ.get(name) for name in VARIABLES):
        yield
        return
    th.set_num_threads(1)
    try:
        with _controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        th.set_num_threads(before)
