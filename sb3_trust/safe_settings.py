"""Reading the RL Zoo's YAML files as data: nothing that they name is imported or called."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import yaml

from sb3_trust.errors import UnsafeModel

MAX_SETTINGS = 2**20  # characters of a YAML file
_MERGE = "tag:yaml.org,2002:merge"
_SCALARS = (str, int, float, bool, type(None))


class _Loader(yaml.SafeLoader):
    """
    Plain data, and the three kinds of object that the Zoo writes. Names are scalars, and no mapping is merged
    into another: aliases are cheap as long as nobody counts what they unfold to, which merging and hashing
    do.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == _MERGE or not isinstance(key, yaml.ScalarNode):
                raise _refused("a merge" if key.tag == _MERGE else "a name that is no scalar", key)
        super().flatten_mapping(node)


def _refused(what: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def _ordered_dict(loader: _Loader, node: yaml.SequenceNode) -> OrderedDict:
    pairs = [pair for argument in loader.construct_sequence(node, deep=True) for pair in argument]
    if not all(isinstance(name, _SCALARS) for name, _ in pairs):
        raise _refused("a name that is no scalar", node)
    return OrderedDict(pairs)


def _tuple(loader: _Loader, node: yaml.SequenceNode) -> tuple:
    return tuple(loader.construct_sequence(node, deep=True))


def _name(loader: _Loader, node: yaml.MappingNode) -> str:
    return str(loader.construct_mapping(node, deep=True)["args"][0])


_PYTHON = "tag:yaml.org,2002:python/"
_Loader.add_constructor(f"{_PYTHON}object/apply:collections.OrderedDict", _ordered_dict)
_Loader.add_constructor(f"{_PYTHON}tuple", _tuple)
_Loader.add_constructor(f"{_PYTHON}object/new:huggingface_sb3.naming_schemes.EnvironmentName", _name)


def plain_settings(content: str, path: Any) -> dict:
    """
    The settings in a YAML file of the Zoo.

    :param content: of the file
    :param path: its name, for the error messages
    :raises UnsafeModel: for a file that is too long, holds anything else than data, or no names
    """
    if len(content) > MAX_SETTINGS:
        raise UnsafeModel(f"{path}: longer than {MAX_SETTINGS} characters")
    try:
        settings = yaml.load(content, Loader=_Loader)
    except Exception as error:  # a forged file can make the parser raise anything
        reason = str(getattr(error, "problem", None) or error)
        raise UnsafeModel(f"{path} holds more than plain settings: {reason}") from error
    if not isinstance(settings, dict):
        raise UnsafeModel(f"{path} must hold settings by name, but it holds a {type(settings).__name__}")
    return settings
