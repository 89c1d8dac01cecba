"""An endless iterator whose items are made ahead of time in one daemon thread.

Item t is ``make(t)``: the thread only decides when an item is made, never what it is. The thread
holds no reference to the iterator, so a dropped iterator stops its thread; so does the end of
the interpreter.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
_POLL_S = 0.05


class Prefetcher(Generic[Item]):
    """Yields ``make(start), make(start + 1), ...``; an exception is raised at its own item.

    ``depth`` items at most wait in memory. ``release`` is called once, in the thread, at its end.
    """

    def __init__(
        self,
        make: Callable[[int], Item],
        *,
        start: int = 0,
        depth: int = 2,
        release: Callable[[], None] | None = None,
    ) -> None:
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(
            target=_produce,
            args=(make, start, self._ready, self._stop, release),
            name="fastssl-prefetch",
            daemon=True,
        )
        self._finalizer = weakref.finalize(self, _shut, self._thread, self._stop, self._ready)
        # Exit handlers run last-in first-out: registered here, and not by weakref's one handler
        # for all, this one runs before that of any library that the items are made with.
        self._finalizer.atexit = False
        atexit.register(self._finalizer)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._failure is not None:
            raise self._failure
        while not self._stop.is_set():
            try:
                kind, value = self._ready.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if kind == "item":
                return value
            self._failure = value
            self.close()
            raise value
        raise StopIteration

    def close(self) -> None:
        """Stop the thread and wait for it (10 s at most). Calling it again does nothing."""
        self._finalizer()
        atexit.unregister(self._finalizer)


def _produce(make, start, ready, stop, release) -> None:
    step = start
    try:
        while not stop.is_set():
            _offer(ready, stop, ("item", make(step)))
            step += 1
    except BaseException as failure:
        _offer(ready, stop, ("failure", failure))
    finally:
        if release is not None:
            release()


def _offer(ready: queue.Queue, stop: threading.Event, entry: tuple[str, Any]) -> None:
    while not stop.is_set():
        try:
            return ready.put(entry, timeout=_POLL_S)
        except queue.Full:
            continue


def _shut(thread: threading.Thread, stop: threading.Event, ready: queue.Queue) -> None:
    stop.set()
    while not ready.empty():  # free the waiting batches even where the iterator lives on
        try:
            ready.get_nowait()
        except queue.Empty:
            break
    if thread is not threading.current_thread():
        thread.join(timeout=10.0)
