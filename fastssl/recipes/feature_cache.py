"""An encoder whose features are kept: one extraction serves every verb that asks for the same.

    RUN/evaluation/features-KEY.safetensors     KEY: of weights, data, look, device and versions
Written atomically; the header has the whole key and the SHA-256 of the data. A file that is of
something else, damaged or no file at all is left out with a line and made anew. The oldest go
where all together are larger than MOST_BYTES.
"""

# shapes: N images, C channels, S side, F features
from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import fastssl
from fastssl.engine.files import TEMPORARY, write_bytes
from fastssl.evaluation.features import encoder, extract

MOST_BYTES = 1 << 30  # of all kept features of a run together
_MOST_HEADER_BYTES = 1 << 16
_FORMAT = 1
_CHUNK = 500  # images encoded at a time
_ABANDONED_S = 3600.0  # a temporary file of that age is nobody's any more


@dataclass(frozen=True, kw_only=True)
class Look:
    """How images are looked at: clean, or augmented draw by draw, or shifted."""

    draw: int | None = None
    only: str | None = None
    shift: str | None = None
    amount: float = 0.0

    def batches(self, part: Any) -> Iterator[Tensor]:
        """Of ``part``, a data.batch.Labelled."""
        if self.shift is not None:
            return part.shifted(_CHUNK, name=self.shift, amount=self.amount)
        if self.draw is not None:
            return part.redrawn(_CHUNK, draw=self.draw, only=self.only)
        return part.images(_CHUNK)


CLEAN = Look()


def features_of(encode: Callable[[Tensor], Tensor], part: Any, look: Look = CLEAN) -> Tensor:
    """(N, F) float32 features of a labelled part, from the cache where ``encode`` has one."""
    if isinstance(encode, KeptEncoder):
        return encode.features(part, look)
    return extract(encode, look.batches(part), part.split)


class KeptEncoder:
    """A frozen encoder on ``device`` as a function of CPU images; ``folder`` None keeps nothing.

    identity: what the encoder is, beside its weights.
    """

    def __init__(
        self, net: nn.Module, device: torch.device, *, folder: Path | None, identity: str
    ) -> None:
        self.net, self.device, self.found = net, device, 0
        self._encode = encoder(net, device)
        self._folder = folder
        self._identity = f"{identity} {weights_digest(net)}" if folder else ""
        self._known: dict[int, tuple[Any, str]] = {}

    def __call__(self, x_NCSS: Tensor) -> Tensor:
        return self._encode(x_NCSS)

    def features(self, part: Any, look: Look) -> Tensor:
        """(N, F) float32 of a labelled part."""
        if self._folder is None or part.identity is None:
            return extract(self, look.batches(part), part.split)
        key = self._key(part, look)
        path = self._folder / f"features-{key[:16]}.safetensors"
        kept_NF = read_features(path, key=key, rows=len(part.target))
        if kept_NF is not None:
            self.found += 1
            return kept_NF
        fresh_NF = extract(self, look.batches(part), part.split)
        write_features(path, fresh_NF, key=key)
        return fresh_NF

    def _key(self, part: Any, look: Look) -> str:
        if id(part) not in self._known:
            self._known[id(part)] = (part, part.identity())
        versions = (_FORMAT, fastssl.__version__, torch.__version__, self.device.type)
        facts = [*versions, self._identity, self._known[id(part)][1], *astuple(look)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def weights_digest(net: nn.Module) -> str:
    """SHA-256 of the names, kinds and values of a net's tensors."""
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_features(path: Path, *, key: str, rows: int) -> Tensor | None:
    """The kept features, or None: there are none, or the file is not what it should be."""
    try:
        content = _content(path)
        size = int.from_bytes(content[:8], "little")
        if not 0 < size <= min(_MOST_HEADER_BYTES, len(content) - 8):
            raise ValueError("its header has no proper length")
        facts = json.loads(content[8 : 8 + size])["__metadata__"]
        if facts["key"] != key:
            raise ValueError("it is of another encoder or other images")
        if facts["sha256"] != hashlib.sha256(content[8 + size :]).hexdigest():
            raise ValueError("its SHA-256 differs")
        features_NF = safetensors.torch.load(content)["features"]
        if features_NF.dtype != torch.float32 or features_NF.shape[:-1] != (rows,):
            raise ValueError("it holds another kind of tensor")
        return features_NF
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200]
        logging.getLogger("fastssl").warning(
            "%s cannot be used (%s): the features are made anew", path, why
        )
        return None


def write_features(path: Path, features_NF: Tensor, *, key: str) -> None:
    """Keep them; where that fails (disk full, read-only) with a line, no more."""
    features_NF = features_NF.contiguous()
    digest = hashlib.sha256(features_NF.numpy().tobytes()).hexdigest()
    content = safetensors.torch.save({"features": features_NF}, {"key": key, "sha256": digest})
    if len(content) > MOST_BYTES:
        return
    try:
        path.parent.mkdir(exist_ok=True)
        write_bytes(path, content)
        _prune(path.parent)
    except OSError as error:
        logging.getLogger("fastssl").warning("features were not kept: %s", error)


def _content(path: Path) -> bytes:
    """Of a regular file of bounded size; a symbolic link is not followed."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise ValueError("no regular file of a proper size")
        return file.read()


def _prune(folder: Path) -> None:
    for leftover in folder.glob(f"{TEMPORARY}features-*"):
        if time.time() - leftover.lstat().st_mtime > _ABANDONED_S:
            leftover.unlink(missing_ok=True)
    found = [(path.lstat(), path) for path in folder.glob("features-*.safetensors")]
    total = sum(status.st_size for status, _ in found)
    for status, path in sorted(found, key=lambda each: each[0].st_mtime):
        if total <= MOST_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= status.st_size
