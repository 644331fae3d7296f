"""PPO's options do what they say, on both engines alike, and nothing when they are off."""

import copy
import math

import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.utils import LinearSchedule

from sb3_trust import PPO, InvalidArgument, PPOPenalty
from sb3_trust.numerics.objectives import Differentiated
from tests.test_own_losses import WrittenOut, spo
from tests.twins import distance, pair, train
from tests.worlds import fill, identical, model_of, parameters, policy_parameters, state

SIZES = {"n_steps": 48, "batch_size": 32, "n_epochs": 4, "learning_rate": 3e-3}
BOTH = pytest.mark.parametrize("engine", ["autograd", "closed_form"])


OPTIONS = {
    "value_clip": {"clip_range_vf": 0.02, "value_clip": "max"},
    "dual_clip": {"dual_clip": 1.01},
    "kl_stop": {"target_kl": 1e-3, "kl_stop": "exact"},
    "max_kl": {"max_kl": 2e-3},
    "recompute_advantages": {"recompute_advantages": True},
    "rate by rollout": {"learning_rate_kl_target": 0.1},
    "rate by epoch": {"learning_rate_kl_target": 0.1, "learning_rate_kl_interval": "epoch"},
    "critic_learning_rate": {"critic_learning_rate": 1e-4},
    "critic_learning_rate falling": {"critic_learning_rate": "lin_1e-2"},
    "log_std_bounds": {"log_std_bounds": (-0.01, 0.01)},
    "objective": {"objective": WrittenOut()},
    "objective by autograd": {"objective": Differentiated(spo)},
}


def model_with(engine="auto", kind="box", algorithm=PPO, **kwargs):
    return model_of(kind, algorithm, engine=engine, **{**SIZES, **kwargs})


def trained(*args, **kwargs):
    model = fill(model_with(*args, **kwargs))
    np.random.seed(7)
    model.train()
    assert not model.last_update.rollback_reason
    return model


@pytest.mark.parametrize("option", OPTIONS)
def test_both_engines_do_the_same_and_something(option):
    closed, reference = pair("box", PPO, **{**SIZES, **OPTIONS[option]})
    assert type(closed._policy_engine()) is not type(reference._policy_engine())
    before = parameters(reference)
    closed._last_obs, closed._last_episode_starts = reference._last_obs, reference._last_episode_starts
    train(closed, reference)
    moved = float((parameters(reference) - before).norm())
    assert float((parameters(closed) - parameters(reference)).norm()) < 1e-5 * moved
    for name, value in vars(reference.last_update).items():
        if isinstance(value, float) and not math.isnan(value):
            assert getattr(closed.last_update, name) == pytest.approx(value, rel=1e-3, abs=1e-6), name
    plain = {key: value for key, value in OPTIONS[option].items() if key in ("clip_range_vf", "target_kl")}
    _, without = pair("box", PPO, **{**SIZES, **plain})
    train(without)
    if option == "rate by rollout":  # the first rollout is at the rate that was given
        assert closed.current_learning_rate == reference.current_learning_rate != 3e-3
    else:
        assert distance(parameters(reference), parameters(without)) > 1e-4


@BOTH
@pytest.mark.parametrize("algorithm", [PPO, PPOPenalty])
def test_a_bound_that_is_kept_anyway_changes_nothing(algorithm, engine):
    plain = trained(engine, algorithm=algorithm)
    bounded = trained(engine, algorithm=algorithm, max_kl=1e6, log_std_bounds=(-20.0, 20.0))
    assert identical(state(plain), state(bounded))
    assert bounded.last_update.step_fraction == 1.0 and math.isnan(plain.last_update.step_fraction)


