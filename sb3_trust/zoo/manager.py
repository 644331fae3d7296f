"""The Zoo's experiment manager, which also records every update and reports at the end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

from sb3_trust.plots import training_figure
from sb3_trust.recorder import UPDATES_FILE, UpdateRecorder
from sb3_trust.trust_region.record import TRUST_REGION_FILE
from sb3_trust.trust_region.recorder import TrustRegionRecorder
from sb3_trust.zoo.interruption import Interruption
from sb3_trust.zoo.registration import ALGORITHMS
from sb3_trust.zoo.settings import section_of

EVALUATION_EPISODES = 20
FIGURE_FILE = "training.png"
EVALUATION_FILE = "evaluation.json"
CHECKPOINT = "rl_model_"  # how the Zoo's checkpoints begin


class TrustExperimentManager(ExperimentManager):
    """
    Adds ``updates.csv``, an evaluation and a figure to a run of one of our algorithms.

    :param record_trust_region: write ``trust_region.npz`` too
    """

    def __init__(self, *args: Any, record_trust_region: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._record_trust_region = record_trust_region
        self._interruption = Interruption()

    @property
    def _saved_model(self) -> str:
        return f"Model:   {self.save_path}/{self.env_name}.zip"

    @property
    def _is_ours(self) -> bool:
        return self.algo in ALGORITHMS

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """As the Zoo; a YAML file may also hold the settings of several algorithms, each under its key."""
        whole = self.config
        with section_of(whole, self.algo) as self.config:
            read = super().read_hyperparameters()
        self.config = whole
        return read

    def create_callbacks(self) -> None:
        """The Zoo's callbacks, and the recorders."""
        super().create_callbacks()
        if self._is_ours and not self.optimize_hyperparameters:
            self.callbacks.append(UpdateRecorder(self.save_path))
            if self._record_trust_region:
                self.callbacks.append(TrustRegionRecorder(self.save_path))
            for callback in self.callbacks:
                if isinstance(callback, CheckpointCallback):
                    callback.save_vecnormalize = True

    def _checkpoint_statistics(self) -> Path | None:
        """Of the normaliser, saved beside the checkpoint that training goes on from."""
        checkpoint = Path(self.trained_agent)
        if not self.continue_training or not checkpoint.name.startswith(CHECKPOINT):
            return None
        rest = checkpoint.stem.removeprefix(CHECKPOINT)
        statistics = checkpoint.with_name(f"{CHECKPOINT}vecnormalize_{rest}.pkl")
        return statistics if statistics.exists() else None

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        """As the Zoo; a checkpoint goes on with the statistics that were saved with it."""
        statistics = self._checkpoint_statistics()
        if statistics is None:
            return super()._maybe_normalize(env, eval_env)
        print(f"Loading saved VecNormalize stats from {statistics}")
        normalized = VecNormalize.load(str(statistics), env)
        normalized.training = not eval_env
        normalized.norm_reward &= not eval_env
        return normalized

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        """As the Zoo; what adapts goes on from where it was, unless the command line has another start."""
        given = self.custom_hyperparams or {}
        starts = ["init_kl_coef"]
        if hyperparams.get("learning_rate_kl_target") is not None:
            starts += ["learning_rate", "learning_rate_kl_target"]
        if hyperparams.get("damping_rule") == "adaptive":
            starts += ["cg_damping", "damping_rule"]
        for name in starts:
            if name not in given:
                hyperparams.pop(name, None)
        return super()._load_pretrained_agent(hyperparams, env)

    def learn(self, model: BaseAlgorithm) -> None:
        """As the Zoo; a loaded model goes on counting, and SIGTERM ends training as Ctrl-C does."""
        kwargs: dict[str, Any] = {}
        if self._is_ours and self.continue_training:
            kwargs["reset_num_timesteps"] = False

        def learn(*args: Any, **given: Any) -> None:
            with self._interruption.raised():
                model.learn(*args, **{**given, **kwargs})

        # all that the Zoo asks of a model here
        trained: Any = SimpleNamespace(learn=learn, env=model.env, policy=model.policy)
        self._interruption.watch()
        try:
            super().learn(trained)
        except BaseException as error:
            # environments in processes of their own may have been ended by the signal too
            if self._interruption.signal is None or not isinstance(error, (ConnectionError, EOFError)):
                self._interruption.unwatch()
                raise

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """As the Zoo; then evaluate, draw and say where everything is, unless a signal ended training."""
        try:
            super().save_trained_model(model)
        finally:
            self._interruption.unwatch()
        if self._interruption.exit_code is not None:
            print(f"Interrupted after {model.num_timesteps} time steps: not evaluated\n{self._saved_model}")
            sys.exit(self._interruption.exit_code)
        if not self._is_ours:
            return
        returns = self._evaluate(model)
        evaluation = {"mean": float(np.mean(returns)), "std": float(np.std(returns)), "returns": returns}
        (Path(self.save_path) / EVALUATION_FILE).write_text(json.dumps(evaluation))
        figure = Path(self.save_path) / FIGURE_FILE
        training_figure(self.save_path, title=f"{self.algo} on {self.env_name.gym_id}").savefig(
            figure, dpi=120
        )
        record = f"\nRecord:  {Path(self.save_path) / TRUST_REGION_FILE}" if self._record_trust_region else ""
        print(
            f"Evaluated return: {evaluation['mean']:.2f} +/- {evaluation['std']:.2f} "
            f"({len(returns)} episodes)\n"
            f"{self._saved_model}\n"
            f"Updates: {Path(self.save_path) / UPDATES_FILE}\n"
            f"Figure:  {figure}{record}"
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
