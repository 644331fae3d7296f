"""KL divergence, entropy and Fisher metric in closed form, against torch, autograd and Monte Carlo."""

import math

import pytest
import torch as th
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence

from sb3_trust import InvalidArgument
from sb3_trust.engines.distributions import BernoulliFamily, CategoricalFamily, GaussianFamily, family_of

N = 6
SIZES = [3, 2, 4]


def joint_categorical(logits):
    return [Categorical(logits=part) for part in logits.split(SIZES, -1)]


def gaussian(parameters):
    mean, log_std = parameters.chunk(2, -1)
    return Independent(Normal(mean, log_std.exp()), 1)


# name -> (family, number of parameters, the same distribution as a list of independent torch distributions)
FAMILIES = {
    "categorical": (CategoricalFamily([5]), 5, lambda p: [Categorical(logits=p)]),
    "multi_categorical": (CategoricalFamily(SIZES), 9, joint_categorical),
    "bernoulli": (BernoulliFamily(), 4, lambda p: [Independent(Bernoulli(logits=p), 1)]),
    "gaussian": (GaussianFamily(), 6, lambda p: [gaussian(p)]),
}


@pytest.fixture(params=FAMILIES)
def case(request):
    family, size, build = FAMILIES[request.param]
    return family, th.randn(N, size).double(), th.randn(N, size).double(), build


def test_kl_is_that_of_torch_summed_over_action_dimensions(case):
    family, old, new, build = case
    expected = sum(kl_divergence(p, q) for p, q in zip(build(old), build(new), strict=True))
    th.testing.assert_close(family.kl(old, new), expected)
    th.testing.assert_close(family.kl(old, old), th.zeros(N).double(), atol=1e-15, rtol=0)
    assert bool((family.kl(old, new) != family.kl(new, old)).all())  # the direction matters


def test_kl_and_entropy_agree_with_monte_carlo(case):
    family, old, new, build = case
    n_samples = 200_000
    for p, q, index in ((old[:1], new[:1], 0),):
        actions = [d.sample((n_samples,)) for d in build(p)]
        log_p = sum(d.log_prob(a) for d, a in zip(build(p), actions, strict=True))
        log_q = sum(d.log_prob(a) for d, a in zip(build(q), actions, strict=True))
        for samples, exact in (
            (log_p - log_q, family.kl(old, new)[index]),
            (-log_p, family.entropy(old)[index]),
        ):
            error = 5 * float(samples.std()) / math.sqrt(n_samples)
            assert abs(float(samples.mean()) - float(exact)) < error
            assert error < 0.2 * max(float(exact), 0.1)  # the check has power


def test_entropy_is_that_of_torch(case):
    family, old, _, build = case
    th.testing.assert_close(family.entropy(old), sum(d.entropy() for d in build(old)))


def test_fisher_metric_is_the_hessian_of_the_kl(case):
    family, old, _, _ = case
    for i in range(N):
        hessian = th.autograd.functional.hessian(lambda new, i=i: family.kl(old[i], new), old[i].clone())
        columns = [family.fisher(old[i], basis) for basis in th.eye(old.shape[1]).double()]
        th.testing.assert_close(th.stack(columns, 1), hessian)


def test_fisher_metric_is_the_covariance_of_the_score(case):
    """The definition, not only the Hessian identity: E[grad log p grad log p^T]."""
    family, old, _, build = case
    n_samples = 100_000
    repeated = old[0].expand(n_samples, -1).clone().requires_grad_()
    distributions = build(repeated)
    log_prob = sum(d.log_prob(d.sample()) for d in distributions)
    (scores,) = th.autograd.grad(log_prob.sum(), repeated)
    estimate = scores.T @ scores / n_samples
    columns = [family.fisher(old[0], basis) for basis in th.eye(old.shape[1]).double()]
    exact = th.stack(columns, 1)
    assert float((estimate - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_underflowed_probabilities_have_a_finite_kl():
    old = th.tensor([[0.0, -500.0]])
    new = th.tensor([[-500.0, 0.0]])
    assert float(CategoricalFamily([2]).kl(old, new)) == pytest.approx(500.0)
    assert float(CategoricalFamily([2]).entropy(old)) == 0.0
    assert float(BernoulliFamily().kl(500.0 * th.ones(1, 1), -500.0 * th.ones(1, 1))) == pytest.approx(500.0)


def test_kl_of_a_small_change_keeps_its_digits():
    step = 1e-4
    old = th.zeros(1, 2)
    new = th.tensor([[step, step]])
    exact = float(GaussianFamily().kl(old.double(), new.double()))
    assert exact == pytest.approx(0.5 * step**2 + step**2, rel=1e-3)
    assert float(GaussianFamily().kl(old, new)) == pytest.approx(exact, rel=2e-3)


def test_a_squashed_gaussian_has_its_base_kl_and_no_entropy():
    family = GaussianFamily(squashed=True)
    old, new = th.randn(N, 4).double(), th.randn(N, 4).double()
    th.testing.assert_close(family.kl(old, new), GaussianFamily().kl(old, new))
    assert family.entropy(old) is None
    # Monte Carlo on the squashed actions: the change of variables cancels
    p, q = gaussian(old[:1]), gaussian(new[:1])
    gaussian_actions = p.sample((100_000,))
    correction = th.log1p(-(th.tanh(gaussian_actions) ** 2) + 1e-12).sum(-1)
    ratio = (p.log_prob(gaussian_actions) - correction) - (q.log_prob(gaussian_actions) - correction)
    error = 5 * float(ratio.std()) / math.sqrt(100_000)
    assert float(ratio.mean()) == pytest.approx(float(family.kl(old, new)[0]), abs=error)


def test_an_unknown_distribution_is_refused_by_name():
    class Strange:
        pass

    with pytest.raises(InvalidArgument, match=r"policy.*Strange"):
        family_of(Strange())  # type: ignore[arg-type]