@BOTH
@pytest.mark.parametrize("kind", ["box", "discrete", "multi_binary"])
@pytest.mark.parametrize("algorithm", [PPO, PPOPenalty])
def test_max_kl_takes_the_policy_back_along_its_step(algorithm, kind, engine):
    start = fill(model_with(engine, kind, algorithm))
    old = [distribution(start), *policy_parameters(start)]
    free, bounded = (trained(engine, kind, algorithm, max_kl=max_kl) for max_kl in (None, 1e-3))
    fraction = bounded.last_update.step_fraction
    assert 0 < fraction < 1 and free.last_update.kl > 1e-3
    measured = joint_kl(old[0], distribution(bounded, start))
    assert measured == pytest.approx(bounded.last_update.kl, rel=1e-3)
    assert 0.5e-3 < measured <= 1e-3 * (1 + 1e-4)
    for before, unbounded, after in zip(
        old[1:], policy_parameters(free), policy_parameters(bounded), strict=True
    ):
        th.testing.assert_close(after, before + fraction * (unbounded - before), rtol=1e-4, atol=1e-6)
    assert th.equal(bounded.policy.value_net.weight, free.policy.value_net.weight)
    assert "step_fraction" in bounded.last_update.log_items()


@BOTH
def test_what_adapts_goes_by_the_step_before_it_is_taken_back(engine):
    penalty = trained(engine, algorithm=PPOPenalty, target_kl=2e-3, max_kl=2e-3)
    assert penalty.last_update.kl <= 2e-3 < 3e-3 < penalty.last_update.kl_of_full_step
    assert penalty.kl_coef == 2.0
    clip = trained(engine, learning_rate_kl_target=2e-3, max_kl=2e-3)
    assert clip.last_update.kl_of_full_step > 4e-3
    assert clip.current_learning_rate == pytest.approx(3e-3 / 1.5)


def distribution(model, on=None):
    """The torch distribution of a model's policy at the states of a rollout."""
    buffer = (on or model).rollout_buffer.observations
    observations = th.as_tensor(buffer.reshape(-1, 4))
    with th.no_grad():
        return copy.copy(model.policy.get_distribution(observations).distribution)


def joint_kl(before, after):
    kl = th.distributions.kl_divergence(before, after).double()
    return float(kl.reshape(len(kl), -1).sum(1).mean())


@BOTH
def test_exact_stop_ends_after_the_first_epoch_above_the_target(engine):
    kls = [trained(engine, n_epochs=n).last_update.kl for n in range(1, 7)]
    assert sorted(kls) == kls
    target = 0.5 * (kls[2] + kls[3]) / 1.5
    stopped = trained(engine, n_epochs=6, target_kl=target, kl_stop="exact")
    assert stopped._n_updates == 4
    assert stopped.last_update.kl == pytest.approx(kls[3], rel=1e-6)
    assert trained(engine, n_epochs=6, target_kl=1.0, kl_stop="exact")._n_updates == 6


@BOTH
@pytest.mark.parametrize("kind", ["box", "dict"])
def test_advantages_are_those_that_sb3_estimates_from_the_critic_as_it_is(engine, kind, monkeypatch):
    if kind == "dict" and engine == "closed_form":
        pytest.skip("not served by the closed form")
    model = fill(model_with(engine, kind, n_epochs=3, recompute_advantages=True, gae_lambda=0.9))
    buffer, last = copy.deepcopy(model.rollout_buffer), model._last_obs
    made = []
    renew = PPO._with_new_advantages

    def spy(self, descent, batch):
        result = renew(self, descent, batch)
        tensor, _ = model.policy.obs_to_tensor(last)
        flat = model.policy.predict_values(batch.observations).detach().numpy()
        again = copy.deepcopy(buffer)
        again.values[...] = flat.reshape(buffer.n_envs, -1).T
        again.compute_returns_and_advantage(
            model.policy.predict_values(tensor).detach(), self._last_episode_starts
        )
        made.append((result, again))
        return result

    monkeypatch.setattr(PPO, "_with_new_advantages", spy)
    model.train()
    assert len(made) == 2
    for batch, expected in made:
        for ours, theirs in ((batch.advantages, expected.advantages), (batch.returns, expected.returns)):
            np.testing.assert_allclose(ours.numpy(), theirs.T.reshape(-1), rtol=1e-4, atol=1e-4)
    first, second = (expected.advantages for _, expected in made)
    assert abs(first - second).max() > 1e-3


def test_advantages_of_a_single_epoch_are_not_estimated_anew():
    options = {"n_epochs": 1}
    plain, renewed = (trained(recompute_advantages=flag, **options) for flag in (False, True))
    assert identical(state(plain), state(renewed))


