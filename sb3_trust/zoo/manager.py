"""The Zoo's experiment manager, which also records every update and reports at the end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import sync_envs_normalization

from sb3_trust.plots import training_figure
from sb3_trust.recorder import UPDATES_FILE, UpdateRecorder
from sb3_trust.zoo.registration import ALGORITHMS

EVALUATION_EPISODES = 20
FIGURE_FILE = "training.png"
EVALUATION_FILE = "evaluation.json"


class TrustExperimentManager(ExperimentManager):
    """Adds ``updates.csv``, an evaluation and a figure to a run of one of our algorithms."""

    @property
    def _is_ours(self) -> bool:
        return self.algo in ALGORITHMS

    def create_callbacks(self) -> None:
        """The Zoo's callbacks, and the recorder."""
        super().create_callbacks()
        if self._is_ours and not self.optimize_hyperparameters:
            self.callbacks.append(UpdateRecorder(self.save_path))

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """As the Zoo; then evaluate, draw and say where everything is."""
        super().save_trained_model(model)
        if not self._is_ours:
            return
        returns = self._evaluate(model)
        evaluation = {"mean": float(np.mean(returns)), "std": float(np.std(returns)), "returns": returns}
        (Path(self.save_path) / EVALUATION_FILE).write_text(json.dumps(evaluation))
        figure = Path(self.save_path) / FIGURE_FILE
        training_figure(self.save_path, title=f"{self.algo} on {self.env_name.gym_id}").savefig(
            figure, dpi=120
        )
        print(
            f"Evaluated return: {evaluation['mean']:.2f} +/- {evaluation['std']:.2f} "
            f"({len(returns)} episodes)\n"
            f"Model:   {self.save_path}/{self.env_name}.zip\n"
            f"Updates: {Path(self.save_path) / UPDATES_FILE}\n"
            f"Figure:  {figure}"
        )

    def _evaluate(self, model: BaseAlgorithm) -> list[float]:
        """Returns of the final policy in fresh environments, normalised as it was trained."""
        env = self.create_envs(self.n_eval_envs, eval_env=True)
        if model.env is not None:
            sync_envs_normalization(model.env, env)
        episodes = max(self.n_eval_episodes, EVALUATION_EPISODES)
        returns, _ = evaluate_policy(
            model, env, episodes, deterministic=self.deterministic_eval, return_episode_rewards=True
        )
        env.close()
        return [float(value) for value in returns]  # type: ignore[union-attr]
