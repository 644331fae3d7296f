"""What is kept of single updates: it is right, bounded, and does not change training."""

import copy
import math

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_trust import NPG, PPO, REINFORCE, TRPO, PPOPenalty, TrustRegionRecorder
from sb3_trust.engines.autograd import AutogradEngine
from sb3_trust.engines.closed_form import ClosedFormEngine
from sb3_trust.engines.distributions import BernoulliFamily, CategoricalFamily, GaussianFamily
from sb3_trust.rollout import is_stock
from sb3_trust.trust_region import read_trust_region
from tests.recording import BATCH, at, recorded
from tests.worlds import ACTION_SPACES, identical, model_of, state

ALGORITHMS = [TRPO, NPG, PPO, PPOPenalty, REINFORCE]
ENGINES = ["autograd", "closed_form"]
DIMENSIONS = {"discrete": 1, "box": 3, "multi_discrete": 3, "multi_binary": 4}

of_each_engine = pytest.mark.parametrize("engine", ENGINES)
of_each_kind = pytest.mark.parametrize("kind", ACTION_SPACES)


# ---- training is what it is without ----------------------------------------------------------------------


class Normalised(BaseFeaturesExtractor):
    """Has buffers that move, and draws random numbers in training mode."""

    def __init__(self, observation_space):
        super().__init__(observation_space, 4)
        self.layers = th.nn.Sequential(th.nn.BatchNorm1d(4), th.nn.Dropout(0.2))

    def forward(self, observations):
        return self.layers(observations)


def trained(kind, algorithm, callback=None, **kwargs):
    np.random.seed(1)
    model = model_of(kind, algorithm, **kwargs)
    model.learn(3 * BATCH, callback=callback)
    modes = [module.training for module in model.policy.modules()]
    return model, [*state(model), th.get_rng_state()], (str(np.random.get_state()), modes)


@of_each_engine
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("kind", ["box", "multi_discrete"])
def test_training_is_bit_identical_with_the_recorder(kind, algorithm, engine, tmp_path):
    recorder = TrustRegionRecorder(tmp_path)
    _, plain, plain_rest = trained(kind, algorithm, engine=engine)
    model, watched, rest = trained(kind, algorithm, recorder, engine=engine)
    assert len(read_trust_region(tmp_path).updates) == 3
    assert isinstance(model._policy_engine(), ClosedFormEngine if engine == "closed_form" else AutogradEngine)
    assert identical(plain, watched) and plain_rest == rest


@pytest.mark.parametrize("algorithm", [TRPO, PPO])
def test_buffers_and_modes_stay_too(algorithm, tmp_path):
    kwargs = {"policy_kwargs": {"features_extractor_class": Normalised}}
    _, plain, plain_rest = trained("box", algorithm, **kwargs)
    _, watched, rest = trained("box", algorithm, TrustRegionRecorder(tmp_path), **kwargs)
    assert identical(plain, watched) and plain_rest == rest


def test_the_recorder_leaves_the_fast_rollout_fast(tmp_path):
    assert is_stock(TrustRegionRecorder(tmp_path))


# ---- what is kept is right ------------------------------------------------------------------------------


@of_each_engine
@of_each_kind
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_kept_agrees_with_what_is_logged(algorithm, kind, engine, tmp_path):
    _, record, seen = recorded(tmp_path, kind, algorithm, engine=engine)
    assert (record.algorithm, record.action_space) == (algorithm.__name__, type(ACTION_SPACES[kind]).__name__)
    assert [(u.update, u.num_timesteps) for u in record.updates] == [(n, n * BATCH) for n in (1, 2, 3)]
    for update, told in zip(record.updates, seen, strict=True):
        logged, taken = told.statistics, update.accepted_fraction
        assert update.kl == logged.kl > 0 and update.kl_max == logged.kl_max
        np.testing.assert_equal(update.target_kl, logged.target_kl)
        assert len(update.kl_per_dimension) == DIMENSIONS[kind] and (update.kl_per_dimension > 0).all()
        assert update.kl_per_dimension.sum() == pytest.approx(logged.kl, rel=1e-12)
        assert at(update, "kl", taken) == pytest.approx(logged.kl, rel=1e-9)
        assert at(update, "kl_max", taken) == pytest.approx(logged.kl_max, rel=1e-9)
        assert [update.profile.fractions[0], update.profile.fractions[-1]] == [0.0, 1.5]
        assert (np.diff(update.profile.fractions) > 0).all()
        for name in ("surrogate", "linear", "clipped", "quadratic"):
            assert getattr(update.profile, name)[0] == 0.0
        if algorithm in (TRPO, NPG):
            assert at(update, "quadratic", taken) == pytest.approx(logged.predicted_kl, rel=1e-4)
        if algorithm is TRPO:
            assert taken == logged.step_fraction
            assert at(update, "surrogate", taken) == pytest.approx(logged.actual_improvement, rel=1e-9)
            assert at(update, "linear", taken) == pytest.approx(logged.expected_improvement, rel=1e-4)
        else:
            assert taken == 1.0 and update.line_search is None


