"""Which engine serves which policy, and when that is looked at anew."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_trust import PPO, TRPO
from sb3_trust.engines.autograd import AutogradEngine
from sb3_trust.engines.choice import choose_engine
from sb3_trust.engines.closed_form import ClosedFormEngine
from sb3_trust.engines.closed_form_stepper import ClosedFormStepper
from sb3_trust.engines.torch_stepper import TorchStepper
from sb3_trust.errors import InvalidArgument
from tests.twins import ACTIVATIONS, ARCHITECTURES
from tests.worlds import ACTION_SPACES, CLOSED_FORM_KINDS, KINDS, PERCEPTRONS, VECTOR, fill, model_of


def fresh(kind=ActorCriticPolicy, observation_space=VECTOR, action_space=ACTION_SPACES["box"], **kwargs):
    kwargs = {"net_arch": [8, 8], **kwargs}
    return kind(observation_space, action_space, lambda _: 1e-3, **kwargs)


@pytest.mark.parametrize("kind", [*PERCEPTRONS, *KINDS])
def test_auto_takes_the_closed_form_for_perceptrons(kind):
    model = model_of(kind, PPO, n_steps=32)
    served = kind in PERCEPTRONS
    assert isinstance(model._policy_engine(), ClosedFormEngine if served else AutogradEngine)
    assert served == (kind in CLOSED_FORM_KINDS) or kind not in KINDS
    assert isinstance(choose_engine(model.policy, "autograd", None), AutogradEngine)


@pytest.mark.parametrize("kwargs", [
    *({"net_arch": architecture} for architecture in ARCHITECTURES.values()),
    *({"activation_fn": activation} for activation in ACTIVATIONS.values()),
    {"share_features_extractor": False},
    {"ortho_init": False, "log_std_init": -1.0},
    {"optimizer_kwargs": {"weight_decay": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}},
])  # fmt: skip
def test_auto_takes_the_closed_form_whatever_shape_and_options(kwargs):
    assert type(choose_engine(fresh(**kwargs), "auto", None)) is ClosedFormEngine


def test_a_subclass_that_only_builds_itself_otherwise_is_taken():
    class Small(ActorCriticPolicy):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **{**kwargs, "net_arch": [4]})

        def a_method_of_its_own(self):
            return 1

    assert type(choose_engine(fresh(Small), "auto", None)) is ClosedFormEngine


def nothing(*_):
    return None


@pytest.mark.parametrize("kind", ["dict", "cnn", "gsde"])
def test_a_model_that_cannot_be_served_is_refused_at_construction(kind):
    with pytest.raises(InvalidArgument, match=r"`engine` .* cannot serve"):
        model_of(kind, PPO, n_steps=16, engine="closed_form")


def test_a_policy_that_cannot_be_served_any_more_is_refused_by_the_closed_form():
    model = model_of("box", PPO, n_steps=16, batch_size=32, engine="closed_form").learn(32)
    model.policy.log_std.requires_grad_(False)
    with pytest.raises(InvalidArgument, match=r"`engine` .*frozen"):
        model.learn(32, reset_num_timesteps=False)


class Counting:
    """A forward hook that counts."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *_):
        self.calls += 1


@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_the_engine_changes_between_two_runs_with_what_the_policy_is(algorithm):
    model = model_of("box", algorithm, n_steps=32, batch_size=32).learn(64)
    engine, bias = model._engine, model.policy.action_net.bias
    assert type(engine) is ClosedFormEngine
    model.learn(64, reset_num_timesteps=False)
    assert model._engine is engine

    count = Counting()
    handle = model.policy.mlp_extractor.register_forward_hook(count)
    bias.requires_grad_(False)
    frozen = bias.detach().clone()
    before = model.policy.action_net.weight.detach().clone()
    model.learn(64, reset_num_timesteps=False)
    assert type(model._engine) is AutogradEngine and count.calls >= 32
    assert th.equal(bias, frozen) and not th.equal(model.policy.action_net.weight, before)

    handle.remove()
    bias.requires_grad_(True)
    bias.grad = None
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=1e-3)
    model.learn(64, reset_num_timesteps=False)
    assert type(model._engine) is ClosedFormEngine
    assert not th.equal(bias, frozen)


def test_a_hook_that_is_removed_again_leaves_the_closed_form():
    policy = fresh()
    policy.action_net.register_forward_hook(nothing).remove()
    policy.value_net.weight.register_hook(nothing).remove()
    policy.optimizer.register_step_post_hook(nothing).remove()
    assert type(choose_engine(policy, "auto", None)) is ClosedFormEngine


class OwnBuffer(RolloutBuffer):
    def add(self, *args, **kwargs):
        self.added = getattr(self, "added", 0) + 1
        super().add(*args, **kwargs)


@pytest.mark.parametrize("buffer_class", [OwnBuffer, None])
def test_a_foreign_buffer_is_filled_through_its_own_methods(buffer_class):
    model = fill(model_of("box", PPO, n_steps=16, batch_size=32, rollout_buffer_class=buffer_class))
    engine = model._policy_engine()
    assert type(engine) is ClosedFormEngine
    stepper = engine.stepper(model.rollout_buffer, 16, watched=False)
    assert type(stepper) is (TorchStepper if buffer_class else ClosedFormStepper)
    assert getattr(model.rollout_buffer, "added", None) == (16 if buffer_class else None)
    assert np.isfinite(model.rollout_buffer.returns).all() and model.rollout_buffer.log_probs.any()
    model.train()
    assert model.last_update.kl > 0


def test_another_policy_gets_another_engine():
    first, second = fresh(), fresh()
    engine = choose_engine(first, "auto", None)
    assert choose_engine(first, "auto", engine) is engine
    assert choose_engine(second, "auto", engine) is not engine
    assert choose_engine(first, "autograd", engine) is not engine
