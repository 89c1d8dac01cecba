"""WebDataset shards: plain tar files whose images are read where they lie.

``--data 'DIR/train-{000..146}.tar'``, ``'DIR/*.tar'``, one tar file, or a folder of them (train/
and val/ in it are splits). The index is made once and kept in the run folder: any image can then be
read without a pass over its shard, so order, resume and replacement are those of a folder.
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastssl.augment.policy import Policy
from fastssl.data.encoded import EncodedSource
from fastssl.data.folder_labels import Split, find_split
from fastssl.data.headers import BadFile
from fastssl.data.scan import cached_lines, keep_lines
from fastssl.data.shard_index import Shard, as_json, from_json, identity, index_shard

_CACHE_NAME = "shard-index.jsonl"
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBER = re.compile("[0-9]{1,18}")
_LABEL = re.compile("-?[0-9]{1,18}")  # longer ones are names


class ShardStore:
    """All images of some shards, in the order of the shards and inside them."""

    def __init__(self, shards: list[Shard], names: list[str], *, complete: bool) -> None:
        pairs = [(s, name, m) for s, name in zip(shards, names, strict=True) for m in s.members]
        self._members = [(shard, member) for shard, _, member in pairs]
        self.paths = [f"{name}/{member.name}" for _, name, member in pairs]
        self.headers = [member.header for _, _, member in pairs]
        self.labels = [member.label for _, _, member in pairs]
        self.skipped = [
            (f"{name}/{member}".rstrip("/"), reason)
            for shard, name in zip(shards, names, strict=True)
            for member, reason in shard.bad
        ]
        self.complete, self.unchecked = complete, 0

    def read(self, index: int) -> bytes:
        """The bytes of image ``index``; BadFile where they cannot be read any more."""
        shard, member = self._members[index]
        try:
            with open(shard.path, "rb") as file:
                file.seek(member.offset)
                content = file.read(member.length)
        except OSError as error:
            raise BadFile(f"the shard cannot be read: {error.strerror or error}") from None
        if len(content) < member.length:
            raise BadFile("the shard is shorter than when it was indexed")
        return content

    def stamp(self, index: int) -> str | None:
        """JSON of path, and size and modification time of the shard as indexed."""
        shard, _ = self._members[index]
        return json.dumps([self.paths[index], shard.size, shard.modified])


def names_shards(data: str) -> bool:
    """Whether ``--data`` is a tar file, a pattern of them, or a folder that holds some."""
    if os.path.isdir(data):
        return bool(_in_folder(data))
    return data.endswith(".tar")


def find_shards(data: str) -> tuple[str, list[str]]:
    """The folder, and the sorted paths of the shards below it that ``data`` names.

    ValueError names the shards of a pattern that are missing.
    """
    if os.path.isdir(data):
        return data, _in_folder(data)
    paths = []
    for pattern in expand(data):
        found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        paths += found or [pattern]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"--data {data}: {len(paths)} shards are named, but there is no file {missing[0]}{more}"
        )
    return os.path.commonpath(map(os.path.dirname, paths)) or os.curdir, sorted(set(paths))


def expand(pattern: str) -> list[str]:
    """Braces as a shell does them: {000..146} and {a,b}."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    begin, dots, end = match[1].partition("..")
    if dots and _NUMBER.fullmatch(begin) and _NUMBER.fullmatch(end):
        choices = [f"{i:0{len(begin)}}" for i in range(int(begin), int(end) + 1)]
    else:
        choices = match[1].split(",")
    filled = (pattern[: match.start()] + choice + pattern[match.end() :] for choice in choices)
    return [path for one in filled for path in expand(one)]


def open_shards(
    data: str,
    *,
    policy: Policy,
    workers: int,
    cache_dir: Path | None,
    scan_budget_s: float | None,
    **options: Any,
) -> EncodedSource:
    """All images of the shards that ``data`` names; ``options``: EncodedSource's.

    ValueError where a shard is missing or none holds an image.
    """
    root, paths = find_shards(data)
    shards = _indexed(paths, workers=workers, cache_dir=cache_dir, budget_s=scan_budget_s)
    names = [os.path.relpath(shard.path, root) for shard in shards]
    store = ShardStore(shards, names, complete=len(shards) == len(paths))
    if not store.paths:
        found = "; ".join(f"{name}: {reason}" for name, reason in store.skipped[:5])
        raise ValueError(
            f"--data {data}: expected tar files with images named *.jpg, *.png, *.webp or *.bmp, "
            f"found {found or 'none in ' + str(len(paths)) + ' shards'}"
        )
    return EncodedSource(
        store,
        split_of(store),
        name=os.path.basename(os.path.abspath(root)) or "shards",
        kind="shards",
        policy=policy,
        workers=workers,
        cache_dir=cache_dir,
        **options,
    )


def split_of(store: ShardStore) -> Split:
    """train/ and val/ as in a folder; the classes are those of the labels, numbers in order."""
    written = {label for label in store.labels if label is not None}
    numeric = all(_LABEL.fullmatch(label) for label in written)
    # by the text too: 1 and 01 are two classes, in the same order in every process
    ordered = sorted(written, key=lambda label: (int(label) if numeric else 0, label))
    classes = tuple(ordered) if len(ordered) > 1 else ()
    number = {name: position for position, name in enumerate(classes)}
    label_N = np.array([number.get(label, -1) for label in store.labels], dtype=np.int64)  # type: ignore[arg-type]
    return replace(find_split(tuple(store.paths)), label=label_N, classes=classes)


def _in_folder(folder: str) -> list[str]:
    """Files *.tar in the folder and in the folders right below it."""
    root = glob.escape(folder)
    below = (os.path.join(root, "*.tar"), os.path.join(root, "*", "*.tar"))
    found = (path for pattern in below for path in glob.glob(pattern))
    return sorted(path for path in found if os.path.isfile(path))


def _indexed(
    paths: list[str], *, workers: int, cache_dir: Path | None, budget_s: float | None
) -> list[Shard]:
    """The index of each shard, from the cache where the file is the same; within the budget one
    at least."""
    kept = {shard.path: shard for line in cached_lines(cache_dir, _CACHE_NAME)
            if (shard := from_json(line)) is not None}  # fmt: skip

    def index(path: str) -> Shard:
        known = kept.get(path)
        fresh = known is not None and (known.size, known.modified) == identity(path)
        return known if known is not None and fresh else index_shard(path)

    until = math.inf if budget_s is None else time.monotonic() + budget_s
    shards: list[Shard] = []
    with ThreadPoolExecutor(max_workers=workers) as pool:
        while len(shards) < len(paths) and (not shards or time.monotonic() < until):
            shards += pool.map(index, paths[len(shards) : len(shards) + workers])
    if any(kept.get(shard.path) is not shard for shard in shards):
        keep_lines(cache_dir, _CACHE_NAME, [as_json(shard) for shard in shards])
    return shards
