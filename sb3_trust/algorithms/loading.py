"""Loading models: our own, and those of SB3 and sb3-contrib."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

from sb3_trust.algorithms.resuming import Resumable
from sb3_trust.errors import InvalidArgument

SelfLoadable = TypeVar("SelfLoadable", bound="Loadable")

TRUST_FORMAT = 1  # of saved models; a model saved by SB3 or sb3-contrib has none
# the argument that tells an algorithm's saved model from the others'
MARKS = {
    "PPO": "clip_range",
    "PPOPenalty": "init_kl_coef",
    "TRPO": "line_search_max_iter",
    "NPG": "step_size",
    "REINFORCE": "n_gradient_steps",
}
# written by `load` (or its caller), read by `_setup_model`: which arguments the caller of `load` overrides
LOADED_WITH = "_loaded_with"


class Loadable(Resumable):
    """
    Opens saved models of its peers as well as its own.

    A subclass names in ``mark`` the argument that tells its models from the others', says in ``has_peer``
    whether SB3 or sb3-contrib has the algorithm too, and extends :meth:`_adopt` by what it converts.
    """

    mark: ClassVar[str]
    has_peer: ClassVar[bool] = True

    def _adopt_loaded(self) -> bool:
        """
        Part of setting a model up: one that was just read from a file becomes one of ours.

        :return: whether it was
        """
        overridden = self.__dict__.pop(LOADED_WITH, None)
        if overridden is not None:
            self._adopt(overridden)
        self._trust_format = TRUST_FORMAT
        return overridden is not None

    @abstractmethod
    def _check_loaded(self) -> None:
        """
        :raises InvalidArgument: if an argument does not go with the parameters that were read
        """

    def _adopt(self, overridden: frozenset[str]) -> None:
        """
        Make a model that was just read from a file one of ours: refuse what is another algorithm's, and
        convert what a model saved by SB3 or sb3-contrib means to what it means here.

        :param overridden: names of the arguments that were passed to ``load``: they are ours already
        :raises InvalidArgument: if the file holds another algorithm's model
        """
        for algorithm, attribute in MARKS.items():
            if attribute in self.__dict__ and attribute != self.mark:
                raise InvalidArgument(
                    f"`path` must hold a model for {type(self).__name__}, but it holds one for {algorithm}"
                )
        if not self.has_peer and "_trust_format" not in self.__dict__:
            # that of SB3's A2C has no mark
            raise InvalidArgument(
                f"`path` must hold a model that sb3-trust has saved, as neither SB3 nor sb3-contrib has "
                f"{type(self).__name__}, but it holds another's"
            )

    def _said_at_loading(self, message: str) -> None:
        """Have ``load`` warn of a conversion."""
        self._conversion = message

    @classmethod
    def load(cls: type[SelfLoadable], path: Any, *args: Any, **kwargs: Any) -> SelfLoadable:
        """
        Load a model of this class, or of SB3's or sb3-contrib's counterpart; arguments as in SB3.

        :raises InvalidArgument: if an argument given here cannot work
        """
        # SB3 writes extra keywords to the model before it sets it up: the one moment to convert a foreign
        # model
        given = frozenset(kwargs) | frozenset(kwargs.get("custom_objects") or ())
        model = super().load(path, *args, **{LOADED_WITH: given, **kwargs})
        model._check_loaded()
        if conversion := model.__dict__.pop("_conversion", None):
            warnings.warn(conversion, UserWarning, stacklevel=2)
        return model
