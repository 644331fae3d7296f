"""
Random updates of TRPO: random spaces, policies, settings and scales of rewards, on either engine. After each,
KL(old || new) is measured from copies of the policy in float64, by torch.distributions alone, and held
against the bound.

    python benchmarks/random_updates.py --updates 10000 --processes 2    # writes results/random_updates.csv
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import time
import warnings
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_trust import TRPO

RESULTS = Path(__file__).parent / "results" / "random_updates.csv"
UPDATES_OF_A_MODEL = 5
CHUNK = 500
# rounding: the library evaluates networks in float32
RELATIVE, ABSOLUTE = 1e-4, 1e-8
Distributions = list[th.distributions.Distribution]
ACTIVATIONS = (th.nn.Tanh, th.nn.ReLU, th.nn.ELU, th.nn.LeakyReLU)


class Bandit(gym.Env):
    """Random observations and a smooth reward of either sign, at any scale; episodes of 11 steps."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, scale: float) -> None:
        self.observation_space, self.action_space, self.scale = observation_space, action_space, scale

    def _observe(self) -> Any:
        self._observation = self.observation_space.sample()
        return self._observation

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """Start an episode."""
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._step = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """A reward for what is done in a state, and another state."""
        first = float(np.asarray(self._observation, np.float64).reshape(-1)[0])
        reward = self.scale * math.sin(first + float(np.asarray(action, np.float64).sum()))
        self._step += 1
        return self._observe(), reward, self._step % 22 == 11, self._step % 22 == 0, {}


class SharedLayer(BaseFeaturesExtractor):
    """A layer that policy and critic may share."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, 8)
        self.layer = th.nn.Linear(spaces.flatdim(observation_space), 8)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Its features."""
        return th.tanh(self.layer(observations.flatten(1)))


@dataclass
class Case:
    """A model to be updated, in numbers and names."""

    observation_space: spaces.Space
    action_space: spaces.Space
    reward_scale: float
    n_envs: int
    policy_kwargs: dict[str, Any]
    arguments: dict[str, Any]


