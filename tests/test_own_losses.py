"""Losses of the user's own: an objective in place of PPO's, an auxiliary loss beside it."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th

from sb3_trust import PPO, InvalidArgument
from sb3_trust.numerics.objectives import Differentiated, ObjectiveValue, PolicyTerms
from tests.worlds import fill, identical, model_of, parameters, state

SIZES = {"n_steps": 48, "batch_size": 32, "n_epochs": 4, "learning_rate": 3e-3}


def spo(terms, data):
    ratio = (terms.log_prob - data.old_log_prob).exp()
    return ((ratio - 1) ** 2 * data.advantages.abs() / 0.4 - ratio * data.advantages).mean(-1)


class WrittenOut:
    """The same with its derivatives, of NumPy arrays and of tensors."""

    needs = frozenset({"log_prob"})

    def __call__(self, terms, data):
        return ObjectiveValue(spo(terms, data), {"half": 0.5 * spo(terms, data)})

    def derivatives(self, terms, data):
        ratio = np.exp(terms.log_prob - data.old_log_prob)
        slope = (2 * (ratio - 1) * abs(data.advantages) / 0.4 - data.advantages) * ratio
        return PolicyTerms(log_prob=slope / ratio.shape[-1])


def test_statistics_of_an_own_objective_are_logged():
    model = fill(model_of("box", PPO, objective=WrittenOut(), **SIZES))
    model.train()
    logged = model.last_update.log_items()
    assert logged["objective/half"] == pytest.approx(0.5 * logged["policy_loss"], rel=1e-4)
    assert "of_objective" not in logged and 0 <= logged["clip_fraction"] <= 1


def test_derivatives_by_autograd_are_those_written_out():
    n = 7
    data = SimpleNamespace(
        advantages=np.random.randn(n).astype(np.float32), returns=np.zeros(n, np.float32),
        old_values=np.zeros(n, np.float32), old_log_prob=np.random.randn(n).astype(np.float32),
    )  # fmt: skip
    terms = PolicyTerms(log_prob=data.old_log_prob + 0.1)
    ours, theirs = (o.derivatives(terms, data).log_prob for o in (Differentiated(spo), WrittenOut()))
    assert type(ours) is np.ndarray
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_statistics_of_an_undone_update_are_gone():
    model = fill(model_of("box", PPO, objective=WrittenOut(), **SIZES))
    model.train()
    assert "train/objective/half" in model.logger.name_to_value
    fill(model).rollout_buffer.advantages[0] = math.nan
    with pytest.warns(RuntimeWarning, match="rolled back"):
        model.train()
    assert "train/objective/half" not in model.logger.name_to_value


@pytest.mark.parametrize("engine", ["autograd", "closed_form"])
def test_an_objective_that_is_no_mean_over_samples_is_named(engine):
    objective = Differentiated(lambda terms, data: (terms.log_prob * data.advantages).mean())
    model = fill(model_of("box", PPO, objective=objective, engine=engine, **SIZES))
    before = state(model)
    with pytest.raises(ValueError, match=r"objective.*shape"):
        model.train()
    assert identical(before, state(model))


class KeepsDerivatives(WrittenOut):
    """In float64, and the same object each time."""

    kept = PolicyTerms()

    def derivatives(self, terms, data):
        self.kept.log_prob = super().derivatives(terms, data).log_prob.astype(np.float64)
        return self.kept


def test_an_objective_may_keep_what_it_returns():
    trained = []
    for objective in (WrittenOut(), KeepsDerivatives()):
        model = fill(model_of("box", PPO, objective=objective, engine="closed_form", **SIZES))
        np.random.seed(7)
        model.train()
        trained.append(parameters(model))
    th.testing.assert_close(*trained, rtol=1e-5, atol=1e-6)
    assert KeepsDerivatives.kept.values is None


class WithAuxiliaryLoss(PPO):
    weight = 3.0

    def auxiliary_loss(self, batch):
        assert batch.observations.shape[0] == len(batch) == batch.actions.shape[0]
        return self.weight * self.policy.get_distribution(batch.observations).distribution.loc.square().mean()


def test_the_auxiliary_loss_adds_its_gradient():
    options = {"n_epochs": 1, "batch_size": 96, "max_grad_norm": math.inf, "engine": "autograd"}
    models = [fill(model_of("box", kind, **{**SIZES, **options})) for kind in (PPO, WithAuxiliaryLoss)]
    batch = models[0]._make_batch()
    policy = copy.deepcopy(models[0].policy)
    loss = 3.0 * policy.get_distribution(batch.observations).distribution.loc.square().mean()
    extra = th.autograd.grad(loss, list(policy.parameters()), allow_unused=True)
    for model in models:
        np.random.seed(7)
        model.train()
    assert models[1].last_update.auxiliary_loss == pytest.approx(loss.item(), rel=1e-5)
    pairs = zip(*(model.policy.parameters() for model in models), extra, strict=True)
    for plain, with_loss, own in pairs:
        own = th.zeros_like(plain) if own is None else own
        th.testing.assert_close(with_loss.grad, plain.grad + own, rtol=1e-4, atol=1e-5)


def test_the_auxiliary_loss_takes_autograd():
    with pytest.raises(InvalidArgument, match=r"engine.*auxiliary_loss"):
        model_of("box", WithAuxiliaryLoss, engine="closed_form")


@pytest.mark.parametrize(
    "wrong", [None, 0.5, th.zeros(()), "vector"], ids=["none", "float", "detached", "vector"]
)
def test_an_auxiliary_loss_that_is_no_loss_is_named(wrong):
    class Wrong(PPO):
        def auxiliary_loss(self, batch):
            return self.policy.value_net.weight[0] if wrong == "vector" else wrong

    model = fill(model_of("box", Wrong, **SIZES))
    before = state(model)
    with pytest.raises(ValueError, match=r"auxiliary_loss.*scalar tensor"):
        model.train()
    assert identical(before, state(model))


def test_an_auxiliary_loss_that_is_not_finite_is_undone():
    model = fill(model_of("box", WithAuxiliaryLoss, **SIZES))
    model.weight = math.nan
    before = state(model)
    with pytest.warns(RuntimeWarning, match="rolled back"):
        model.train()
    assert identical(before, state(model)) and model.n_rollbacks == 1