@BOTH
@pytest.mark.parametrize("interval", ["rollout", "epoch"])
def test_the_learning_rate_moves_towards_its_target_kl(engine, interval, tmp_path):
    options = {"learning_rate_kl_interval": interval, "learning_rate": 1e-3}
    moves = 1 if interval == "rollout" else SIZES["n_epochs"]
    slow = trained(engine, learning_rate_kl_target=1e-9, **options)
    fast = trained(engine, learning_rate_kl_target=1e3, **options)
    assert slow.current_learning_rate == pytest.approx(1e-3 / 1.5**moves)
    assert fast.current_learning_rate == pytest.approx(1e-3 * 1.5**moves)
    assert slow.learning_rate == 1e-3
    rates = []
    for _ in range(3):
        fill(fast).train()
        rates.append(fast.logger.name_to_value["train/learning_rate"])
    assert rates[0] == pytest.approx(min(1e-3 * 1.5**moves, 1e-2)) and rates == sorted(rates)
    assert fast.current_learning_rate <= 1e-2
    fast.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model")
    assert loaded.current_learning_rate == fast.current_learning_rate
    assert PPO.load(tmp_path / "model", learning_rate=1e-4).current_learning_rate == 1e-4


def test_an_undone_update_leaves_the_learning_rate_alone():
    model = fill(model_with(learning_rate_kl_target=1e-9, learning_rate_kl_interval="epoch"))
    model.rollout_buffer.advantages[0] = math.nan
    with pytest.warns(RuntimeWarning, match="rolled back"):
        model.train()
    assert model.current_learning_rate == model.policy.optimizer.param_groups[0]["lr"] == 3e-3


@pytest.mark.parametrize("rate", [LinearSchedule(1e-3, 1e-4, 1.0), 1.0, 1e-6])
def test_only_a_constant_rate_within_the_bounds_adapts(rate):
    with pytest.raises(InvalidArgument, match=r"learning_rate.*constant in \[1e-05, 0.01\]"):
        model_with(learning_rate=rate, learning_rate_kl_target=0.01)


@BOTH
@pytest.mark.parametrize("algorithm", [PPO, PPOPenalty])
def test_the_critic_alone_learns_at_its_own_rate(algorithm, engine, tmp_path):
    options = {"algorithm": algorithm, "max_grad_norm": math.inf}  # the norm is of both
    plain, slow = trained(engine, **options), trained(engine, critic_learning_rate=3e-5, **options)
    for actor, same in zip(policy_parameters(plain), policy_parameters(slow), strict=True):
        th.testing.assert_close(actor, same, rtol=1e-5, atol=1e-7)
    start = fill(model_with(engine, **options)).policy.value_net.weight.detach()
    steps = [float((model.policy.value_net.weight.detach() - start).norm()) for model in (plain, slow)]
    assert 0 < steps[1] < 0.05 * steps[0]
    assert slow.logger.name_to_value["train/critic_learning_rate"] == 3e-5
    (group,) = slow.policy.optimizer.param_groups
    assert group["lr"] == 3e-3 and len(group["params"]) == len(list(slow.policy.parameters()))
    if algorithm is PPO:
        slow.save(tmp_path / "model")
        stable_baselines3.PPO.load(tmp_path / "model", device="cpu")


@BOTH
@pytest.mark.parametrize("kind", ["box", "gsde"])
def test_log_std_stays_within_its_bounds(engine, kind):
    if kind == "gsde" and engine == "closed_form":
        pytest.skip("not served by the closed form")
    init = -2.0 if kind == "gsde" else 0.0
    bounds = (init - 0.02, init + 0.03)
    free, held = (
        trained(engine, kind, learning_rate=0.03, log_std_bounds=b, policy_kwargs={"log_std_init": init})
        for b in (None, list(bounds))
    )
    outside = (free.policy.log_std < bounds[0]) | (free.policy.log_std > bounds[1])
    assert outside.any()
    assert held.policy.log_std.min().item() >= bounds[0] - 1e-7
    assert held.policy.log_std.max().item() <= bounds[1] + 1e-7


def test_bounds_are_refused_where_there_is_no_log_std():
    with pytest.raises(InvalidArgument, match=r"log_std_bounds.*without a Gaussian"):
        model_with(kind="discrete", log_std_bounds=(-1.0, 1.0))
