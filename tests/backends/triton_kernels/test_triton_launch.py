"""Launching: where, with which configuration, and how one is measured."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gpseg import ops
from gpseg.backends import measured
from gpseg.backends.triton import configurations, launch
from gpseg.backends.triton.configurations import HALF, Configuration, Row

pytest.importorskip("triton", reason="needs triton")

SMALL, LARGE, WIDE, DEEP = (
    Configuration({"BLOCK": block}, warps) for block, warps in ((32, 4), (64, 4), (64, 8), (32, 8))
)
OTHER_SIZES = Configuration({"ROWS": 8})

TABLE = (
    Row("kernel", SMALL),
    Row("kernel", LARGE, shape="planes"),
    Row("kernel", WIDE, since=100),
    Row("kernel", LARGE, dtypes=HALF),  # again
    Row("kernel", DEEP, dtypes=frozenset({torch.float64})),
    Row("kernel", DEEP, platform="hip"),
    Row("kernel", OTHER_SIZES, shape="other"),
    Row("another", DEEP),
)

with FakeTensorMode():
    X = torch.empty(2, 3, 4, 4, dtype=torch.float16, device="cuda")
    X_CHANNELS_LAST = X.contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def forget() -> None:
        configurations.configuration.cache_clear()
        launch._choices.cache_clear()
        measured.forget()

    monkeypatch.delenv("GPSEG_ROUTES", raising=False)
    monkeypatch.setattr(configurations, "TABLE", TABLE)
    monkeypatch.setattr(launch, "TABLE", TABLE)
    monkeypatch.setattr(launch, "target_of", lambda device: ("cuda", 90))
    monkeypatch.setattr(measured, "_name", lambda device: "a GPU")
    monkeypatch.setattr(measured, "_capturing", lambda device: False)
    forget()
    yield
    forget()
    ops.benchmark = False


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Configuration]:
    """More warps are faster; gives the list of configurations that are timed."""
    configurations: list[Configuration] = []

    def took(device: torch.device, way: Callable[[], Configuration]) -> float:
        configurations.append(way())
        return 1 / configurations[-1].warps

    monkeypatch.setattr(measured, "_timed", took)
    return configurations


def itself(configuration: Configuration) -> Configuration:
    return configuration


def test_the_table_decides_unless_asked_to_measure(timed: list[Configuration]) -> None:
    assert launch.configured("kernel", X, "", itself) is LARGE
    assert launch.configured("another", X, "", itself) is DEEP
    assert not timed


def test_other_lines_are_measured_once_for_each_problem(timed: list[Configuration]) -> None:
    ops.benchmark = True
    assert launch.configured("kernel", X, "", itself) is WIDE
    assert timed[:3] == [LARGE, SMALL, WIDE]  # the usual one first, each once
    count = len(timed)
    assert launch.configured("kernel", X, "", itself) is WIDE
    assert len(timed) == count
    launch.configured("kernel", X, "planes", itself)
    launch.configured("kernel", X, "", itself, problem="another")
    launch.configured("kernel", X_CHANNELS_LAST, "", itself)
    assert len(timed) == 4 * count


def test_what_does_not_fit_the_gpu_is_left_out(timed: list[Configuration]) -> None:
    from triton.runtime.errors import OutOfResources

    def run(configuration: Configuration) -> Configuration:
        if configuration is WIDE:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return configuration

    ops.benchmark = True
    assert launch.configured("kernel", X, "", run) is LARGE
    assert WIDE not in timed


def test_what_is_wrong_with_every_configuration_is_an_error(timed: list[Configuration]) -> None:
    def run(configuration: Configuration) -> Configuration:
        raise RuntimeError("an illegal memory access")

    ops.benchmark = True
    with pytest.raises(RuntimeError, match="an illegal memory access"):
        launch.configured("kernel", X, "", run)


def test_one_configuration_is_no_choice(timed: list[Configuration]) -> None:
    ops.benchmark = True
    assert launch.configured("another", X, "", itself) is DEEP
    assert not timed


def test_nothing_is_measured_in_an_emulator(timed: list[Configuration]) -> None:
    ops.benchmark = True
    assert launch.configured("kernel", torch.zeros(2, 3).half(), "", itself) is LARGE
    assert not timed


@pytest.mark.parametrize("programs", [0, 3])
def test_a_launch_goes_to_its_tensors(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[object] = []
    monkeypatch.setattr(launch, "emulate", lambda *args, **options: launched.extend(args))
    x = torch.zeros(2)
    launch.launch("kernel", programs, x, x, 2, num_warps=4)
    assert launched == (["kernel", 3, x, 2] if programs else [])
