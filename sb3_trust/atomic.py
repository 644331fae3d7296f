"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """
    A new file for the block to write, which takes the place of ``path`` when the block has ended. Where the
    block raises, or the disk is full, the new file is removed and what was at ``path`` stays. A process that
    is killed leaves the new file behind, under a hidden name ending in ``.tmp``.

    :param path: where the file is to be; a link is followed, permissions of a file that is there are kept
    """
    path = Path(os.path.realpath(path))
    # opened, not made by `tempfile`, whose files are private: the umask says who may read
    unfinished = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    file = unfinished.open("xb")
    try:
        yield file
        file.flush()
        os.fsync(file.fileno())
        file.close()
        if path.exists():
            shutil.copymode(path, unfinished)
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            file.close()
        unfinished.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Have the new name on the disk too; not every system and file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