@of_each_engine
@of_each_kind
def test_models_along_the_step_are_the_derivatives_at_its_start(kind, engine, tmp_path):
    """The slope against autograd on the policy itself; the curvature by the KL divergence of small steps."""
    model, record, seen = recorded(tmp_path, kind, TRPO, engine=engine, target_kl=1e-4)
    update, told = record.updates[-1], seen[-1]
    policy, batch = copy.deepcopy(model.policy), told.batch
    with th.no_grad():
        for parameter, old in zip(policy.parameters(), told.old_parameters, strict=True):
            parameter.copy_(old)
    _, log_prob, _ = policy.evaluate_actions(batch.observations, batch.actions)
    advantages = (batch.advantages - batch.advantages.mean()) / batch.advantages.std()
    (advantages * (log_prob - batch.old_log_prob).exp()).mean().backward()
    moved = {id(p) for p in model._policy_engine().partition(batch).policy}
    pairs = zip(model.policy.parameters(), policy.parameters(), strict=True)
    gradient = th.cat([ours.grad.flatten() for own, ours in pairs if id(own) in moved]).double()
    slope = float(gradient @ told.searched.step)
    assert update.profile.linear[-1] == pytest.approx(1.5 * slope, rel=1e-4)
    inner = slice(10, None)
    np.testing.assert_allclose(update.profile.quadratic[inner], update.profile.kl[inner], rtol=0.05)
    np.testing.assert_allclose(update.profile.linear[inner], update.profile.surrogate[inner], rtol=0.05)


@of_each_engine
def test_samples_are_the_batchs_after_the_update(engine, tmp_path):
    model, record, seen = recorded(tmp_path, "box", PPO, engine=engine, clip_range=0.05, learning_rate=3e-3)
    update, batch = record.updates[-1], seen[-1].batch
    with th.no_grad():
        _, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
    ratios = (log_prob - batch.old_log_prob).exp().numpy()
    np.testing.assert_allclose(update.ratios, ratios, rtol=1e-5)
    advantages = batch.advantages.numpy()
    np.testing.assert_allclose(
        update.advantages, (advantages - advantages.mean()) / advantages.std(ddof=1), rtol=1e-3, atol=1e-5
    )
    assert update.clip_range == 0.05 and (np.abs(ratios - 1) > 0.05).any()
    ratios, advantages = update.ratios, update.advantages
    clipped = np.minimum(ratios * advantages, np.clip(ratios, 0.95, 1.05) * advantages)
    assert at(update, "clipped", 1.0) == pytest.approx(clipped.mean(), abs=1e-6)
    surrogate = (ratios * advantages).mean()
    assert at(update, "surrogate", 1.0) == pytest.approx(surrogate, abs=1e-6) and surrogate > clipped.mean()


def test_some_of_the_samples_are_kept(tmp_path):
    _, whole, _ = recorded(tmp_path, "box", PPO)
    _, part, _ = recorded(tmp_path, "box", PPO, recorder=TrustRegionRecorder(tmp_path, max_samples=10))
    for all_, some in zip(whole.updates, part.updates, strict=True):
        assert len(all_.ratios) == BATCH and len(some.ratios) == len(some.advantages) == 10
        pairs = set(zip(all_.ratios, all_.advantages, strict=True))
        assert set(zip(some.ratios, some.advantages, strict=True)) <= pairs


