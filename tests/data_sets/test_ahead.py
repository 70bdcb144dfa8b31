"""Batches made in the background: their order, errors, overlap with the step, and the end."""

import threading
import time
from collections.abc import Iterator

import pytest

from gpseg.data import made_ahead
from gpseg.errors import InputError


def threads() -> int:
    return sum(thread.name == "batches ahead" for thread in threading.enumerate())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_order_and_end(count: int) -> None:
    with made_ahead(range(10), count) as items:
        assert list(items) == list(range(10))
    assert threads() == 0


@pytest.mark.parametrize("count", [0, 2])
def test_an_error_comes_at_its_turn(count: int) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise InputError("7.png is not an image that can be read")

    with made_ahead(items(), count) as made:
        assert next(made) == 1
        with pytest.raises(InputError, match=r"7\.png"):
            next(made)
    assert threads() == 0


def test_leaving_early_ends_the_thread() -> None:
    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    with pytest.raises(KeyboardInterrupt), made_ahead(endless(), 2) as made:
        assert next(made) == 0
        raise KeyboardInterrupt
    assert threads() == 0


def test_no_more_than_asked_for_are_made_ahead() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    with made_ahead(items(), 2) as numbers:
        next(numbers)
        deadline = time.monotonic() + 10
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(made) == 4  # the one taken, two that wait, one in hand


def test_a_slow_item_is_made_while_the_one_before_is_used() -> None:
    used, made = threading.Event(), threading.Event()

    def slow() -> Iterator[int]:
        yield 0
        assert used.wait(10)  # as long as it takes until the first is in use
        made.set()
        yield 1

    with made_ahead(slow(), 1) as items:
        assert next(items) == 0
        used.set()
        assert made.wait(10)  # in the middle of the step
        assert next(items) == 1
