"""Batches made in the background, so that training does not wait for images to be read."""

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from gpseg.data.packed import UnlabelledImages

T = TypeVar("T")

_BATCHES = 3


def batches_ahead(images: Tensor | UnlabelledImages) -> int:
    """How many batches of these images are worth making ahead: none where they stay in memory."""
    return 0 if isinstance(images, Tensor) or images.in_memory else _BATCHES


@contextmanager
def made_ahead(items: Iterable[T], count: int) -> Iterator[Iterator[T]]:
    """Make an iterable's items in a background thread, in its order, up to `count` before they are asked for.

    What the iterable raises is raised where its item would have come. Leaving the context ends the thread, which
    finishes the item it is at.

    Args:
        items: what to iterate over; used by that thread alone.
        count: how many items may wait; with 0 there is no thread, and they are made when asked for.

    Yields:
        The items.
    """
    if count == 0:
        yield iter(items)
        return
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(count)
    left = threading.Event()

    def make() -> None:
        try:
            for item in items:
                made.put((item, None))
                if left.is_set():
                    return
            made.put((None, StopIteration()))
        except BaseException as error:  # whatever it is, it belongs to the thread that waits
            made.put((None, error))

    def wait() -> Iterator[T]:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # no error: there is one

    thread = threading.Thread(target=make, name="batches ahead", daemon=True)
    thread.start()
    try:
        yield wait()
    finally:
        left.set()
        while thread.is_alive():
            # A full queue would keep it.
            while not made.empty():
                made.get()
            thread.join(0.01)
