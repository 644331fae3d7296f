"""
REINFORCE, TRPO and PPO written as a textbook would: a reference to compare batches and seconds with.

A policy of two layers of 64 tanh units acts in one environment, a forward pass a step, in batches of whole
episodes; the advantage is the discounted return less the critic's value, normalised over the batch. Settings
are those of John Schulman's modular_rl; so is what the papers leave open: the line search asks for
improvement only, the penalty has a quadratic part beyond twice the target, and the return of an episode that
the time limit cuts off ends there. Everything is plain autograd in float32.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn
from torch.distributions import Categorical, kl_divergence
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from sb3_trust.errors import check_integer, reject

COLUMNS = (
    "method", "seed", "batch", "num_timesteps", "mean_return", "kl", "collect_seconds", "update_seconds",
)  # fmt: skip
ENV, BATCH_STEPS = "CartPole-v1", 10_000
GAMMA, LEARNING_RATE, CRITIC_STEPS = 0.99, 1e-3, 10
MAX_KL, DAMPING, CG_STEPS, CG_TOLERANCE, BACKTRACKS, ACCEPT_RATIO = 0.01, 1e-3, 10, 1e-10, 10, 0.1
CLIP, EPOCHS, MINIBATCH = 0.2, 10, 128
KL_TARGET, KL_FACTOR, CUTOFF_COEFFICIENT = 0.01, 1.5, 1000.0

Row = dict[str, Any]


def network(n_inputs: int, n_outputs: int) -> nn.Sequential:
    """Two hidden layers of 64 tanh units."""
    hidden = [nn.Linear(n_inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
    return nn.Sequential(*hidden, nn.Linear(64, n_outputs))


class Agent:
    """A policy, a critic, and what is kept between updates."""

    def __init__(self, n_inputs: int, n_actions: int) -> None:
        self.policy, self.critic = network(n_inputs, n_actions), network(n_inputs, 1)
        with th.no_grad():
            self.policy.get_parameter("4.weight").mul_(0.1)
        self.policy_optimizer = th.optim.Adam(self.policy.parameters(), LEARNING_RATE)
        self.critic_optimizer = th.optim.Adam(self.critic.parameters(), LEARNING_RATE)
        self.kl_coefficient = 1.0


@dataclass
class Batch:
    """Whole episodes, one after the other: ``states`` [n, d], the rest [n], but a return for each episode."""

    states: th.Tensor
    actions: th.Tensor
    returns: th.Tensor
    episode_returns: list[float]


# ---- acting ---------------------------------------------------------------------------------------------


def discounted(rewards: list[float]) -> list[float]:
    """The discounted sum of the rewards from each step to the episode's end."""
    backwards = itertools.accumulate(reversed(rewards), lambda total, reward: reward + GAMMA * total)
    return list(backwards)[::-1]


def collect(env: gym.Env, policy: nn.Module, n_steps: int) -> Batch:
    """Whole episodes until there are at least ``n_steps`` steps."""
    states: list[np.ndarray] = []
    actions, returns, episode_returns = [], [], []
    while len(states) < n_steps:
        state, _ = env.reset()
        rewards, ended = [], False
        while not ended:
            with th.no_grad():
                logits = policy(th.as_tensor(state, dtype=th.float32))
            action = Categorical(logits=logits).sample().item()
            states.append(state)
            actions.append(action)
            state, reward, terminated, truncated, _ = env.step(action)
            rewards.append(float(reward))
            ended = terminated or truncated
        returns += discounted(rewards)
        episode_returns.append(sum(rewards))
    inputs, targets = (th.as_tensor(np.array(x), dtype=th.float32) for x in (states, returns))
    return Batch(inputs, th.as_tensor(actions), targets, episode_returns)


# ---- the policy's updates -------------------------------------------------------------------------------


def log_probs(policy: nn.Module, batch: Batch) -> th.Tensor:
    """log pi(a|s) of the batch, [n]."""
    return Categorical(logits=policy(batch.states)).log_prob(batch.actions)


def frozen(policy: nn.Module, states: th.Tensor) -> Categorical:
    """The policy's distributions at these states, without a graph."""
    with th.no_grad():
        return Categorical(logits=policy(states))


def mean_kl(old: Categorical, policy: nn.Module, states: th.Tensor) -> th.Tensor:
    """KL(old || policy), averaged over states."""
    return kl_divergence(old, Categorical(logits=policy(states))).mean()