def draw_case(rng: np.random.Generator) -> Case:
    """A random model."""

    def pick(*options: Any) -> Any:
        return options[rng.integers(len(options))]

    def log_uniform(low: float, high: float) -> float:
        return float(10 ** rng.uniform(math.log10(low), math.log10(high)))

    actions = pick("box", "discrete", "multi_discrete", "multi_binary", "gsde")
    size = int(rng.integers(1, 5))
    observation_space = pick(
        spaces.Box(-pick(0.1, 1.0, 5.0), 1.0, (int(rng.integers(1, 9)),), pick(np.float32, np.float64)),
        spaces.Discrete(int(rng.integers(2, 9))),
        spaces.MultiDiscrete(rng.integers(2, 5, int(rng.integers(1, 4)))),
        spaces.MultiBinary(int(rng.integers(1, 6))),
    )
    action_space = {
        "discrete": spaces.Discrete(size + 1),
        "multi_discrete": spaces.MultiDiscrete(rng.integers(2, 5, size)),
        "multi_binary": spaces.MultiBinary(size),
    }.get(actions, spaces.Box(-1.0, 1.0, (size,), np.float32))
    gaussian, gsde = actions in ("box", "gsde"), actions == "gsde"
    layers = [int(2 ** rng.integers(0, 6))] * int(rng.integers(0, 4))
    policy_kwargs: dict[str, Any] = {"net_arch": {"pi": layers, "vf": layers}}
    policy_kwargs["activation_fn"] = pick(*ACTIVATIONS)
    closed_form = not gsde and pick(True, True, False)
    if not closed_form and pick(True, False):
        policy_kwargs["features_extractor_class"] = SharedLayer
        policy_kwargs["share_features_extractor"] = pick(True, False)
    if gaussian:
        policy_kwargs["log_std_init"] = float(pick(0.0, 0.0, rng.uniform(-3.0, 1.0)))
    squashed = gsde and pick(True, False)
    if gsde:
        policy_kwargs["squash_output"] = squashed
        policy_kwargs |= {name: pick(True, False) for name in ("use_expln", "full_std")}
    bounds, start = None, policy_kwargs.get("log_std_init", 0.0)
    if gaussian and pick(True, False):
        bounds = (start - log_uniform(0.01, 3.0), start + log_uniform(0.01, 3.0))
    damping_rule = pick("fixed", "adaptive")
    arguments = {
        "engine": "closed_form" if closed_form and layers else "autograd",
        "use_sde": gsde,
        "n_steps": int(rng.integers(8, 49)),
        "batch_size": int(2 ** rng.integers(2, 7)),
        "target_kl": log_uniform(1e-4, 0.3),
        "cg_damping": pick(log_uniform(1e-4, 1.0), 0.0 if damping_rule == "fixed" else 1.0),
        "cg_max_steps": int(rng.integers(1, 21)),
        "damping_rule": damping_rule,
        "accept_ratio": float(pick(0.0, 0.1, rng.uniform(0.0, 1.0))),
        "line_search_shrinking_factor": float(rng.uniform(0.3, 0.95)),
        "line_search_max_iter": int(rng.integers(1, 16)),
        "sub_sampling_factor": pick(1, 2, 5, 100),
        "ent_coef": 0.0 if squashed else pick(0.0, log_uniform(1e-4, 0.1)),
        "kl_statistic": pick("mean", "max"),
        "max_chunk": pick(None, None, int(rng.integers(1, 40))),
        "log_std_bounds": bounds,
        "n_critic_updates": int(rng.integers(0, 6)),
        "learning_rate": log_uniform(1e-5, 0.1),
        "critic_learning_rate": pick(None, log_uniform(1e-5, 0.1)),
        "normalize_advantage": pick(True, True, False),
        "gamma": float(pick(0.99, rng.uniform(0.0, 1.0))),
        "seed": int(rng.integers(2**31)),
    }
    scale, n_envs = log_uniform(1e-3, 1e6), int(rng.integers(1, 4))
    return Case(observation_space, action_space, scale, n_envs, policy_kwargs, arguments)


def twin_of(policy: Any) -> Any:
    """Another policy of the same shape, in float64."""
    shared = policy.share_features_extractor  # not among the parameters that SB3 gives
    return type(policy)(**policy._get_constructor_parameters(), share_features_extractor=shared).double()


def action_distributions(policy: Any, twin: Any, observations: np.ndarray) -> Distributions:
    """The policy's distributions at these states, from a copy of its parameters in float64."""
    twin.load_state_dict(policy.state_dict())
    twin.set_training_mode(False)
    inputs: Any = preprocess_obs(th.as_tensor(observations), twin.observation_space, twin.normalize_images)
    extractor = twin.features_extractor if twin.share_features_extractor else twin.pi_features_extractor
    with th.no_grad():
        latent = twin.mlp_extractor.forward_actor(extractor(inputs.double()))
        found = twin._get_action_dist_from_latent(latent).distribution
    return found if isinstance(found, list) else [found]


def divergence(old: Distributions, new: Distributions) -> th.Tensor:
    """KL(old || new) at each state, summed over action dimensions, [n]."""
    pieces = [th.distributions.kl_divergence(p, q) for p, q in zip(old, new, strict=True)]
    return sum(piece.reshape(len(piece), -1).sum(1) for piece in pieces)  # type: ignore[return-value]


@dataclass
class Counts:
    """What a number of updates came to; ratios are of the KL divergence and its bound, in accepted steps."""

    updates: int = 0
    accepted: int = 0
    rejected: int = 0
    rolled_back: int = 0
    bound_broken: int = 0
    non_finite: int = 0
    largest_ratio: float = 0.0
    median_ratio: float = 0.0
    seconds: float = 0.0
    # not written: the cases that went wrong, and all ratios
    wrong: list[str] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """What is written."""
        return {name: value for name, value in asdict(self).items() if name not in ("wrong", "ratios")}


