"""The number of threads during a rollout and an update, and after."""

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from threadpoolctl import threadpool_info

from sb3_trust import PPO
from sb3_trust.engines import threads
from tests.worlds import model_of


class Threads(BaseCallback):
    """Looks at the threads in a rollout."""

    def _on_step(self):
        self.torch = th.get_num_threads()
        self.blas = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
        return True


@pytest.fixture
def unset(monkeypatch):
    """Nobody has chosen, on a machine of four cores; what the process had before is put back."""
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "AT_IMPORT", 4)
    before = th.get_num_threads()
    th.set_num_threads(4)
    yield
    th.set_num_threads(before)


def seen(**kwargs):
    callback = Threads()
    model_of("box", PPO, **kwargs).learn(128, callback)
    return callback


def test_small_networks_are_computed_on_one_thread_and_what_was_is_put_back(unset):
    callback = seen()
    assert callback.torch == 1 and callback.blas == {1}
    assert th.get_num_threads() == 4


def test_the_reference_engine_keeps_the_threads(unset):
    assert seen(engine="autograd").torch == 4


def test_a_number_set_by_the_user_stays(unset):
    th.set_num_threads(3)
    assert seen().torch == 3 and th.get_num_threads() == 3


@pytest.mark.parametrize("name", threads.VARIABLES)
def test_an_environment_variable_stays(unset, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    assert seen().torch == 4


def test_an_error_puts_the_threads_back(unset):
    class Broken(BaseCallback):
        def _on_step(self):
            raise KeyError

    with pytest.raises(KeyError):
        model_of("box", PPO).learn(128, Broken())
    assert th.get_num_threads() == 4