@of_each_engine
def test_line_search_as_it_went(engine, tmp_path):
    options = {"engine": engine, "line_search_max_iter": 1, "accept_ratio": 0.3}
    _, record, seen = recorded(tmp_path, "multi_binary", TRPO, 8, **options)
    found = set()
    for update, told in zip(record.updates, seen, strict=True):
        search, result = update.line_search, told.searched.result
        assert list(search.constrained) == [trial.constraint for trial in result.trials]
        assert list(search.improvement) == [trial.improvement for trial in result.trials]
        assert list(search.fractions) == [1.0] and list(search.accepted) == [result.accepted]
        assert search.expected_improvement[0] == told.statistics.expected_improvement
        assert update.accepted_fraction == float(result.accepted)
        assert (update.limit, update.accept_ratio) == (0.01, 0.3)
        assert at(update, "kl", 1.0) == pytest.approx(search.constrained[0], rel=1e-9)
        if not result.accepted:
            # the closed form evaluates old and new policy in batches of different sizes
            assert update.kl < 1e-12 and update.kl_per_dimension.max() < 1e-12
            np.testing.assert_allclose(update.ratios, 1.0, rtol=1e-5)
        found.add(bool(result.accepted))
    assert found == {True, False}


def test_line_search_with_several_points(tmp_path):
    _, record, _ = recorded(tmp_path, "multi_binary", TRPO, 8, line_search_shrinking_factor=0.9)
    search = max((u.line_search for u in record.updates), key=lambda s: len(s.fractions))
    assert len(search.fractions) > 1
    assert not search.accepted[:-1].any() and search.accepted[-1]
    np.testing.assert_allclose(search.fractions, 0.9 ** np.arange(len(search.fractions)))
    assert (search.constrained[:-1] > 0.01).all() and search.constrained[-1] <= 0.01


def test_limit_on_the_worst_state(tmp_path):
    _, record, _ = recorded(tmp_path, "box", TRPO, kl_statistic="max")
    for update in record.updates:
        assert update.limit_at_worst_state and 0 < update.line_search.fractions[0] < 1
        assert (
            update.line_search.constrained[-1]
            == at(update, "kl_max", update.accepted_fraction)
            <= update.limit
        )


def test_a_step_that_was_taken_back(tmp_path):
    _, record, seen = recorded(tmp_path, "box", PPO, learning_rate=1e-2, max_kl=1e-3)
    for update, told in zip(record.updates, seen, strict=True):
        assert 0 < update.accepted_fraction == told.statistics.step_fraction < 1
        assert at(update, "kl", update.accepted_fraction) == pytest.approx(update.kl, rel=1e-5)
        assert np.interp(1.0, update.profile.fractions, update.profile.kl) == pytest.approx(
            told.statistics.kl_of_full_step, rel=0.01
        )
        assert update.limit == 1e-3 and math.isnan(update.target_kl) and update.kl <= 1e-3


@pytest.mark.parametrize("kind", ["gsde", "gsde_squashed", "dict", "cnn"])
@pytest.mark.parametrize("algorithm", [TRPO, PPO])
def test_every_policy_is_recorded(algorithm, kind, tmp_path):
    _, record, _ = recorded(tmp_path, kind, algorithm, n_updates=1)
    (update,) = record.updates
    assert at(update, "kl", update.accepted_fraction) == pytest.approx(update.kl, rel=1e-6)
    assert all(np.isfinite(column).all() for column in vars(update.profile).values())


def test_an_entropy_bonus_is_part_of_the_objective(tmp_path):
    _, record, seen = recorded(tmp_path, "discrete", TRPO, ent_coef=0.1)
    update, improvement = record.updates[-1], seen[-1].statistics.actual_improvement
    assert at(update, "surrogate", update.accepted_fraction) == pytest.approx(improvement, rel=1e-9)


def test_kl_of_each_dimension_is_torchs():
    normal, generator = th.distributions.Normal, th.Generator().manual_seed(0)
    old, new = th.randn(2, 5, 6, generator=generator, dtype=th.float64)
    kl = th.distributions.kl_divergence
    gaussians = [normal(p[:, :3], p[:, 3:].exp()) for p in (old, new)]
    th.testing.assert_close(GaussianFamily().kl_per_dimension(old, new), kl(*gaussians))
    bits = [th.distributions.Bernoulli(logits=p) for p in (old, new)]
    th.testing.assert_close(BernoulliFamily().kl_per_dimension(old, new), kl(*bits))
    choices = [[th.distributions.Categorical(logits=part) for part in p.split([2, 4], 1)] for p in (old, new)]
    expected = th.stack([kl(p, q) for p, q in zip(*choices, strict=True)], 1)
    th.testing.assert_close(CategoricalFamily([2, 4]).kl_per_dimension(old, new), expected)