def update(model: TRPO, twin: Any, case: Case, counts: Counts) -> None:
    """One rollout and update, counted."""
    _, callback = model._setup_learn(10**6, reset_num_timesteps=False)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    states = model.rollout_buffer.observations
    states = states.reshape(-1, *states.shape[2:]).copy()
    old = action_distributions(model.policy, twin, states)
    rollbacks = model.n_rollbacks
    model.train()
    kl = divergence(old, action_distributions(model.policy, twin, states))
    bounded = (kl.max() if model.kl_statistic == "max" else kl.mean()).item()
    target = case.arguments["target_kl"]
    broken = not bounded <= target * (1 + RELATIVE) + ABSOLUTE
    non_finite = not all(bool(th.isfinite(p).all()) for p in model.policy.parameters())
    accepted = bool(model.last_update.is_line_search_success)  # type: ignore[union-attr]
    counts.updates += 1
    counts.accepted += accepted
    counts.rejected += not accepted
    counts.rolled_back += model.n_rollbacks - rollbacks
    counts.bound_broken += broken
    counts.non_finite += non_finite
    counts.largest_ratio = max(counts.largest_ratio, bounded / target)
    if accepted:
        counts.ratios.append(bounded / target)
    if broken or non_finite:
        counts.wrong.append(f"KL {bounded:g}, bound {target:g}, after {counts.updates} updates: {case}")


def run(updates: int, seed: int, chunk: int = 0) -> Counts:
    """So many random updates; the same ones for the same seed and chunk."""
    start, counts, rng = time.perf_counter(), Counts(), np.random.default_rng([seed, chunk])
    th.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while counts.updates < updates:
            case = draw_case(rng)
            world = partial(Bandit, case.observation_space, case.action_space, case.reward_scale)
            env = make_vec_env(world, case.n_envs, seed=case.arguments["seed"])
            model = TRPO("MlpPolicy", env, policy_kwargs=case.policy_kwargs, device="cpu", **case.arguments)
            model.set_logger(Logger(None, []))
            twin = twin_of(model.policy)
            for _ in range(min(UPDATES_OF_A_MODEL, updates - counts.updates)):
                update(model, twin, case, counts)
    counts.median_ratio = float(np.median(counts.ratios)) if counts.ratios else 0.0
    counts.seconds = round(time.perf_counter() - start, 1)
    return counts


KEY = ("updates", "seed", "chunk")
COLUMNS = ("seed", "chunk", *Counts().row())


def _numbered(job: tuple[int, int, int]) -> tuple[int, Counts]:
    return job[2], run(*job)


def summary(rows: list[dict[str, Any]]) -> str:
    """A table of all chunks together."""
    reductions: dict[str, Any] = {"largest_ratio": max, "median_ratio": np.median}
    columns = {name: [float(row[name]) for row in rows] for name in Counts().row()}
    totals = {name: reductions.get(name, sum)(column) for name, column in columns.items()}
    return "\n".join(f"{name:>14}  {total:.6g}" for name, total in totals.items())


def main() -> None:
    """Run the chunks that the file does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not options.results.exists():
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(",".join(COLUMNS) + "\n")
    with options.results.open() as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    sizes = [min(CHUNK, options.updates - at) for at in range(0, options.updates, CHUNK)]
    wanted = [(n, options.seed, k) for k, n in enumerate(sizes)]
    done = {tuple(int(row[name]) for name in KEY) for row in rows}
    jobs = [job for job in wanted if job not in done]
    print(f"{len(jobs)} of {len(sizes)} chunks to do", flush=True)
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for chunk, counts in pool.imap_unordered(_numbered, jobs):
            rows.append({"seed": options.seed, "chunk": chunk, **counts.row()})
            with options.results.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(rows[-1])
            print("\n".join([f"chunk {chunk}: {counts.updates} updates", *counts.wrong]), flush=True)
    print(summary([row for row in rows if tuple(int(row[name]) for name in KEY) in wanted]))


if __name__ == "__main__":
    main()
