"""Every algorithm on every engine meets every fault, and each fault has one outcome."""

from __future__ import annotations

import multiprocessing
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch as th
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_trust import NPG, PPO, REINFORCE, TRPO, PPOPenalty
from sb3_trust.engines.autograd import AutogradEngine
from sb3_trust.engines.closed_form import ClosedFormEngine
from tests.faults import FAULTS, Fault
from tests.worlds import fill, identical, state

GOES_ON = "goes on"
ROLLED_BACK = "rolled back"
BAD_OBSERVATION = (ValueError, r"^environment 1 returned a NaN or infinite observation; training stopped")

# "goes on": the update is made; "rolled back": it is undone, counted and logged; else the error
OUTCOMES: dict[str, str | tuple[type[Exception], str]] = {
    "NaN reward": ROLLED_BACK,
    "infinite reward": ROLLED_BACK,
    "NaN observation": BAD_OBSERVATION,
    "infinite observation": BAD_OBSERVATION,
    "NaN advantage": ROLLED_BACK,
    "infinite advantage": ROLLED_BACK,
    "NaN log-prob": ROLLED_BACK,
    "infinite log-prob": ROLLED_BACK,
    "NaN gradient": ROLLED_BACK,
    "infinite gradient": ROLLED_BACK,
    "probability underflow": GOES_ON,
    # a square of sigma that float32 cannot hold
    "sigma of 1e-20": ROLLED_BACK,
    "sigma of 1e20": ROLLED_BACK,
    "cloned policy": GOES_ON,
    "rewards all zero": GOES_ON,
    "rewards of 1e8": GOES_ON,
    # a squared error that float32 cannot hold
    "rewards of 1e25": ROLLED_BACK,
    "observation of 3e38": GOES_ON,
    "environment raises": (OSError, r"^the simulator lost its licence$"),
    "environment hangs up": (EOFError, r"process of an environment ended"),
    "mixed observation types": GOES_ON,
}
ENGINES = {"autograd": AutogradEngine, "closed_form": ClosedFormEngine}
LIMIT = 20  # seconds; a fault is never to be waited for


@pytest.fixture(scope="module", autouse=True)
def quick_workers() -> None:
    """Processes of environments are forked from one that has the imports behind it."""
    multiprocessing.set_forkserver_preload(["torch", "stable_baselines3"])


@contextmanager
def time_limit() -> Iterator[None]:
    """A hang is a failure."""

    def end(*_: Any) -> None:
        pytest.fail(f"no outcome within {LIMIT} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def finite(model: Any) -> bool:
    """Whether weights, buffers and optimizer state are."""
    return all(bool(th.isfinite(tensor).all()) for tensor in state(model))


def suffer(model: Any, fault: Fault) -> None:
    """A rollout and an update under the fault."""
    fill(model)
    if fault.rollout is not None:
        fault.rollout(model.rollout_buffer)
    model.train()


def close(env: Any) -> None:
    """SB3's own ``close`` waits for a process that has ended."""
    if isinstance(env, SubprocVecEnv):
        for process in env.processes:
            process.terminate()
            process.join()
        env.closed = True
    env.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("algorithm", [REINFORCE, NPG, TRPO, PPO, PPOPenalty])
@pytest.mark.parametrize("name", OUTCOMES)
def test_a_fault_has_the_outcome_of_the_table(name, algorithm, engine):
    fault, outcome = FAULTS[name], OUTCOMES[name]
    with time_limit():
        model = fault.model(algorithm, engine)
        fill(model).train()  # the optimizer has a state to lose
        assert type(model._policy_engine()) is ENGINES[engine]
        weights = {key: value.clone() for key, value in model.policy.state_dict().items()}
        env = model.env
        fault.switch(model, True)
        if fault.policy is not None:
            with th.no_grad():
                fault.policy(model.policy)
        before, n_updates = state(model), model._n_updates
        try:
            with pytest.MonkeyPatch.context() as patch:
                fault.patch(patch)
                meet(model, fault, outcome, before, n_updates)
        finally:
            close(env)
        assert finite(model)
        if fault.policy is not None and outcome != GOES_ON:
            model.policy.load_state_dict(weights)
        recover(model, fault)


def meet(model: Any, fault: Fault, outcome: Any, before: list[th.Tensor], n_updates: int) -> None:
    """The update under the fault comes out as the table says."""
    if outcome == GOES_ON:
        suffer(model, fault)
        assert not identical(before, state(model)) and model._n_updates > n_updates
        assert model.n_rollbacks == 0 and model.last_update.rollback_reason == ""
        if isinstance(model, TRPO):
            assert model.last_update.kl <= model.target_kl
    elif outcome == ROLLED_BACK:
        with pytest.warns(RuntimeWarning, match="update rolled back"):
            suffer(model, fault)
        assert identical(before, state(model)) and model._n_updates == n_updates
        assert model.n_rollbacks == 1 and model.last_update.rollback_reason
        assert model.logger.name_to_value["train/rollbacks"] == 1
        assert model.logger.name_to_value["train/rollback_reason"] == model.last_update.rollback_reason
    else:
        kind, message = outcome
        with pytest.raises(kind) as error:
            suffer(model, fault)
        assert re.search(message, str(error.value)), f"unclear: {error.value!r}"
        assert identical(before, state(model)) and model._n_updates == n_updates
        assert model.n_rollbacks == 0


def recover(model: Any, fault: Fault) -> None:
    """The next good rollout trains."""
    rollbacks, before = model.n_rollbacks, state(model)
    model.set_env(Fault(fault.kind).environment())
    fill(model).train()
    assert model.n_rollbacks == rollbacks and model.last_update.rollback_reason == ""
    assert model.logger.name_to_value["train/rollbacks"] == rollbacks
    assert not identical(before, state(model)) and finite(model)


def test_every_fault_is_in_the_table():
    assert set(OUTCOMES) == set(FAULTS)
