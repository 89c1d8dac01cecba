"""Small files that are either wholly there or not there at all: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".tmp-"
_MOST_JSON_BYTES = 16 << 20


def fsync_folder(folder: Path) -> None:
    """Make renames and new names inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError of a write, as on a full disk, says which file it was."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` atomically. Raises OSError and leaves the old file intact."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_text(path: Path, content: str) -> None:
    """``write_bytes`` of UTF-8 text."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: object) -> None:
    """``write_text`` of indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, *, most_bytes: int = _MOST_JSON_BYTES) -> object:
    """Parse a JSON file of bounded size; a symbolic link is not followed.

    Raises:
        ValueError: larger than ``most_bytes``, not UTF-8, not JSON, or nested too deeply.
        OSError: missing, or a symbolic link.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with open(handle, "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{path.name}: larger than {most_bytes} bytes")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError(f"{path.name}: nested too deeply") from error
