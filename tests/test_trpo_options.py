"""TRPO's options do what they say."""

import pytest

from sb3_trust import TRPO, InvalidArgument
from sb3_trust.numerics.objectives import normalize_advantages
from tests.worlds import fill, model_of


def test_sub_sampling_thins_the_fisher_product_alone(monkeypatch):
    sizes = []
    for factor in (1, 4):
        model = fill(model_of("dict", TRPO, sub_sampling_factor=factor))
        engine = model._policy_engine()
        product, evaluate = engine.fisher_vector_product, engine.evaluate

        def spy_product(batch, product=product):
            sizes.append(("fisher", len(batch)))
            return product(batch)

        def spy_evaluate(batch, needs, evaluate=evaluate):
            if "log_prob" in needs:
                sizes.append(("gradient", len(batch)))
            return evaluate(batch, needs)

        monkeypatch.setattr(engine, "fisher_vector_product", spy_product)
        monkeypatch.setattr(engine, "evaluate", spy_evaluate)
        model.train()
        assert 0 < model.last_update.kl <= 0.01
    assert sizes == [("gradient", 128), ("fisher", 128), ("gradient", 128), ("fisher", 32)]


def test_entropy_bonus_raises_the_entropy():
    entropies = {}
    for ent_coef in (0.0, 0.5):
        model = model_of("multi_discrete", TRPO, ent_coef=ent_coef, target_kl=0.05).learn(6 * 128)
        entropies[ent_coef] = model.last_update.entropy
    assert entropies[0.5] > entropies[0.0] + 0.01


def test_entropy_bonus_is_refused_where_there_is_no_entropy():
    with pytest.raises(InvalidArgument, match="ent_coef"):
        model_of("gsde_squashed", TRPO, ent_coef=0.01)


def test_line_search_shrinks_by_its_factor():
    model = fill(
        model_of("discrete", TRPO, target_kl=1.0, accept_ratio=0.9, line_search_shrinking_factor=0.5)
    )
    model.train()
    assert model.last_update.line_search_steps > 1
    assert model.last_update.step_fraction == 0.5 ** (model.last_update.line_search_steps - 1)


def test_conjugate_gradient_ends_at_its_tolerance():
    iterations = {}
    for tolerance in (0.9, 1e-4):
        model = fill(model_of("discrete", TRPO, cg_tolerance=tolerance))
        model.train()
        assert model.last_update.cg_residual <= tolerance or model.last_update.cg_iterations == 15
        iterations[tolerance] = model.last_update.cg_iterations
    assert iterations[0.9] < iterations[1e-4]


@pytest.mark.parametrize("normalize", [True, False])
def test_advantages_are_normalised_only_where_asked(normalize):
    model = fill(
        model_of("discrete", TRPO, normalize_advantage=normalize, line_search_max_iter=1, accept_ratio=1.0)
    )
    batch = model._make_batch()
    raw, normalized = batch.advantages, normalize_advantages(batch.advantages)
    model.train()  # with this accept ratio no step is taken: the surrogate at the old policy is logged
    expected = (normalized if normalize else raw).mean().item()
    assert model.last_update.step_norm == 0.0
    assert model.last_update.policy_objective == pytest.approx(expected, abs=1e-5)
    assert abs(raw.mean().item()) > 0.01
