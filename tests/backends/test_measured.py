"""Choices by measurement: made once for a problem, kept in a file, never made where they would do harm."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gpseg import ops
from gpseg.backends import measured

CPU = torch.device("cpu")
GPU = torch.device("cuda:0")
HERE = f"cpu, torch {torch.__version__}"
WAYS = {name: lambda name=name: name for name in ("slow", "fast", "slower")}
SECONDS = {"slow": 2.0, "fast": 1.0, "slower": 3.0}


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GPSEG_ROUTES", raising=False)
    measured.forget()
    ops.benchmark = True
    yield
    measured.forget()
    ops.benchmark = False


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ways take `SECONDS`; gives the list of those that are timed."""
    names: list[str] = []

    def took(device: torch.device, way: Callable[[], str]) -> float:
        names.append(way())
        return SECONDS[names[-1]]

    monkeypatch.setattr(measured, "_timed", took)
    return names


def test_each_problem_is_measured_once(timed: list[str]) -> None:
    assert ops.benchmark
    assert measured.fastest(CPU, "problem", WAYS) == "fast"
    assert timed[:4] == ["slow", "fast", "slower", "slow"]  # they take turns
    count = len(timed)
    assert measured.fastest(CPU, "problem", WAYS) == "fast"
    assert len(timed) == count
    measured.fastest(CPU, "another", WAYS)
    assert len(timed) == 2 * count


def test_nothing_is_measured_unless_asked(timed: list[str]) -> None:
    ops.benchmark = False
    assert measured.fastest(CPU, "problem", WAYS) is None
    assert not timed


def test_nothing_is_measured_where_results_are_to_be_the_same_every_time(timed: list[str]) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert measured.fastest(CPU, "problem", WAYS) is None
    finally:
        torch.use_deterministic_algorithms(False)
    assert not timed


def test_no_memory_to_measure_is_no_choice() -> None:
    def hungry() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert measured.fastest(CPU, "problem", {**WAYS, "hungry": hungry}) is None
    assert not measured.choices()


def test_a_choice_holds_only_while_benchmark_is_on(timed: list[str]) -> None:
    assert measured.fastest(CPU, "problem", WAYS) == "fast"
    ops.benchmark = False
    assert measured.fastest(CPU, "problem", WAYS) is None


@pytest.mark.parametrize("on", [True, False])
def test_switched_for_a_while(on: bool, timed: list[str]) -> None:
    ops.benchmark = not on
    with measured.switched(on):
        assert (measured.fastest(CPU, "problem", WAYS) is not None) == on
    assert ops.benchmark is not on
    assert measured.choices() == ({HERE: {"problem": "fast"}} if on else {})


def test_only_what_is_known_is_used_in_a_cuda_graph(
    timed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "_name", lambda device: "a GPU")
    capturing = False
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    assert measured.fastest(GPU, "known", WAYS) == "fast"
    count, capturing = len(timed), True
    assert measured.fastest(GPU, "known", WAYS) == "fast"
    assert measured.fastest(GPU, "new", WAYS) is None
    assert len(timed) == count


class TestUnfit:
    """Ways that can't be taken."""

    @staticmethod
    def refuses() -> None:
        raise LookupError("too little shared memory")

    def test_the_others_are_measured(self, timed: list[str]) -> None:
        ways = {"unfit": self.refuses, **WAYS}
        assert measured.fastest(CPU, "problem", ways, (LookupError,)) == "fast"
        assert set(timed) == set(WAYS)

    def test_no_choice_without_a_fit_one(self, timed: list[str]) -> None:
        ways = {"unfit": self.refuses}
        assert measured.fastest(CPU, "problem", ways, (LookupError,)) is None
        assert not timed

    def test_any_other_exception_is_an_error(self) -> None:
        with pytest.raises(LookupError):
            measured.fastest(CPU, "problem", {"unfit": self.refuses}, (KeyError,))


def test_times_are_real() -> None:
    def waits() -> None:
        end = measured.time.perf_counter() + 1e-3
        while measured.time.perf_counter() < end:
            pass

    assert measured.fastest(CPU, "problem", {"slow": waits, "fast": lambda: None}) == "fast"


class TestFile:
    """GPSEG_ROUTES."""

    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        path = tmp_path / "new folder" / "routes.json"
        monkeypatch.setenv("GPSEG_ROUTES", str(path))
        return path

    def test_remembers_across_processes(self, path: Path, timed: list[str]) -> None:
        assert measured.fastest(CPU, "problem", WAYS) == "fast"
        assert json.loads(path.read_text()) == {HERE: {"problem": "fast"}}
        assert [p.name for p in path.parent.iterdir()] == ["routes.json"]
        count = len(timed)
        measured.forget()
        assert measured.fastest(CPU, "problem", WAYS) == "fast"
        assert len(timed) == count

    def test_keeps_what_others_wrote(self, path: Path, timed: list[str]) -> None:
        measured.fastest(CPU, "problem", WAYS)
        other = {"another GPU": {"problem": "slow"}, **json.loads(path.read_text())}
        path.write_text(json.dumps(other))
        measured.fastest(CPU, "another", WAYS)
        stored = json.loads(path.read_text())
        assert stored["another GPU"] == {"problem": "slow"}
        assert stored[HERE] == {"problem": "fast", "another": "fast"}

    def test_a_way_that_is_gone_is_measured_again(self, path: Path, timed: list[str]) -> None:
        path.parent.mkdir()
        path.write_text(json.dumps({HERE: {"problem": "of an older version"}}))
        assert measured.fastest(CPU, "problem", WAYS) == "fast"
        assert json.loads(path.read_text()) == {HERE: {"problem": "fast"}}

    @pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"cpu": 3}', "\x00\x01"])
    def test_a_spoilt_file_is_replaced(self, path: Path, content: str, timed: list[str]) -> None:
        path.parent.mkdir()
        path.write_text(content)
        assert measured.fastest(CPU, "problem", WAYS) == "fast"
        assert json.loads(path.read_text())

    def test_a_file_that_can_not_be_written_stops_nothing(
        self, path: Path, timed: list[str]
    ) -> None:
        path.parent.write_text("a file where the folder should be")
        assert measured.fastest(CPU, "problem", WAYS) == "fast"
