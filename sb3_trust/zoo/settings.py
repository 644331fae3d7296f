"""Settings of several algorithms in one YAML file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml


@contextmanager
def section_of(config: str, algorithm: str) -> Iterator[str]:
    """
    Where the Zoo finds the settings of one algorithm: the YAML file itself, or, if that holds those of
    several, each under its key, a temporary file with its section.

    :param config: path of the file, or anything else that the Zoo takes
    """
    path = Path(config)
    if path.suffix not in (".yml", ".yaml") or not path.is_file():
        yield config
        return
    settings = yaml.safe_load(path.read_text())
    section = settings.get(algorithm) if isinstance(settings, dict) else None
    if not isinstance(section, dict) or not all(isinstance(entry, dict) for entry in section.values()):
        yield config
        return
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / path.name
        own.write_text(yaml.safe_dump(section))
        yield str(own)
