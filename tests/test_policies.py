"""Policies out of the ordinary: frozen parts, forbidden actions, buffers and optimizers of their own."""

import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_trust import NPG, PPO, REINFORCE, TRPO, PPOPenalty
from tests.test_faults import diverge_at_step
from tests.worlds import ACTION_SPACES, LOOP, fill, identical, model_of, parameters, state, world

ALGORITHMS = [REINFORCE, NPG, TRPO, PPO, PPOPenalty]
ACTOR = ("mlp_extractor.policy_net", "action_net", "log_std")


def frozen(algorithm, part, **kwargs):
    model = model_of("box", algorithm, ent_coef=0.01, **kwargs)
    for name, parameter in model.policy.named_parameters():
        actor = name.startswith(ACTOR)
        if {"std": name == "log_std", "actor": actor, "critic": not actor}[part]:
            parameter.requires_grad_(False)
    return model


@pytest.mark.parametrize("part", ["std", "actor", "critic"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_frozen_stays_and_the_rest_learns(algorithm, part):
    model = frozen(algorithm, part)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(256)
    for old, parameter in zip(before, model.policy.parameters(), strict=True):
        assert th.equal(old, parameter) == (not parameter.requires_grad)
    assert (model.last_update.kl > 1e-8) == (part != "actor") and model.n_rollbacks == 0


@pytest.mark.parametrize("part", ["std", "actor", "critic"])
def test_frozen_ppo_is_sb3s(part):
    ours, theirs = (
        frozen(algorithm, part, policy_kwargs=LOOP).learn(256) for algorithm in (PPO, stable_baselines3.PPO)
    )
    assert th.equal(parameters(ours), parameters(theirs))


class Forbidding(ActorCriticPolicy):
    """Never takes the first action: its logit is minus infinity."""

    def _get_action_dist_from_latent(self, latent_pi):
        logits = self.action_net(latent_pi)
        forbidden = th.zeros_like(logits)
        forbidden[:, 0] = -th.inf
        return self.action_dist.proba_distribution(action_logits=logits + forbidden)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_forbidden_actions_do_not_stop_learning(algorithm):
    model = algorithm(
        Forbidding, world(ACTION_SPACES["discrete"]), n_steps=64, batch_size=64, seed=0, ent_coef=0.01
    )
    before = parameters(model)
    model.learn(3 * 128)
    assert model.n_rollbacks == 0 and 0 < model.last_update.kl < 0.1
    assert not th.equal(before, parameters(model))
    assert (model.rollout_buffer.actions != 0).all()


def test_forbidden_actions_leave_ppo_sb3s():
    ours, theirs = (
        algorithm(
            Forbidding,
            world(ACTION_SPACES["discrete"]),
            n_steps=64,
            batch_size=64,
            seed=0,
            policy_kwargs=LOOP,
        ).learn(256)
        for algorithm in (PPO, stable_baselines3.PPO)
    )
    assert th.equal(parameters(ours), parameters(theirs))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_infinity_in_a_buffer_may_be_there_on_purpose(algorithm):
    class Masked(BaseFeaturesExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space, 4)
            self.register_buffer("mask", th.triu(th.full((4, 4), -th.inf), 1))

        def forward(self, observations):
            return observations @ th.softmax(self.mask, -1)

    model = model_of("box", algorithm, policy_kwargs={"features_extractor_class": Masked}).learn(256)
    assert model.n_rollbacks == 0 and model.last_update.kl > 0


class Counting(th.optim.SGD):
    """Keeps a number in its group and a list in its state."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            for parameter in group["params"]:
                self.state[parameter].setdefault("history", []).append(group["k"])
        return super().step(closure)


@pytest.mark.parametrize("algorithm", [PPO, PPOPenalty])
def test_whatever_an_optimizer_keeps_is_put_back(algorithm):
    kwargs = {"optimizer_class": Counting, "optimizer_kwargs": {"momentum": 0.9}}
    model = fill(model_of("box", algorithm, policy_kwargs=kwargs))
    model.train()
    fill(model)
    before, optimizer = state(model), model.policy.optimizer
    kept = [
        (group["k"], len(optimizer.state[p]["history"]))
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    diverge_at_step(model, 3)
    assert identical(before, state(model))
    after = [
        (group["k"], len(optimizer.state[p]["history"]))
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert kept == after and kept[0][0] > 0
