"""What the descent of the closed form leaves behind: gradients, or nothing if it is not to step."""

import pytest
import torch as th

from sb3_trust import PPO, TRPO, PPOPenalty
from sb3_trust.engines.closed_form_descent import ClosedFormDescent
from tests.twins import distance, joined, pair, perturb, train
from tests.worlds import fill, parameters

SIZES = {"n_steps": 45, "batch_size": 32}


def pair_of(algorithm, kind="box", **kwargs):
    return pair(kind, algorithm, **SIZES, **({} if algorithm is TRPO else {"n_epochs": 3}), **kwargs)


def gradients(model):
    return [parameter.grad for parameter in model.policy.parameters()]


def assert_same_gradients(closed, reference):
    ours, theirs = gradients(closed), gradients(reference)
    assert [g is None for g in ours] == [g is None for g in theirs]
    present = [(g, h) for g, h in zip(ours, theirs, strict=True) if g is not None]
    assert present
    assert distance(joined(g for g, _ in present), joined(h for _, h in present)) < 1e-4


@pytest.mark.parametrize("max_grad_norm", [0.05, 1e6, float("inf")])
@pytest.mark.parametrize("kind", ["box", "discrete"])
@pytest.mark.parametrize("algorithm", [PPO, PPOPenalty])
def test_gradients_left_behind_are_the_clipped_ones_of_the_reference(algorithm, kind, max_grad_norm):
    closed, reference = pair_of(algorithm, kind, max_grad_norm=max_grad_norm)
    train(closed, reference)
    assert_same_gradients(closed, reference)
    norm = float(joined(gradients(closed)).norm())
    assert norm == pytest.approx(0.05, rel=1e-3) if max_grad_norm == 0.05 else norm > 0.05


@pytest.mark.parametrize("given", [False, True])
def test_the_critics_phase_leaves_gradients_of_the_critic_alone(given):
    closed, reference = pair_of(TRPO)
    if given:
        for model in (closed, reference):
            for parameter in model.policy.parameters():
                parameter.grad = th.ones_like(parameter)
    train(closed, reference)
    assert_same_gradients(closed, reference)


def test_an_update_that_is_refused_at_once_moves_nothing():
    closed, reference = pair_of(PPO, target_kl=1e-3)
    for model in (closed, reference):
        perturb(model.policy, 0.5)
    before = parameters(closed)
    train(closed, reference)
    assert th.equal(parameters(closed), before) and th.equal(parameters(reference), before)
    ours, theirs = closed.policy.optimizer, reference.policy.optimizer
    steps = [[float(s["step"]) for s in optimizer.state.values()] for optimizer in (ours, theirs)]
    assert not any(steps[0]) and not any(steps[1])


@pytest.mark.parametrize("algorithm", [PPO, TRPO])
def test_an_update_that_is_interrupted_leaves_everything_as_it_was(algorithm, monkeypatch):
    closed, _ = pair_of(algorithm)
    train(closed)
    fill(closed)
    before = [*parameters(closed), *joined(s["exp_avg"] for s in closed.policy.optimizer.state.values())]
    calls, original = [], ClosedFormDescent.step

    def step(self, derivatives):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, derivatives)

    monkeypatch.setattr(ClosedFormDescent, "step", step)
    with pytest.raises(KeyboardInterrupt):
        closed.train()
    after = [*parameters(closed), *joined(s["exp_avg"] for s in closed.policy.optimizer.state.values())]
    assert before == after
