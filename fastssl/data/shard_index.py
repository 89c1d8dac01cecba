"""The index of one WebDataset shard: where its images lie, how large they are, of which class.

Files of one sample share their name up to the first dot of its last part: cat/01.jpg, cat/01.cls.
The class is the text of KEY.cls, or "label", "cls" or "class" of KEY.json.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tarfile
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastssl.data.headers import BadFile, Header, inspect
from fastssl.data.suffixes import IMAGES

_JSON_KEYS = ("label", "cls", "class")
_LABELS = (".cls", ".json")
_MOST_LABEL_BYTES = 1 << 20
# What tarfile raises at headers that make no sense
_DAMAGE = (tarfile.TarError, ValueError, EOFError, RecursionError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Member:
    """An image inside a shard."""

    name: str
    offset: int
    length: int
    header: Header
    label: str | None  # the class as written


@dataclass(frozen=True)
class Shard:
    """The index of one tar file; size and modification time (ns) tell whether it is the same."""

    path: str
    size: int
    modified: int
    members: tuple[Member, ...]
    bad: tuple[tuple[str, str], ...]  # (member, or "" for the shard, reason)


def index_shard(path: str) -> Shard:
    """Reads the headers of a shard and of its images. What is damaged is in ``bad``."""
    size, modified = identity(path)
    found: list[tuple[str, int, int]] = []
    labels: dict[str, str] = {}
    bad: list[tuple[str, str]] = []
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if not info.isreg():
                    continue
                if info.name.lower().endswith(IMAGES):
                    found.append((info.name, info.offset_data, info.size))
                elif info.name.endswith(_LABELS) and info.size <= _MOST_LABEL_BYTES:
                    _label(tar, info, labels)
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        bad.append(("", _damage(path, reason, len(found))))
    except OSError as error:
        bad.append(("", f"the shard cannot be read: {error.strerror or error}"))
    members = []
    for name, offset, length in found:
        try:
            header = _header(path, offset, length, size)
            members.append(Member(name, offset, length, header, labels.get(_key(name))))
        except BadFile as reason:
            bad.append((name, str(reason)))
    return Shard(path, size, modified, tuple(members), tuple(bad))


def identity(path: str) -> tuple[int, int]:
    """Size and modification time in ns; (-1, -1) where there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def as_json(shard: Shard) -> str:
    """The index as one line."""
    return json.dumps(dataclasses.astuple(shard))


def from_json(line: str) -> Shard | None:
    """The index that ``as_json`` wrote; None for anything else."""
    try:
        path, size, modified, members, bad = json.loads(line)
        shard = Shard(path, size, modified, tuple(map(_member, members)), tuple(map(tuple, bad)))
    except (ValueError, TypeError):
        return None
    return shard if all(len(pair) == 2 for pair in shard.bad) else None


def _member(values: list) -> Member:
    name, offset, length, header, label = values
    numbers = (offset, length, *header[:3])
    if not all(type(value) is int for value in numbers) or type(header[3]) is not bool:
        raise TypeError
    if not isinstance(label, str | None):
        raise TypeError
    return Member(str(name), offset, length, Header(*header), label)


def _key(name: str) -> str:
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}"


def _label(tar: tarfile.TarFile, info: tarfile.TarInfo, labels: dict[str, str]) -> None:
    file = tar.extractfile(info)
    assert file is not None
    text = file.read().decode("utf-8", "replace").strip()
    if info.name.endswith(".json"):
        text = _from_object(text)
    if text:
        labels.setdefault(_key(info.name), text)


def _from_object(text: str) -> str:
    """The class in a sample's JSON; "" where there is none."""
    try:
        facts: Any = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(facts, dict):
        return ""
    values = [facts[key] for key in _JSON_KEYS if isinstance(facts.get(key), int | str)]
    return str(values[0]) if values else ""


def _damage(path: str, reason: str, num_found: int) -> str:
    if num_found == 0:
        with open(path, "rb") as file:
            if file.read(2) == b"\x1f\x8b":
                return "the shard is compressed: images in it cannot be reached; gunzip it"
    return f"the tar file is damaged after {num_found} images: {reason}"


def _header(path: str, offset: int, length: int, size: int) -> Header:
    if offset + length > size:
        raise BadFile("the shard ends before it")
    with open(path, "rb") as file:
        return inspect(io.BufferedReader(_Window(file, offset, length)))


class _Window(io.RawIOBase):
    """Part of an open file as a file of its own."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._length - self._at))
        self._file.seek(self._offset + self._at)
        content = self._file.read(wanted)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
