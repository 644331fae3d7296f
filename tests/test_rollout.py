"""The rollout loop, with SB3's own as the oracle."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize
from torch.distributions import kl_divergence

from sb3_trust import PPO
from tests.worlds import ACTION_SPACES, KINDS, LOOP, VECTOR, fill, model_of, on_reference, parameters, world

ARRAYS = ("actions", "rewards", "returns", "episode_starts", "values", "log_probs", "advantages")


def assert_same_buffers(a: RolloutBuffer, b: RolloutBuffer) -> None:
    observations = a.observations if isinstance(a.observations, dict) else {"": a.observations}
    others = b.observations if isinstance(b.observations, dict) else {"": b.observations}
    for key, array in observations.items():
        np.testing.assert_array_equal(array, others[key])
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_buffer_bit_for_bit(kind, n_envs):
    models, random_states = [], []
    for algorithm in (PPO, SB3PPO):
        models.append(fill(model_of(kind, algorithm, n_envs, **on_reference(algorithm))))
        random_states.append(th.get_rng_state())
    ours, theirs = models
    assert_same_buffers(ours.rollout_buffer, theirs.rollout_buffer)
    assert ours.rollout_buffer.episode_starts.sum() > 2  # episodes ended, some by a time limit
    assert ours.num_timesteps == theirs.num_timesteps
    assert list(ours.ep_info_buffer) and len(ours.ep_info_buffer) == len(theirs.ep_info_buffer)
    np.testing.assert_array_equal(ours._last_episode_starts, theirs._last_episode_starts)
    assert th.equal(*random_states)


def test_same_buffer_with_sampled_noise_and_normalisation():
    def normalized(algorithm):
        model = model_of("gsde", algorithm, sde_sample_freq=4)
        model.env = VecNormalize(model.env)
        model._vec_normalize_env = model.env
        return fill(model)

    ours, theirs = normalized(PPO), normalized(SB3PPO)
    assert_same_buffers(ours.rollout_buffer, theirs.rollout_buffer)
    np.testing.assert_array_equal(ours.env.obs_rms.mean, theirs.env.obs_rms.mean)


@pytest.mark.parametrize("kind", KINDS)
def test_kept_distributions_are_the_ones_that_acted(kind):
    model = fill(model_of(kind, PPO))
    kept = model._rollout.old_distribution.transpose(0, 1).reshape(model.n_steps * model.n_envs, -1)
    batch = model._make_batch()
    th.testing.assert_close(batch.old_distribution, kept)
    recomputed = model._policy_engine().distribution_parameters(batch)
    th.testing.assert_close(kept, recomputed, rtol=1e-4, atol=1e-5)


def test_distributions_are_kept_step_by_step_when_a_callback_changes_the_policy():
    class Widen(BaseCallback):
        def _on_step(self):
            if self.n_calls == 10:
                with th.no_grad():
                    self.model.policy.log_std += 1.0
            return True

    model = model_of("box", PPO, n_envs=1, n_steps=20)
    _, callback = model._setup_learn(100, Widen())
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    log_std = model._rollout.old_distribution.reshape(20, -1)[:, 3:]
    np.testing.assert_allclose(log_std[:10], 0.0, atol=1e-6)
    np.testing.assert_allclose(log_std[10:], 1.0, atol=1e-6)


def test_a_policy_that_overrides_forward_is_asked_for_its_distribution():
    class Shifted(ActorCriticPolicy):
        def forward(self, obs, deterministic=False):
            result = super().forward(obs, deterministic)
            self.action_dist.proba_distribution(th.zeros(len(obs), 3))  # leaves something else behind
            return result

    model = fill(PPO(Shifted, world(ACTION_SPACES["discrete"]), n_steps=16, seed=0))
    batch = model._make_batch()
    logits = model.policy.get_distribution(batch.observations).distribution
    old = th.distributions.Categorical(logits=batch.old_distribution)
    assert kl_divergence(old, logits).abs().max().item() < 1e-6


class Names(BaseCallback):
    """Keeps the names and some values that it finds at each step."""

    def __init__(self, stop_at=10**9):
        super().__init__()
        self.stop_at, self.seen, self.names = stop_at, [], []

    def _on_step(self):
        self.names.append(set(self.locals))
        keys = ("actions", "clipped_actions", "rewards", "dones", "values", "log_probs", "n_steps")
        self.seen.append({k: np.array(self.locals[k]) for k in keys})
        return self.n_calls < self.stop_at


def test_callbacks_find_what_they_find_in_sb3():
    found = []
    for algorithm in (PPO, SB3PPO):
        callback = Names()
        model_of("box", algorithm, **on_reference(algorithm)).learn(64, callback)
        found.append(callback)
    ours, theirs = found
    assert theirs.names[0] <= ours.names[0]
    for mine, other in zip(ours.seen, theirs.seen, strict=True):
        for key in mine:
            np.testing.assert_array_equal(mine[key], other[key], err_msg=key)


def test_a_callback_that_says_no_stops_at_once():
    counts = []
    for algorithm in (PPO, SB3PPO):
        model = model_of("box", algorithm)
        model.learn(1000, Names(stop_at=40))
        counts.append((model.num_timesteps, model.rollout_buffer.pos, model._n_updates))
    assert counts[0] == counts[1] and counts[0][1] == 39


def test_an_overridden_collect_rollouts_is_still_served():
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

    class Own(PPO):
        def collect_rollouts(self, *args, **kwargs):
            return OnPolicyAlgorithm.collect_rollouts(self, *args, **kwargs)

    own, ours = (model_of("box", kind, engine="autograd").learn(256) for kind in (Own, PPO))
    for p, q in zip(own.policy.parameters(), ours.policy.parameters(), strict=True):
        assert th.equal(p, q)
    assert own.last_update.kl == pytest.approx(ours.last_update.kl, rel=1e-4)


def test_a_foreign_buffer_class_is_read_through_its_get():
    class Reversed(RolloutBuffer):
        """Yields its samples in an order of its own."""

        def get(self, batch_size=None):
            for samples in super().get(batch_size):
                yield type(samples)(*(part.flip(0) for part in samples))

    model = fill(model_of("box", PPO, rollout_buffer_class=Reversed))
    batch = model._make_batch()
    th.testing.assert_close(batch.old_distribution, model._policy_engine().distribution_parameters(batch))
    model.train()
    assert model.last_update.kl > 0


def test_a_buffer_class_that_keeps_sb3s_order_is_sb3s():
    class Named(RolloutBuffer):
        def compute_returns_and_advantage(self, last_values, dones):
            super().compute_returns_and_advantage(last_values, dones)
            self.advantages *= 2

    ours, theirs = (
        model_of("box", a, rollout_buffer_class=Named, policy_kwargs=LOOP, **on_reference(a)).learn(256)
        for a in (PPO, SB3PPO)
    )
    assert th.equal(parameters(ours), parameters(theirs))


def test_a_second_update_from_a_rollout_starts_from_the_same_old_policy():
    model = fill(model_of("discrete", PPO))
    batch = model._make_batch()
    model.train()
    again = model._make_batch()
    assert th.equal(batch.old_distribution, again.old_distribution)
    model.train()
    exact = model._policy_engine().measure(batch, {"kl"}).kl.mean().item()
    assert model.last_update.kl == pytest.approx(exact, rel=1e-9)


def test_progress_never_turns_negative():
    seen = []

    def schedule(progress):
        seen.append(progress)
        return 1e-3

    PPO("MlpPolicy", world(ACTION_SPACES["box"], VECTOR), schedule, n_steps=64).learn(300)
    assert min(seen) == 0.0 and max(seen) == 1.0
