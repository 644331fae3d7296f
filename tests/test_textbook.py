"""The textbook's loop computes what it says, and its runner runs what is missing."""

import csv
import sys
from itertools import islice

import gymnasium as gym
import pytest
import torch as th
from torch.distributions import Categorical
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from benchmarks import textbook, textbook_loop
from benchmarks.textbook import Run, first_batch, read, run_all, summary, write
from benchmarks.textbook_loop import (
    ALGORITHMS,
    COLUMNS,
    DAMPING,
    GAMMA,
    MAX_KL,
    Agent,
    Batch,
    adapted,
    clipped_surrogate,
    collect,
    conjugate_gradient,
    descend,
    discounted,
    fisher_product,
    flat_gradient,
    frozen,
    kl_penalty,
    mean_kl,
    train,
    update,
)
from sb3_trust.errors import InvalidArgument

N_INPUTS, N_ACTIONS = 3, 3


def tiny_policy():
    """A policy of 23 parameters in float64."""
    layers = (
        th.nn.Linear(N_INPUTS, 2),
        th.nn.Tanh(),
        th.nn.Linear(2, 2),
        th.nn.Tanh(),
        th.nn.Linear(2, N_ACTIONS),
    )
    return th.nn.Sequential(*layers).double()


def random_batch(n=400):
    return Batch(th.randn(n, N_INPUTS), th.randint(N_ACTIONS, (n,)), th.randn(n), [])


# ---- mathematics ----------------------------------------------------------------------------------------


def at(policy, states, vector):
    """The policy's distributions with other parameters."""
    parameters, start = {}, 0
    for name, value in policy.named_parameters():
        parameters[name] = vector[start : start + value.numel()].view_as(value)
        start += value.numel()
    return Categorical(logits=functional_call(policy, parameters, states))


def test_the_fisher_product_is_that_of_the_hessian_and_of_the_scores():
    policy, states = tiny_policy(), th.randn(7, N_INPUTS).double()
    old, theta = frozen(policy, states), parameters_to_vector(policy.parameters()).detach()
    hessian = th.autograd.functional.hessian(
        lambda vector: th.distributions.kl_divergence(old, at(policy, states, vector)).mean(), theta
    )
    scores = th.autograd.functional.jacobian(lambda vector: at(policy, states, vector).logits, theta)
    expected_squares = th.einsum("na,nai,naj->ij", old.probs, scores, scores) / len(states)
    th.testing.assert_close(expected_squares, hessian)
    assert hessian.diagonal().max() > 1e-3
    product = fisher_product(policy, states)
    matrix = th.stack([product(unit) for unit in th.eye(len(theta)).double()])
    th.testing.assert_close(matrix, hessian + DAMPING * th.eye(len(theta)).double())


def test_conjugate_gradients_solve_the_system():
    root = th.randn(8, 8).double()
    matrix, b = root @ root.T + th.eye(8), th.randn(8).double()
    expected = th.linalg.solve(matrix, b)
    th.testing.assert_close(conjugate_gradient(matrix.mv, b), expected, rtol=1e-4, atol=1e-4)
    one_step = conjugate_gradient(matrix.mv, b, n_steps=1)
    th.testing.assert_close(one_step, b * (b @ b) / (b @ matrix @ b))


def test_natural_directions_are_those_of_a_dense_solve():
    policy, states = tiny_policy(), th.randn(50, N_INPUTS).double()
    actions, advantages = th.randint(N_ACTIONS, (50,)), th.randn(50).double()
    gradient = flat_gradient(
        (Categorical(logits=policy(states)).log_prob(actions) * advantages).mean(), policy
    )
    product = fisher_product(policy, states)
    matrix = th.stack([product(unit) for unit in th.eye(len(gradient)).double()])
    direction = conjugate_gradient(product, gradient, n_steps=60)
    th.testing.assert_close(direction, th.linalg.solve(matrix, gradient), rtol=1e-2, atol=1e-2)


def test_returns_are_discounted_to_the_end_of_the_episode():
    assert discounted([1.0, 0.0, 2.0]) == [1 + 2 * GAMMA**2, 2 * GAMMA, 2.0]


def test_the_clipped_surrogate_takes_the_worse_side():
    ratio, advantages = th.tensor([1.5, 0.5, 1.5, 0.5, 1.1]), th.tensor([1.0, 1.0, -1.0, -1.0, 2.0])
    assert clipped_surrogate(ratio, advantages).tolist() == pytest.approx([1.2, 0.5, -1.5, -0.8, 2.2])


def test_the_penalty_is_quadratic_beyond_twice_the_target():
    assert kl_penalty(th.tensor(0.015), 3.0).item() == pytest.approx(0.045)
    assert kl_penalty(th.tensor(0.03), 3.0).item() == pytest.approx(0.09 + 1000 * 0.01**2)


