"""Each objective's value and partial derivatives against autograd on the formula as the papers write it."""

import math
from types import SimpleNamespace

import pytest
import torch as th
import torch.nn.functional as F

from sb3_trust.numerics.objectives import (
    ClippedSurrogateLoss,
    PenalizedSurrogateLoss,
    PolicyTerms,
    SurrogateObjective,
    ValueLoss,
    approximate_kl,
    normalize_advantages,
)

N = 200


@pytest.fixture
def data():
    return SimpleNamespace(
        advantages=th.randn(N, dtype=th.float64),
        returns=th.randn(N, dtype=th.float64),
        old_values=th.randn(N, dtype=th.float64),
        old_log_prob=th.randn(N, dtype=th.float64),
    )


def terms(data, spread=0.3):
    def leaf(tensor):
        return tensor.clone().requires_grad_()

    return PolicyTerms(
        log_prob=leaf(data.old_log_prob + spread * th.randn(N, dtype=th.float64)),
        entropy=leaf(th.rand(N, dtype=th.float64)),
        kl=leaf(0.05 * th.rand(N, dtype=th.float64)),
        values=leaf(data.old_values + th.randn(N, dtype=th.float64)),
    )


def clipped(t, d, clip=0.2, clip_vf=None, vf=0.7, ent=0.03):
    ratio = th.exp(t.log_prob - d.old_log_prob)
    surrogate = th.min(d.advantages * ratio, d.advantages * th.clamp(ratio, 1 - clip, 1 + clip)).mean()
    values = t.values
    if clip_vf is not None:
        values = d.old_values + th.clamp(values - d.old_values, -clip_vf, clip_vf)
    return -surrogate + vf * F.mse_loss(d.returns, values) - ent * t.entropy.mean()


def penalized(t, d, beta=1.3, target=0.01, hinge=1000.0, vf=0.7, ent=0.03):
    surrogate = (th.exp(t.log_prob - d.old_log_prob) * d.advantages).mean()
    over = F.relu(t.kl.mean() - 2 * target)
    penalty = beta * t.kl.mean() + hinge * over**2
    return -surrogate + penalty + vf * F.mse_loss(d.returns, t.values) - ent * t.entropy.mean()


CASES = {
    "clipped": (ClippedSurrogateLoss(0.2, None, 0.7, 0.03), lambda t, d: clipped(t, d)),
    "no clip": (ClippedSurrogateLoss(math.inf, None, 0.7, 0.03), lambda t, d: clipped(t, d, math.inf)),
    "value clip": (ClippedSurrogateLoss(0.2, 0.4, 0.7, 0.03), lambda t, d: clipped(t, d, clip_vf=0.4)),
    "penalty above the hinge": (PenalizedSurrogateLoss(1.3, 0.01, 1000.0, 0.7, 0.03), penalized),
    "penalty below the hinge": (
        PenalizedSurrogateLoss(1.3, 0.1, 1000.0, 0.7, 0.03),
        lambda t, d: penalized(t, d, target=0.1),
    ),
    "surrogate": (
        SurrogateObjective(0.03),
        lambda t, d: (th.exp(t.log_prob - d.old_log_prob) * d.advantages).mean() + 0.03 * t.entropy.mean(),
    ),
    "value": (ValueLoss(), lambda t, d: F.mse_loss(d.returns, t.values)),
    "clipped value": (
        ValueLoss(0.4),
        lambda t, d: F.mse_loss(d.returns, d.old_values + (t.values - d.old_values).clamp(-0.4, 0.4)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_derivatives_agree_with_autograd(case, data):
    objective, formula = CASES[case]
    t = terms(data)
    expected = formula(t, data)
    expected.backward()
    result = objective(PolicyTerms(**{k: v.detach() for k, v in vars(t).items()}), data)
    assert float(result.value) == pytest.approx(expected.item(), rel=1e-12)
    for name, leaf in vars(t).items():
        derivative = getattr(result.derivatives, name)
        if leaf.grad is None:
            assert derivative is None or not derivative.any()
        else:
            assert name in objective.needs
            th.testing.assert_close(derivative, leaf.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "loss", [ClippedSurrogateLoss(0.2, None, 0.5, 0.1), PenalizedSurrogateLoss(1.0, 0.01, 0.0, 0.5, 0.1)]
)
def test_without_a_closed_form_the_sampled_log_prob_stands_for_the_entropy(loss, data):
    t = terms(data)
    without = PolicyTerms(t.log_prob.detach(), None, t.kl.detach(), t.values.detach())
    result = loss(without, data)
    with_zero = loss(PolicyTerms(without.log_prob, th.zeros(N).double(), without.kl, without.values), data)
    th.testing.assert_close(result.derivatives.log_prob, with_zero.derivatives.log_prob + 0.1 / N)
    assert float(result.value) == pytest.approx(float(with_zero.value + 0.1 * without.log_prob.mean()))


def test_a_nan_anywhere_reaches_the_derivatives(data):
    for loss in (ClippedSurrogateLoss(0.2), PenalizedSurrogateLoss(1.0, 0.01)):
        t = terms(data)
        t.log_prob.data[3] = math.nan
        result = loss(PolicyTerms(**{k: v.detach() for k, v in vars(t).items()}), data)
        assert math.isnan(float(result.value))
        assert math.isnan(float(result.derivatives.log_prob[3]))


def test_clip_fraction_and_approximate_kl(data):
    t = terms(data)
    result = ClippedSurrogateLoss(0.2)(PolicyTerms(**{k: v.detach() for k, v in vars(t).items()}), data)
    log_ratio = (t.log_prob - data.old_log_prob).detach()
    outside = ((log_ratio.exp() > 1.2) | (log_ratio.exp() < 0.8)).double().mean()
    assert float(result.statistics["clip_fraction"]) == pytest.approx(float(outside))
    assert float(result.statistics["approx_kl"]) == pytest.approx(float(approximate_kl(log_ratio)))
    assert float(approximate_kl(log_ratio)) > 0


def test_normalized_advantages():
    a = normalize_advantages(5 + 3 * th.randn(50).double())
    assert float(a.mean()) == pytest.approx(0, abs=1e-12)
    assert float(a.std()) == pytest.approx(1, rel=1e-6)
    one = th.tensor([4.0])
    assert normalize_advantages(one) is one
