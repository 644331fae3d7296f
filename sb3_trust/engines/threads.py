"""How many threads small networks are computed on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch as th
from threadpoolctl import ThreadpoolController

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def chosen_by_user() -> bool:
    """
    Whether somebody has said how many threads to use: by an environment variable, or by
    ``torch.set_num_threads`` with a number that is not torch's default, the number of cores.
    """
    if any(os.environ.get(name) for name in VARIABLES):
        return True
    cores = os.cpu_count() or 1
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    # with two threads a core torch takes the cores
    return th.get_num_threads() not in (cores, cores // 2, available, available // 2)


@contextmanager
def one_thread() -> Iterator[None]:
    """
    Compute on one thread, torch's and the BLAS of NumPy's: matrices of a few thousand entries take longer to
    be handed out than to be multiplied. What the user has chosen stays.
    """
    before = th.get_num_threads()
    if before == 1 or chosen_by_user():
        yield
        return
    th.set_num_threads(1)
    try:
        with _controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        th.set_num_threads(before)