@pytest.mark.parametrize(("kl", "factor"), [(0.0131, 1.5), (0.0129, 1.0), (0.0071, 1.0), (0.0069, 1 / 1.5)])
def test_the_coefficient_follows_the_divergence(kl, factor):
    assert adapted(2.0, kl) == pytest.approx(2.0 * factor)


def test_policies_start_close_to_uniform():
    last = Agent(N_INPUTS, N_ACTIONS).policy[4].weight
    assert 0.005 < last.abs().max() <= 0.1 / 8  # of torch's 1/sqrt(64)


# ---- updates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_updates_improve_the_surrogate(algorithm):
    agent, batch = Agent(N_INPUTS, N_ACTIONS), random_batch()
    advantages = (batch.actions == (batch.states[:, 0] > 0)).float()
    advantages -= advantages.mean()
    old = frozen(agent.policy, batch.states)
    ALGORITHMS[algorithm](agent, batch, advantages)
    new = frozen(agent.policy, batch.states)
    ratio = (new.log_prob(batch.actions) - old.log_prob(batch.actions)).exp()
    kl = mean_kl(old, agent.policy, batch.states).item()
    assert (ratio * advantages).mean() > 1e-3
    low, high = {
        "trpo": (0.8 * MAX_KL, 1.2 * MAX_KL), "ppo": (0.01, 0.3),
        "ppopenalty": (0.01, 0.05), "reinforce": (1e-5, 1e-3),
    }[algorithm]  # fmt: skip
    assert low < kl < high
    assert agent.kl_coefficient == (adapted(1.0, kl) if algorithm == "ppopenalty" else 1.0)
    if algorithm == "ppopenalty":
        assert agent.kl_coefficient == 1.5


def test_reinforce_ascends_by_one_step_of_adam():
    agent, batch, advantages = Agent(N_INPUTS, N_ACTIONS), random_batch(), th.randn(400)
    before = parameters_to_vector(agent.policy.parameters()).detach()
    objective = (Categorical(logits=agent.policy(batch.states)).log_prob(batch.actions) * advantages).mean()
    gradient = flat_gradient(objective, agent.policy)
    ALGORITHMS["reinforce"](agent, batch, advantages)
    step = parameters_to_vector(agent.policy.parameters()).detach() - before
    # the first step of Adam is the learning rate, with the gradient's sign
    large = gradient.abs() > 1e-5
    th.testing.assert_close(step[large], 1e-3 * gradient[large].sign(), rtol=1e-2, atol=1e-5)


def test_advantages_are_normalised_and_the_critic_is_fitted_after_the_policy(monkeypatch):
    agent, batch = Agent(N_INPUTS, N_ACTIONS), random_batch()
    values = agent.critic(batch.states).squeeze(1).detach()
    given = []
    monkeypatch.setitem(ALGORITHMS, "ppo", lambda agent, batch, advantages: given.append(advantages))
    update(agent, batch, "ppo")
    raw = batch.returns - values
    th.testing.assert_close(given[0], (raw - raw.mean()) / raw.std())
    assert agent.critic_optimizer.state[agent.critic[0].weight]["step"] == 10
    after = batch.returns - agent.critic(batch.states).squeeze(1)
    assert (after**2).mean() < (raw**2).mean()


def test_each_sample_is_in_one_minibatch_an_epoch():
    agent, seen = Agent(N_INPUTS, N_ACTIONS), []

    def loss_of(indices):
        seen.append(indices)
        return agent.policy(th.ones(N_INPUTS)).sum()

    descend(agent, 300, loss_of)
    assert [len(indices) for indices in seen] == [128, 128, 44] * 10
    epochs = th.cat(seen).view(10, 300)
    assert th.equal(epochs.sort(1).values, th.arange(300).expand(10, 300))
    assert not th.equal(epochs[0], epochs[1])


def test_a_step_without_improvement_is_taken_back(monkeypatch):
    monkeypatch.setattr(textbook_loop, "ACCEPT_RATIO", 1e3)
    agent, batch = Agent(N_INPUTS, N_ACTIONS), random_batch()
    before = parameters_to_vector(agent.policy.parameters()).clone()
    ALGORITHMS["trpo"](agent, batch, th.randn(400))
    assert th.equal(parameters_to_vector(agent.policy.parameters()), before)


# ---- runs -----------------------------------------------------------------------------------------------


