"""What a saved model says of its run, read without its pickles."""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sb3_trust.safe_archive import MAX_DATA_BYTES

MAX_TEXT_BYTES = 2**16  # of the small members
CHECKPOINT, BEST = "rl_model_", "best_model"  # how names of the Zoo's other models begin


@dataclass
class SavedModel:
    """
    :param path: of the zip
    :param entries: plain entries of its ``data``; objects as the text that SB3 writes beside their pickles
    :param versions: name and version of what the run used
    """

    path: Path
    entries: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def find_model(folder: Path, env: str | None) -> Path | None:
    """The zip of the final model: the Zoo gives it the environment's name."""
    files = [path for path in sorted(folder.glob("*.zip")) if path.is_file() and zipfile.is_zipfile(path)]

    def rank(path: Path) -> int:
        if env is not None and path.stem == env:
            return 0
        return 1 + path.name.startswith(BEST) + 2 * path.name.startswith(CHECKPOINT)

    return min(files, key=rank, default=None)


def read_model(path: Path) -> SavedModel:
    """
    :raises ValueError: (or another exception that a damaged file can cause) if it is no model of SB3's
    """
    with zipfile.ZipFile(path) as archive:
        data = json.loads(_member(archive, "data", MAX_DATA_BYTES))
        if not isinstance(data, dict):
            raise ValueError("`data` does not hold entries by name")
        model = SavedModel(
            path, {name: _plain(value) for name, value in data.items() if not _is_class(value)}
        )
        if "system_info.txt" in archive.namelist():
            text = _member(archive, "system_info.txt", MAX_TEXT_BYTES).decode("utf-8", "replace")
            model.versions = dict(re.findall(r"^- ([^:\n]+): (.*)$", text, re.MULTILINE))
    return model


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    with archive.open(name) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"`{name}` unpacks to more than {limit} bytes")
    return content


def _is_class(value: Any) -> bool:
    """Whether an entry is a class; which one, its pickle alone says."""
    return isinstance(value, dict) and str(value.get(":type:")) in ("<class 'abc.ABCMeta'>", "<class 'type'>")


def _plain(value: Any) -> Any:
    """An entry as it is; an object as ``Type(attribute=value)``, of the attributes that are in the file."""
    if not isinstance(value, dict) or ":serialized:" not in value:
        return value
    kind = re.sub(r"^<class '(?:.*\.)?(\w+)'>$", r"\1", str(value.get(":type:")))
    attributes = [
        f"{name}={item}"
        for name, item in value.items()
        if not name.startswith(("_", ":")) and isinstance(item, (str, int, float))
    ]
    return f"{kind}({', '.join(attributes)})"