def reinforce(agent: Agent, batch: Batch, advantages: th.Tensor) -> None:
    """One step of Adam along the policy gradient."""
    loss = -(log_probs(agent.policy, batch) * advantages).mean()
    agent.policy_optimizer.zero_grad()
    loss.backward()
    agent.policy_optimizer.step()


def flat_gradient(output: th.Tensor, policy: nn.Module, create_graph: bool = False) -> th.Tensor:
    """The gradient in the policy's parameters as one vector; the graph is kept."""
    parameters = list(policy.parameters())
    gradients = th.autograd.grad(output, parameters, create_graph=create_graph, retain_graph=True)
    return th.cat([gradient.reshape(-1) for gradient in gradients])


def fisher_product(policy: nn.Module, states: th.Tensor) -> Callable[[th.Tensor], th.Tensor]:
    """v -> F v + damping v, F being the Hessian of the mean KL divergence where new and old are the same."""
    gradient = flat_gradient(mean_kl(frozen(policy, states), policy, states), policy, create_graph=True)
    return lambda vector: flat_gradient(gradient @ vector, policy) + DAMPING * vector


def conjugate_gradient(
    product: Callable[[th.Tensor], th.Tensor], b: th.Tensor, n_steps: int = CG_STEPS
) -> th.Tensor:
    """x with ``product(x) = b``, from x = 0."""
    x, residual, direction = th.zeros_like(b), b.clone(), b.clone()
    squared = residual @ residual
    for _ in range(n_steps):
        if squared < CG_TOLERANCE:
            break
        image = product(direction)
        length = squared / (direction @ image)
        x += length * direction
        residual -= length * image
        previous, squared = squared, residual @ residual
        direction = residual + squared / previous * direction
    return x


def trpo(agent: Agent, batch: Batch, advantages: th.Tensor) -> None:
    """A natural step to the edge of the trust region, halved until the surrogate has improved enough."""
    policy, old_log_probs = agent.policy, log_probs(agent.policy, batch).detach()

    def surrogate() -> th.Tensor:
        return ((log_probs(policy, batch) - old_log_probs).exp() * advantages).mean()

    before = surrogate()
    gradient = flat_gradient(before, policy)
    if not gradient.any():
        return
    product = fisher_product(policy, batch.states)
    direction = conjugate_gradient(product, gradient)
    step = direction * (2 * MAX_KL / (direction @ product(direction))).sqrt()
    start, expected = parameters_to_vector(policy.parameters()).detach(), gradient @ step
    for fraction in 0.5 ** np.arange(BACKTRACKS):
        vector_to_parameters(start + float(fraction) * step, policy.parameters())
        with th.no_grad():
            improvement = surrogate() - before
        if improvement > 0 and improvement > ACCEPT_RATIO * fraction * expected:
            return
    vector_to_parameters(start, policy.parameters())


def clipped_surrogate(ratio: th.Tensor, advantages: th.Tensor) -> th.Tensor:
    """PPO's objective for each sample, [n]."""
    return th.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)


def kl_penalty(kl: th.Tensor, coefficient: float) -> th.Tensor:
    """What a KL divergence costs: a linear part, and a quadratic one beyond twice the target."""
    return coefficient * kl + CUTOFF_COEFFICIENT * (kl - 2 * KL_TARGET).clamp(min=0) ** 2


def adapted(coefficient: float, kl: float) -> float:
    """The next update's coefficient of the penalty."""
    if kl > 1.3 * KL_TARGET:
        return coefficient * KL_FACTOR
    return coefficient / KL_FACTOR if kl < 0.7 * KL_TARGET else coefficient


def descend(agent: Agent, n_samples: int, loss_of: Callable[[th.Tensor], th.Tensor]) -> None:
    """Epochs of Adam over shuffled minibatches; ``loss_of`` gets the indices of one."""
    for _ in range(EPOCHS):
        for indices in th.randperm(n_samples).split(MINIBATCH):
            agent.policy_optimizer.zero_grad()
            loss_of(indices).backward()
            agent.policy_optimizer.step()


