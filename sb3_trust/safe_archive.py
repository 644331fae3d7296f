"""Reading zip files within limits, whatever their headers claim."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sb3_trust.errors import InvalidArgument, UnsafeModel

MAX_BYTES = 4 * 2**30  # of a file, and of what it unpacks to
MAX_RATIO = 200  # of unpacked to packed size, for what unpacks to more than 1 MiB
MAX_MEMBERS = 64
MAX_TENSORS = 16_384  # members of the zip in a .pth file
MAX_DATA_BYTES = 256 * 2**20  # of `data`, and of normalization statistics
_CHUNK = 2**20


def read_file(path: Any, limit: int) -> bytes:
    """
    The content of a regular file, or of a binary stream.

    :raises FileNotFoundError: if there is none
    :raises InvalidArgument: if it is something else
    :raises UnsafeModel: if it is larger than ``limit``
    """
    if hasattr(path, "read"):
        content = path.read(limit + 1)
    else:
        # a pipe or a device would be waited for, or never end
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise InvalidArgument(f"`path` must be a file, but {str(path)!r} is not a regular file")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    if len(content) > limit:
        raise UnsafeModel(f"{path}: larger than {limit} bytes")
    return content


def unpack(
    content: bytes, what: str, max_members: int, allowed: Iterable[str] | None = None
) -> dict[str, bytes]:
    """
    The members of a zip file.

    :param what: the file's name, for the error messages
    :param allowed: the names that members may have; ``None``: any
    :raises InvalidArgument: if it is damaged or not a zip file
    :raises UnsafeModel: for unexpected members, or if it unpacks to too much
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            _check_names(names, what, max_members, allowed)
            unpacked: dict[str, bytes] = {}
            room = MAX_BYTES
            for member in members:
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UnsafeModel(f"{what}: {member.filename!r} is neither stored nor deflated")
                # what a header claims cannot be more than the file
                packed = min(member.compress_size, len(content))
                limit = min(room, max(MAX_RATIO * packed, _CHUNK))
                unpacked[member.filename] = _read_member(archive, member, limit, what)
                room -= len(unpacked[member.filename])
            return unpacked
    except UnsafeModel:
        raise
    except Exception as error:  # a damaged file can make the reader raise anything
        raise InvalidArgument(
            f"`path` must be a whole model file, but {what} cannot be read ({type(error).__name__}: {error})"
        ) from error


def _check_names(names: list[str], what: str, max_members: int, allowed: Iterable[str] | None) -> None:
    if len(names) > max_members:
        raise UnsafeModel(f"{what}: {len(names)} members, more than {max_members}")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise UnsafeModel(f"{what}: several members of the same name: {', '.join(map(repr, twice))}")
    if allowed is not None and (unexpected := sorted(set(names) - set(allowed))):
        raise UnsafeModel(f"{what}: unexpected members: {', '.join(map(repr, unexpected))}")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int, what: str) -> bytes:
    parts, size = [], 0
    with archive.open(member) as file:
        while part := file.read(_CHUNK):
            size += len(part)
            if size > limit:
                raise UnsafeModel(f"{what}: {member.filename!r} unpacks to more than {limit} bytes")
            parts.append(part)
    return b"".join(parts)


def pack(members: dict[str, bytes]) -> bytes:
    """A zip file of these members, not compressed."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()
