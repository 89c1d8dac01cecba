"""Small pictures and takers of batches that the tests of every source share."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

CPU = torch.device("cpu")


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def stored(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def damaged(content: bytes) -> bytes:
    """A JPEG whose header is good and that nobody can decode: it lost its quantisation table."""
    begin = content.index(b"\xff\xdb")
    end = begin + 2 + int.from_bytes(content[begin + 2 : begin + 4], "big")
    return content[:begin] + content[end:]


def take(source, count: int, *, start: int = 0, batch_size: int = 8, shard=(0, 1), seed: int = 1):
    batches = source.batches(
        batch_size=batch_size, seed=seed, start_step=start, device=CPU, shard=shard
    )
    try:
        return [next(batches) for _ in range(count)]
    finally:
        batches.close()


def assert_same(left, right) -> None:
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.index_N, b.index_N)
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


def assert_resumes_and_shards(source) -> None:
    """Batch t is a function of (seed, t); the ranks' parts make up the batch."""
    straight = take(source, 5)
    assert_same(straight[3:], take(source, 2, start=3))
    ranks = [take(source, 2, shard=(rank, 2)) for rank in range(2)]
    for whole, *parts in zip(straight, *ranks, strict=False):
        assert torch.equal(whole.index_N, torch.cat([part.index_N for part in parts]))
        for view, *shares in zip(whole.views, *(part.views for part in parts), strict=True):
            assert torch.equal(view, torch.cat(shares))
    assert not torch.equal(straight[0].index_N, take(source, 1, seed=2)[0].index_N)