def ppo(agent: Agent, batch: Batch, advantages: th.Tensor) -> None:
    """PPO with the clipped objective."""
    old_log_probs = log_probs(agent.policy, batch).detach()

    def loss_of(indices: th.Tensor) -> th.Tensor:
        new = Categorical(logits=agent.policy(batch.states[indices]))
        ratio = (new.log_prob(batch.actions[indices]) - old_log_probs[indices]).exp()
        return -clipped_surrogate(ratio, advantages[indices]).mean()

    descend(agent, len(advantages), loss_of)


def ppo_penalty(agent: Agent, batch: Batch, advantages: th.Tensor) -> None:
    """PPO with an adaptive penalty on the KL divergence."""
    old = frozen(agent.policy, batch.states)
    old_log_probs = old.log_prob(batch.actions)

    def loss_of(indices: th.Tensor) -> th.Tensor:
        new = Categorical(logits=agent.policy(batch.states[indices]))
        ratio = (new.log_prob(batch.actions[indices]) - old_log_probs[indices]).exp()
        kl = kl_divergence(Categorical(logits=old.logits[indices]), new).mean()
        return kl_penalty(kl, agent.kl_coefficient) - (ratio * advantages[indices]).mean()

    descend(agent, len(advantages), loss_of)
    with th.no_grad():
        kl = mean_kl(old, agent.policy, batch.states).item()
    agent.kl_coefficient = adapted(agent.kl_coefficient, kl)


ALGORITHMS = {"trpo": trpo, "ppo": ppo, "ppopenalty": ppo_penalty, "reinforce": reinforce}


# ---- a run ----------------------------------------------------------------------------------------------


def update(agent: Agent, batch: Batch, algorithm: str) -> None:
    """The policy's update, then the critic's: some steps of Adam on the whole batch."""
    with th.no_grad():
        advantages = batch.returns - agent.critic(batch.states).squeeze(1)
    ALGORITHMS[algorithm](agent, batch, (advantages - advantages.mean()) / (advantages.std() + 1e-8))
    for _ in range(CRITIC_STEPS):
        agent.critic_optimizer.zero_grad()
        nn.functional.mse_loss(agent.critic(batch.states).squeeze(1), batch.returns).backward()
        agent.critic_optimizer.step()


def make(env_id: str) -> tuple[gym.Env, int, int]:
    """An environment, the size of its observations and the number of its actions."""
    env = gym.make(env_id)
    shape, actions = env.observation_space.shape, env.action_space
    if not (shape and len(shape) == 1 and isinstance(actions, spaces.Discrete) and actions.start == 0):
        raise reject("env_id", env_id, "an environment with observations [d] and discrete actions from 0")
    return env, shape[0], int(actions.n)


def train(algorithm: str, seed: int, batch_steps: int = BATCH_STEPS, env_id: str = ENV) -> Iterator[Row]:
    """
    Train without end.

    :param algorithm: one of ``ALGORITHMS``
    :param seed: of the networks, the actions and the environment
    :param batch_steps: steps of a batch, at least; its last episode is played to the end
    :param env_id: an environment with flat observations and discrete actions
    :return: a row of ``COLUMNS`` after each batch; ``kl`` is KL(old || new) of its update, and takes no part
        in ``update_seconds``
    :raises InvalidArgument: if an argument is none of these
    """
    if algorithm not in ALGORITHMS:
        raise reject("algorithm", algorithm, f"one of {', '.join(ALGORITHMS)}")
    check_integer("seed", seed, 0)
    check_integer("batch_steps", batch_steps, 2)
    env, n_inputs, n_actions = make(env_id)
    th.manual_seed(seed)
    env.reset(seed=seed)
    agent, num_timesteps = Agent(n_inputs, n_actions), 0
    for number in itertools.count(1):
        times = [time.perf_counter()]
        batch = collect(env, agent.policy, batch_steps)
        times.append(time.perf_counter())
        old = frozen(agent.policy, batch.states)
        times.append(time.perf_counter())
        update(agent, batch, algorithm)
        times.append(time.perf_counter())
        with th.no_grad():
            kl = mean_kl(old, agent.policy, batch.states).item()
        num_timesteps += len(batch.states)
        mean_return = round(float(np.mean(batch.episode_returns)), 2)
        seconds = round(times[1] - times[0], 3), round(times[3] - times[2], 3)
        values = (algorithm, seed, number, num_timesteps, mean_return, float(f"{kl:.4g}"), *seconds)
        yield dict(zip(COLUMNS, values, strict=True))
