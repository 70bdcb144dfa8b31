"""Which GPUs compiled kernels run on."""

import pytest

from gpseg.backends.architectures import serves


@pytest.mark.parametrize(
    ("name", "served", "refused"),
    [
        ("sm_80", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
        ("sm_86", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("sm_90a", [(9, 0)], [(10, 0), (8, 9)]),
        ("sm_100f", [(10, 0), (10, 3)], [(12, 0), (9, 0)]),
        ("compute_80", [(8, 0), (9, 0), (10, 0), (12, 1)], [(7, 5)]),
        ("compute_90a", [(9, 0)], [(10, 0)]),
        ("compute_100f", [(10, 0), (10, 3)], [(11, 0), (9, 0)]),
    ],
)
def test_serves(name: str, served: list[tuple[int, int]], refused: list[tuple[int, int]]) -> None:
    assert all(serves([name], gpu) for gpu in served)
    assert not any(serves([name], gpu) for gpu in refused)


def test_one_of_several_is_enough() -> None:
    assert serves(["sm_80", "sm_100", "compute_100"], (12, 0))
    assert not serves(["sm_80", "sm_100"], (9, 0))
    assert not serves([], (9, 0))


def test_refuses_what_is_not_an_architecture() -> None:
    with pytest.raises(ValueError, match="hopper"):
        serves(["hopper"], (9, 0))
