"""Batches made ahead of time: no hang, no lost error, no thread left behind, silent exit."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time

import pytest

from fastssl.data.prefetch import Prefetcher


def stopped(thread: threading.Thread, seconds: float = 5.0) -> bool:
    thread.join(seconds)
    return not thread.is_alive()


def worker() -> threading.Thread:
    return next(t for t in threading.enumerate() if t.name == "fastssl-prefetch")


def test_items_come_in_order_from_the_start_asked_for():
    items = Prefetcher(lambda step: step * step, start=3)
    assert [next(items) for _ in range(4)] == [9, 16, 25, 36]
    items.close()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_close_ends_the_thread_at_once_and_may_be_repeated(taken):
    released = []
    items = Prefetcher(lambda step: step, release=lambda: released.append(True))
    thread = worker()
    for _ in range(taken):
        next(items)
    begin = time.monotonic()
    items.close()
    items.close()
    assert time.monotonic() - begin < 2 and stopped(thread) and released == [True]
    with pytest.raises(StopIteration):
        next(items)


def test_an_error_is_raised_at_its_own_item_and_again_after_it():
    def make(step: int) -> int:
        if step == 2:
            raise ValueError("item two")
        return step

    items = Prefetcher(make)
    assert [next(items), next(items)] == [0, 1]
    for _ in range(2):
        with pytest.raises(ValueError, match="item two"):
            next(items)
    items.close()


def test_a_dropped_iterator_stops_its_thread():
    items = Prefetcher(lambda step: bytearray(1000))
    thread = worker()
    next(items)
    del items
    gc.collect()
    assert stopped(thread)


def test_the_thread_ends_before_the_exit_handlers_of_what_it_uses():
    """DALI's asserts that no pipeline is left; such a handler is registered by an import."""
    program = """
import atexit, threading, time, weakref
class Early: pass
early = Early()
weakref.finalize(early, int)  # as torch and others do: weakref's own handler now stands first
atexit.register(lambda: print([t.name for t in threading.enumerate()]))
from fastssl.data.prefetch import Prefetcher
items = Prefetcher(lambda step: time.sleep(0.01))
next(items)
"""
    assert ended(program) == (0, "['MainThread']\n", "")


def test_the_interpreter_ends_silently_while_dali_is_at_work(tmp_path):
    program = f"""
import numpy as np, torch
from PIL import Image
from fastssl.data.sources import open_source
for i in range(16):
    pixels = np.random.default_rng(i).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(f"{tmp_path}/{{i}}.jpg")
source = open_source("{tmp_path}", image_size=64, backend="dali")
batches = source.batches(batch_size=16, seed=0, start_step=0, device=torch.device("cpu"))
next(batches)
"""
    assert ended(program) == (0, "", "")


def ended(program: str) -> tuple[int, str, str]:
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    return run.returncode, run.stdout, run.stderr
