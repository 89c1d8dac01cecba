"""Encoded images by number: what a folder, tar shards and a torchvision set have in common."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fastssl.data.headers import BadFile, Header, check_regular, inspect


class Store(Protocol):
    """Image files, numbered in a stable order."""

    @property
    def paths(self) -> Sequence[str]:
        """What each image is called: unique, relative to the data set."""
        ...

    @property
    def headers(self) -> Sequence[Header | None]:
        """What is known of each; None where only its contents will tell."""
        ...

    @property
    def skipped(self) -> Sequence[tuple[str, str]]:
        """(path, reason) of what cannot be used; it has no number."""
        ...

    @property
    def unchecked(self) -> int:
        """How many of the paths were taken for good without a look at their headers."""
        ...

    @property
    def complete(self) -> bool:
        """Whether everything there was listed."""
        ...

    def read(self, index: int) -> bytes:
        """The file's bytes; BadFile where they cannot be read any more."""
        ...

    def stamp(self, index: int) -> str | None:
        """JSON list that changes when the file does; None where there is no telling."""
        ...


@dataclass(frozen=True)
class Encoded:
    """One image on its way to a decoder."""

    name: str
    content: bytes
    header: Header


def fetch(store: Store, index: int) -> Encoded:
    """The image ``index`` with its header; BadFile says why it cannot be used."""
    content = store.read(index)
    header = store.headers[index] or inspect(io.BytesIO(content))
    return Encoded(store.paths[index], content, header)


def read_file(path: str) -> bytes:
    """The bytes of ``path``; BadFile where they cannot be read any more."""
    try:
        check_regular(path)
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadFile(f"cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise BadFile("larger than the memory that is left") from None


def num_files(store: Store) -> int:
    """Usable or not."""
    return len(store.paths) + len(store.skipped)


def printable(path: str) -> str:
    """The path as text that any terminal and file can take: in one line, no escapes, UTF-8."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
