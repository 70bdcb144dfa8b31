"""Checks of options that are numbers; nan and inf pass none of them."""

import math
from collections.abc import Callable

from gpseg.errors import InputError

MAX_SEED = 2**63 - 1


def check_positive(options: object, *names: str) -> None:
    """Raise InputError unless each of these options is above 0."""
    _check(options, names, lambda value: 0 < value < math.inf, "a number above 0")


def check_not_negative(options: object, *names: str) -> None:
    """Raise InputError unless each of these options is 0 or more."""
    _check(options, names, lambda value: 0 <= value < math.inf, "0 or more")


def check_least(options: object, least: int, *names: str) -> None:
    """Raise InputError unless each of these options is `least` or more; one that is None isn't given."""
    given = tuple(name for name in names if getattr(options, name) is not None)
    _check(options, given, lambda value: least <= value, f"{least} or more")


def check_share(options: object, *names: str) -> None:
    """Raise InputError unless each of these options is from 0 to 1."""
    _check(options, names, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def check_seed(options: object) -> None:
    """Raise InputError unless the option `seed` is one that torch takes everywhere."""
    wanted = f"a whole number from 0 to {MAX_SEED}"
    _check(options, ("seed",), lambda value: 0 <= value <= MAX_SEED, wanted)


def _check(
    options: object, names: tuple[str, ...], fits: Callable[[float], bool], wanted: str
) -> None:
    for name in names:
        value = getattr(options, name)
        if not fits(value):
            raise InputError(f"--{name.replace('_', '-')} {value}: give {wanted}")
