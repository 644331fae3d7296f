"""Saving so that training goes on from the file as if it had not been interrupted."""

from __future__ import annotations

import io
import pathlib
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_trust.algorithms.random_states import RandomStates, capture, restore
from sb3_trust.algorithms.update_logging import UpdateLogging
from sb3_trust.atomic import replacing

SelfResumable = TypeVar("SelfResumable", bound="Resumable")


class Resumable(UpdateLogging):
    """
    Saves the random generators' states with the model, in a file that is written whole or not at all. They
    are restored by the first ``learn(reset_num_timesteps=False)`` after loading, and dropped by any other
    ``learn``, by ``set_random_seed`` and by a ``seed`` passed to ``load``; loading alone does not touch the
    generators.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # of the file that this model was loaded from, until they are restored
        self.rng_states: RandomStates | None = None
        # in a callback at a step: the observations after it and which episodes it ended
        self._step_reached: tuple[Any, np.ndarray] | None = None

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_step_reached"]

    def _action_spaces(self) -> list[spaces.Space]:
        """The model's, and the environment's own, which is another after loading."""
        return [self.action_space, self.action_space if self.env is None else self.env.action_space]

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model; arguments as in SB3. A file at ``path`` is replaced when the new one is complete: a
        process that is killed while saving leaves the old one.

        :raises OSError: if the file cannot be written, for example because the disk is full
        """
        as_saved: dict[str, Any] = {}
        if self.rng_states is None:
            states = capture(self._action_spaces())
            as_saved["rng_states"] = {"num_timesteps": int(self.num_timesteps), **states}
        as_saved.update(self._after_step())
        own = {name: getattr(self, name) for name in as_saved}
        self.__dict__.update(as_saved)
        try:
            if isinstance(path, (str, pathlib.Path)):
                with replacing(_target(path)) as file:
                    super().save(file, exclude, include)  # type: ignore[arg-type]
            else:
                super().save(path, exclude, include)
        finally:
            self.__dict__.update(own)

    def _after_step(self) -> dict[str, Any]:
        """
        In a callback, and after one that ended training: what is to be gone on from. The environments have
        stepped already, and SB3's attributes are those before the step.
        """
        if self._step_reached is None or self._last_obs is None:
            return {}
        return dict(zip(("_last_obs", "_last_episode_starts"), self._step_reached, strict=True))

    @classmethod
    def load(cls: type[SelfResumable], path: Any, *args: Any, **kwargs: Any) -> SelfResumable:
        model = super().load(path, *args, **kwargs)
        states = model.rng_states
        # SB3 keeps states that it does not know when it trains the model and saves it again
        stale = states is not None and states["num_timesteps"] != model.num_timesteps
        if stale or kwargs.get("seed") is not None:
            model.rng_states = None
        return model

    def _setup_model(self) -> None:
        states = self.rng_states
        super()._setup_model()  # sets the model's seed, if it has one
        self.rng_states = states

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed all random generators; what was saved of them is then not restored."""
        super().set_random_seed(seed)
        if seed is not None:
            self.rng_states = None

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[int, BaseCallback]:
        states, self.rng_states = self.rng_states, None
        if states is not None and not reset_num_timesteps:
            restore(states, self._action_spaces())
        self.__dict__.update(self._after_step())
        self._step_reached = None
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)


def _target(path: str | pathlib.Path) -> pathlib.Path:
    """Where SB3 saves what it is told to save at ``path``."""
    path = pathlib.Path(path)
    if path.suffix == "":
        path = pathlib.Path(f"{path}.zip")
    if path.is_dir():
        warnings.warn(f"`path` {str(path)!r} is a folder; saving to {path}_2 instead", stacklevel=3)
        path = pathlib.Path(f"{path}_2")
    if not path.parent.exists():
        warnings.warn(f"the folder of `path`, {str(path.parent)!r}, does not exist; making it", stacklevel=3)
        path.parent.mkdir(parents=True, exist_ok=True)
    return path