def test_batches_are_whole_episodes():
    env = gym.make("CartPole-v1")
    env.reset(seed=0)
    batch = collect(env, Agent(4, 2).policy, 200)
    lengths = [int(length) for length in batch.episode_returns]  # a reward of 1 a step
    assert sum(lengths) == len(batch.states) == len(batch.actions) == len(batch.returns)
    assert sum(lengths[:-1]) < 200 <= sum(lengths)
    expected = [r for length in lengths for r in discounted([1.0] * length)]
    assert batch.returns.tolist() == pytest.approx(expected)
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    assert batch.states[starts].abs().max() <= 0.05  # where CartPole starts


def untimed(rows):
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_runs_repeat_and_record_their_batches(algorithm):
    first, second = (list(islice(train(algorithm, 3, 300), 2)) for _ in range(2))
    assert untimed(first) == untimed(second)
    assert [row["batch"] for row in first] == [1, 2] and tuple(first[0]) == COLUMNS
    assert 300 <= first[0]["num_timesteps"] <= first[1]["num_timesteps"] - 300
    assert all(row["kl"] > 0 and row["collect_seconds"] > 0 and row["update_seconds"] > 0 for row in first)
    assert untimed([next(train(algorithm, 4, 300))]) != untimed(first[:1])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("sac", 0), "`algorithm` must be one of trpo"),
        (("ppo", -1), "`seed` must be"),
        (("ppo", 0, 1), "`batch_steps` must be"),
        (("ppo", 0, 100, "Pendulum-v1"), "`env_id` must be .* discrete actions"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, match):
    with pytest.raises(InvalidArgument, match=match):
        next(train(*arguments))


def rows_of(method, seed, returns):
    fixed = {"method": method, "seed": seed, "kl": 0.01, "collect_seconds": 1.0, "update_seconds": 0.25}
    return [
        {**fixed, "batch": n, "num_timesteps": 100 * n, "mean_return": r} for n, r in enumerate(returns, 1)
    ]


def test_runs_end_some_batches_after_the_goal():
    returns = [100.0, 401.0, *[300.0] * 30]
    rows = rows_of("ppo", 0, returns)
    until = Run("ppo", 0, 100, until_goal=True)
    assert first_batch(rows) == 2 and first_batch(rows[:1]) is None
    assert [until.complete(rows[:n]) for n in (21, 22, 32)] == [False, True, True]
    assert [Run("ppo", 0, 10, True).complete(rows[:n]) for n in (9, 10)] == [False, True]
    assert [Run("ppo", 0, 30, False).complete(rows[:n]) for n in (29, 30)] == [False, True]
    assert not until.complete(rows_of("ppo", 0, [100.0] * 99)) and until.complete(
        rows_of("ppo", 0, [1.0] * 100)
    )


def test_the_summary_counts_batches_and_seconds():
    runs = {("ppo", s): rows_of("ppo", s, [9.0] * (s + 4) + [410.0, 440.0, 460.0]) for s in range(3)}
    runs["reinforce", 0] = rows_of("reinforce", 0, [9.0] * 5)
    _, _, ppo, reinforce = summary(runs).splitlines()
    cells = ["ppo", "3", "3", "6 (5 to 7)", "6", "3", "440", "0.0100", "0.0100", "80", "100", "400"]
    assert ppo.strip("| ").split(" | ") == cells
    assert reinforce.strip("| ").split(" | ")[:7] == ["reinforce", "1", "0", "-", "0", "0", "-"]


def test_only_what_is_missing_is_run(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.csv"
    kept = rows_of("trpo", 0, [20.0, 30.0])
    write(results, {("trpo", 1): rows_of("trpo", 1, [20.0]), ("trpo", 0): kept})
    options = ["--algo", "trpo", "--seed", "0", "1", "--batches", "2", "--batch-steps", "100"]
    options += ["--results", str(results), "--processes", "1"]
    monkeypatch.setattr(sys, "argv", ["textbook", *options])
    textbook.main()
    printed = capsys.readouterr().out.splitlines()
    rows = list(csv.DictReader(results.open()))
    assert [(row["seed"], row["batch"]) for row in rows] == [("0", "1"), ("0", "2"), ("1", "1"), ("1", "2")]
    assert [float(row["mean_return"]) for row in rows[:2]] == [20.0, 30.0]  # not run again
    assert untimed(rows[2:]) == untimed(
        [{name: str(value) for name, value in row.items()} for row in islice(train("trpo", 1, 100), 2)]
    )
    assert printed[0] == ",".join(COLUMNS) and len(printed) == 1 + 4 + 3
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
    monkeypatch.setattr(textbook, "write", None)  # would be called
    runs = [Run("trpo", seed, 2, until_goal=True) for seed in (0, 1)]
    assert run_all(runs, results, 1) == read(results)


def test_results_of_other_batches_are_kept_apart(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["textbook", "--all", "--batch-steps", "100"])
    with pytest.raises(SystemExit):
        textbook.main()
    assert "needs --results" in capsys.readouterr().err
