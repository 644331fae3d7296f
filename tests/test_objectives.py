"""Each objective's value and partial derivatives against autograd on the formula as the papers write it."""

import math
from types import SimpleNamespace

import pytest
import torch as th
import torch.nn.functional as F

from sb3_trust.numerics.losses import ClippedSurrogateLoss, PenalizedSurrogateLoss, SurrogateLoss, ValueLoss
from sb3_trust.numerics.objectives import (
    Differentiated,
    PolicyTerms,
    SurrogateObjective,
    approximate_kl,
    normalize_advantages,
)

N = 200
TERMS = ("log_prob", "entropy", "kl", "values")


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


PENALTY = {"kl_coef": 1.3, "hinge_coef": 1000.0, "vf_coef": 0.7, "ent_coef": 0.03}


def dual_clipped(t, d, c=1.3):
    """Equation 7: with the larger of the clipped surrogate and c A where A < 0."""
    ratio = th.exp(t.log_prob - d.old_log_prob)
    surrogate = th.min(d.advantages * ratio, d.advantages * th.clamp(ratio, 0.8, 1.2))
    lowest = th.where(d.advantages < 0, th.max(surrogate, c * d.advantages), surrogate)
    return -lowest.mean() + 0.5 * F.mse_loss(d.returns, t.values)


def larger_error(t, d):
    clipped_values = d.old_values + (t.values - d.old_values).clamp(-0.4, 0.4)
    return th.max((t.values - d.returns) ** 2, (clipped_values - d.returns) ** 2).mean()


def of_all_terms(t, d):
    return ((t.log_prob * d.advantages).sin() + t.kl**2 + t.entropy * t.values).mean(-1)


CASES = {
    "dual clip": (ClippedSurrogateLoss(dual_clip=1.3), dual_clipped),
    "larger value error": (ValueLoss(0.4, larger=True), larger_error),
    "a function": (Differentiated(of_all_terms, frozenset(TERMS)), of_all_terms),
    "surrogate of one's own": (
        SurrogateLoss(surrogate=Differentiated(of_all_terms, frozenset(TERMS)), vf_coef=0.7, ent_coef=0.03),
        lambda t, d: of_all_terms(t, d) + 0.7 * F.mse_loss(d.returns, t.values) - 0.03 * t.entropy.mean(),
    ),
    "clipped": (ClippedSurrogateLoss(clip_range=0.2, vf_coef=0.7, ent_coef=0.03), lambda t, d: clipped(t, d)),
    "no clip": (
        ClippedSurrogateLoss(clip_range=math.inf, vf_coef=0.7, ent_coef=0.03),
        lambda t, d: clipped(t, d, math.inf),
    ),
    "value clip": (
        ClippedSurrogateLoss(clip_range=0.2, clip_range_vf=0.4, vf_coef=0.7, ent_coef=0.03),
        lambda t, d: clipped(t, d, clip_vf=0.4),
    ),
    "penalty above the hinge": (PenalizedSurrogateLoss(target_kl=0.01, **PENALTY), penalized),
    "penalty below the hinge": (
        PenalizedSurrogateLoss(target_kl=0.1, **PENALTY),
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
    detached = PolicyTerms(**{k: v.detach() for k, v in vars(t).items()})
    derivatives = objective.derivatives(detached, data)
    assert float(objective(detached, data).value) == pytest.approx(expected.item(), rel=1e-12)
    for name, leaf in vars(t).items():
        derivative = getattr(derivatives, name)
        if leaf.grad is None:
            assert derivative is None or not derivative.any()
        else:
            assert name in objective.needs
            th.testing.assert_close(derivative, leaf.grad, rtol=1e-10, atol=1e-14)


def test_larger_value_error_leaves_every_sample_inside_the_range_its_slope():
    """In float32, where the errors with and without the clip differ by rounding there."""
    old = 0.1 * th.randn(1000)
    values = old + 0.05 * th.randn(1000)
    data = SimpleNamespace(old_values=old, returns=values + 0.02 * th.randn(1000))
    loss = ValueLoss(1.0, larger=True)
    slopes = loss.derivatives(PolicyTerms(values=values), data).values
    th.testing.assert_close(slopes, 2 * (values - data.returns) / 1000)
    assert bool((slopes != 0).all())


@pytest.mark.parametrize("loss", [ClippedSurrogateLoss(ent_coef=0.1), PenalizedSurrogateLoss(ent_coef=0.1)])
def test_without_a_closed_form_the_sampled_log_prob_stands_for_the_entropy(loss, data):
    t = terms(data)
    without = PolicyTerms(t.log_prob.detach(), None, t.kl.detach(), t.values.detach())
    with_zero = PolicyTerms(without.log_prob, th.zeros(N).double(), without.kl, without.values)
    slopes = [loss.derivatives(terms, data).log_prob for terms in (without, with_zero)]
    th.testing.assert_close(slopes[0], slopes[1] + 0.1 / N)
    values = [float(loss(terms, data).value) for terms in (without, with_zero)]
    assert values[0] == pytest.approx(values[1] + 0.1 * float(without.log_prob.mean()))


def test_a_nan_anywhere_reaches_the_derivatives(data):
    for loss in (ClippedSurrogateLoss(), PenalizedSurrogateLoss()):
        t = terms(data)
        t.log_prob.data[3] = math.nan
        detached = PolicyTerms(**{k: v.detach() for k, v in vars(t).items()})
        assert math.isnan(float(loss(detached, data).value))
        assert math.isnan(float(loss.derivatives(detached, data).log_prob[3]))


def test_clip_fraction_and_approximate_kl(data):
    t = terms(data)
    result = ClippedSurrogateLoss(clip_range=0.2)(
        PolicyTerms(**{k: v.detach() for k, v in vars(t).items()}), data
    )
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


@pytest.mark.parametrize("case", CASES)
def test_several_batches_at_once_are_each_of_them_alone(case, data):
    objective, _ = CASES[case]
    t = PolicyTerms(**{k: v.detach() for k, v in vars(terms(data)).items()})

    def batches(source, rows):
        return type(source)(**{k: v.view(4, -1)[rows] for k, v in vars(source).items()})

    together = objective(batches(t, slice(None)), batches(data, slice(None)))
    slopes = objective.derivatives(batches(t, slice(None)), batches(data, slice(None)))
    for row in range(4):
        alone = objective(batches(t, row), batches(data, row))
        th.testing.assert_close(together.value[row], alone.value)
        for name, value in alone.statistics.items():
            th.testing.assert_close(together.statistics[name][row], value)
        for name, slope in vars(objective.derivatives(batches(t, row), batches(data, row))).items():
            if slope is not None:
                th.testing.assert_close(getattr(slopes, name)[row], slope)
