"""Search spaces of our algorithms for the RL Zoo's hyperparameter optimization."""

from __future__ import annotations

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import convert_onpolicy_params

# names that `suggest_common` suggests and the Zoo's converter turns into constructor arguments
Suggested = dict[str, Any]


def suggest_common(trial: optuna.Trial) -> Suggested:
    """What all on-policy algorithms have in common; sizes as powers of two."""
    suggested: Suggested = {
        "batch_size_pow": trial.suggest_int("batch_size_pow", 5, 10),
        "n_steps_pow": trial.suggest_int("n_steps_pow", 5, 12),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-4, 0.05, log=True),
        "one_minus_gae_lambda": trial.suggest_float("one_minus_gae_lambda", 1e-3, 0.2, log=True),
        "net_arch": trial.suggest_categorical("net_arch", ["small", "medium"]),
        "activation_fn": trial.suggest_categorical("activation_fn", ["tanh", "relu"]),
    }
    trial.set_user_attr("gamma", 1 - suggested["one_minus_gamma"])
    trial.set_user_attr("n_steps", 2 ** suggested["n_steps_pow"])
    trial.set_user_attr("batch_size", 2 ** suggested["batch_size_pow"])
    return suggested


def suggest_minibatch(trial: optuna.Trial) -> Suggested:
    """What the algorithms that step on minibatches have in common."""
    return {
        **suggest_common(trial),
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True),
        "ent_coef": trial.suggest_float("ent_coef", 1e-8, 0.1, log=True),
        "n_epochs": trial.suggest_categorical("n_epochs", [1, 5, 10, 20]),
        "max_grad_norm": trial.suggest_float("max_grad_norm", 0.3, 2.0),
    }


def sample_ppo(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Sampler for PPO."""
    return convert(
        {
            **suggest_minibatch(trial),
            "clip_range": trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3, 0.4]),
        }
    )


def sample_ppo_penalty(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Sampler for PPOPenalty. The target is a joint KL divergence, so it grows with the action dimensions."""
    return convert(
        {
            **suggest_minibatch(trial),
            "target_kl": _suggest_target_kl(trial, n_actions),
            "init_kl_coef": trial.suggest_float("init_kl_coef", 0.1, 10.0, log=True),
            "kl_rule": trial.suggest_categorical("kl_rule", ["paper", "modular_rl"]),
        }
    )


def suggest_with_critic(trial: optuna.Trial) -> Suggested:
    """What the algorithms that fit the critic apart from the policy have in common."""
    return {
        **suggest_common(trial),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 5e-3, log=True),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 5, 30),
    }


def sample_reinforce(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Sampler for REINFORCE."""
    return convert(
        {
            **suggest_with_critic(trial),
            "n_gradient_steps": trial.suggest_int("n_gradient_steps", 1, 5),
            "ent_coef": trial.suggest_float("ent_coef", 1e-8, 0.1, log=True),
        }
    )


def sample_npg(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Sampler for NPG and TRPO. The KL divergence is joint, so it grows with the action dimensions."""
    return convert(
        {
            **suggest_with_critic(trial),
            "cg_max_steps": trial.suggest_int("cg_max_steps", 5, 30),
            "cg_damping": trial.suggest_float("cg_damping", 1e-3, 1.0, log=True),
            "target_kl": _suggest_target_kl(trial, n_actions),
        }
    )


sample_trpo = sample_npg


def _suggest_target_kl(trial: optuna.Trial, n_actions: int) -> float:
    """``n_actions`` is the number of action dimensions of a Box and 0 for any other space."""
    return trial.suggest_float("target_kl", 1e-3, min(0.05 * max(n_actions, 1), 0.5), log=True)


def convert(sampled_params: Suggested) -> dict[str, Any]:
    """Constructor arguments from the values that a trial suggested."""
    return convert_onpolicy_params(sampled_params)
