"""
A surrogate of your own in PPO: Simple Policy Optimization (Xie et al. 2024, https://arxiv.org/abs/2401.16025),
which pulls every ratio back to 1 +/- epsilon instead of clipping, and a KL penalty on each sample.

    python examples/own_objective.py --timesteps 50000
"""

from __future__ import annotations

import argparse

from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_trust import PPO
from sb3_trust.numerics.objectives import Differentiated, PolicyTerms, RolloutTerms

EPSILON = 0.2


def simple_policy_optimization(terms: PolicyTerms, data: RolloutTerms):
    """The loss over a batch: ``-mean(r A - |A| (r - 1)^2 / (2 epsilon))``."""
    ratio = (terms.log_prob - data.old_log_prob).exp()
    quadratic = data.advantages.abs() / (2 * EPSILON) * (ratio - 1) ** 2
    return (quadratic - ratio * data.advantages).mean(-1)


def kl_of_each_sample(terms: PolicyTerms, data: RolloutTerms):
    """The surrogate less the exact KL divergence at each state, quadratic where it is above 0.02."""
    ratio = (terms.log_prob - data.old_log_prob).exp()
    penalty = terms.kl + 50 * (terms.kl - 0.02).clamp(min=0.0) ** 2
    return (penalty - ratio * data.advantages).mean(-1)


OBJECTIVES = {
    "SPO": Differentiated(simple_policy_optimization),
    "KL of each sample": Differentiated(kl_of_each_sample, needs=frozenset({"log_prob", "kl"})),
}


def main() -> None:
    """Train with each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--timesteps", type=int, default=50_000)
    args = parser.parse_args()
    for name, objective in OBJECTIVES.items():
        env = make_vec_env("CartPole-v1", n_envs=8, seed=0)
        model = PPO("MlpPolicy", env, n_steps=256, objective=objective, seed=0, device="cpu")
        mean, std = evaluate_policy(model.learn(args.timesteps), env, n_eval_episodes=20)
        kl = model.last_update.kl if model.last_update else 0.0
        print(f"{name:17} return {mean:.1f} +/- {std:.1f}, last update's KL {kl:.4f}")


if __name__ == "__main__":
    main()
