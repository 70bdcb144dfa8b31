"""Is every operator right, on every backend, type, layout and direction, and in the situations that GPUs bring?

A check that fails, or can't be carried out, is a row like any other, and the next one follows.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from gpseg import ops
from gpseg.backends import measured, refusal, routes
from gpseg.selftest.comparison import (
    DIRECTIONS,
    DTYPES,
    FORWARD,
    LAYOUTS,
    derivatives,
    relative_rms,
    tolerance,
    wanted,
)
from gpseg.selftest.problems import LARGE, ODD, SMALL, by_name

Outcome = Literal["passed", "failed", "error", "skipped"]

SITUATIONS = (
    "upsample2d-odd",
    "downsample2d-12-even",
    "lrelu-even",
    "swish-odd",
    "conv-down",
    "layer-wide",
    "layer-up-even",
    "to-rgb-8",
)
"""Problems for what is a matter of streams, graphs and devices rather than of sizes."""

_DELAY = 100_000_000
"""Clock cycles, some hundredths of a second: far longer than a kernel takes to start."""


@dataclass(frozen=True)
class Case:
    """One check to make.

    Args:
        check: of `CHECKS`.
        problem: its name.
        backend: forced.
        device: as torch prints it.
        dtype, layout, direction: as `gpseg.selftest.comparison` names them, or "forward+backward".
    """

    check: str
    problem: str
    backend: str
    device: str
    dtype: str
    layout: str
    direction: str

    def inputs(self, seed: int = 0) -> dict[str, Tensor]:
        """The problem's tensors, drawn on the CPU."""
        drawn = by_name(self.problem).tensors(DTYPES[self.dtype], seed)
        return {name: t.to(self.device) for name, t in drawn.items()}


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Args:
        outcome: "error" if the operator raised, "skipped" if there is not enough memory.
        error: the worst relative root-mean-square error; None if there is none, or no finite one.
        tolerance: what it may be; 0 where the result has to be the same to the bit.
        detail: the tensor that the error belongs to, or what went wrong.
    """

    outcome: Outcome
    error: float | None = None
    tolerance: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class CheckResult:
    """A check and what it found; `route` is the one forced, "" where there was no choice."""

    case: Case
    route: str
    finding: Finding


def judged(errors: Mapping[str, float], most: float) -> Finding:
    """Whether the errors, by tensor, are all at most `most`."""
    worst = max(errors, key=lambda name: (not math.isfinite(errors[name]), errors[name]))
    error = errors[worst]
    outcome: Outcome = "passed" if error <= most else "failed"
    if not math.isfinite(error):
        return Finding(outcome, None, most, f"{worst} is not finite")
    return Finding(outcome, error, most, worst)


def _same(got: Sequence[Tensor], want: Sequence[Tensor]) -> Finding:
    """Whether the tensors are the same to the bit; NaN is never the same."""
    errors = {
        f"tensor {i}": 0.0 if torch.equal(g, w) else max(relative_rms(g, w), 1e-30)
        for i, (g, w) in enumerate(zip(got, want, strict=True))
    }
    return judged(errors, 0.0)


def _textbook(case: Case) -> Finding:
    """Result or derivatives, against the textbook in float64 on the CPU."""
    problem, dtype, order = by_name(case.problem), DTYPES[case.dtype], DIRECTIONS[case.direction]
    got = derivatives(problem, ops, case.inputs(), order, LAYOUTS[case.layout], dtype)
    if wrong := [f"{name} is {t.dtype}" for name, t in got.items() if t.dtype != dtype]:
        return Finding("failed", detail=wrong[0])
    want = wanted(case.problem, dtype, order)
    errors = {name: relative_rms(t, want[name]) for name, t in got.items()}
    return judged(errors, tolerance(problem, dtype, order))


def _autocast(case: Case) -> Finding:
    """Under autocast convolutions compute in bfloat16, the other operators in the type of their input."""
    problem, dtype = by_name(case.problem), DTYPES[case.dtype]
    with torch.autocast(torch.device(case.device).type, torch.bfloat16):
        got = derivatives(problem, ops, case.inputs(), FORWARD, LAYOUTS[case.layout], dtype)["y"]
    convolves = "w" in problem.sizes or "weight" in problem.sizes
    expected = torch.bfloat16 if convolves else dtype
    if got.dtype != expected:
        return Finding("failed", detail=f"y is {got.dtype}, not {expected}")
    error = relative_rms(got, wanted(case.problem, dtype, FORWARD)["y"])
    return judged({"y": error}, tolerance(problem, expected, FORWARD))


class _Step:
    """A problem's result and first gradients as a call that needs nothing but what lies on the device already."""

    def __init__(self, case: Case) -> None:
        problem, layout = by_name(case.problem), LAYOUTS[case.layout]
        self._function = getattr(ops, problem.op)
        self._arguments = problem.arguments(case.device)
        self._leaves = {k: layout(t).requires_grad_() for k, t in case.inputs().items()}
        with torch.no_grad():
            self._dy = torch.randn_like(self._function(**self._leaves, **self._arguments))

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite the inputs, on the current stream."""
        with torch.no_grad():
            for name, leaf in self._leaves.items():
                leaf.copy_(values[name])

    def __call__(self) -> list[Tensor]:
        y = self._function(**self._leaves, **self._arguments)
        # detached, so that no node of this graph, tied to its stream, is there when another stream's is built
        return [y.detach(), *torch.autograd.grad(y, [*self._leaves.values()], self._dy)]


def _repeated(case: Case) -> Finding:
    """The same numbers again."""
    step = _Step(case)
    return _same(step(), step())


def _side_stream(case: Case) -> Finding:
    """On a stream of its own, whose inputs come late: a kernel on another stream would find NaN in their place."""
    step, values = _Step(case), case.inputs()
    want = step()
    step.load({name: torch.full_like(t, torch.nan) for name, t in values.items()})
    torch.cuda.synchronize(case.device)
    stream = torch.cuda.Stream(case.device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(_DELAY)
        step.load(values)
        got = step()
    stream.synchronize()
    return _same(got, want)


def _cuda_graph(case: Case) -> Finding:
    """Captured once, and replayed with other inputs than those of the capture."""
    step = _Step(case)
    stream = torch.cuda.Stream(case.device)
    stream.wait_stream(torch.cuda.current_stream(case.device))
    with torch.cuda.stream(stream):
        for _ in range(2):  # libraries initialise themselves at first use
            step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    step.load(case.inputs(seed=1))
    graph.replay()
    torch.cuda.synchronize(case.device)
    return _same(got, step())


def _measured(case: Case) -> Finding:
    """With choices of routes and launch configurations made by measurement."""
    with routes.forced(None), measured.switched(True):
        return _textbook(case)


def _beyond_int32(case: Case) -> Finding:
    """More than 2³¹ elements: the samples on both sides of that, against the same samples by themselves."""
    problem = by_name(case.problem)
    layout = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    generator = torch.Generator(case.device).manual_seed(0)

    def draw(size: Sequence[int]) -> Tensor:
        t = torch.empty(*size, dtype=DTYPES[case.dtype], device=case.device, memory_format=layout)
        return t.normal_(generator=generator)

    x = draw(problem.sizes["x"]).requires_grad_()
    y = problem.call(ops, {"x": x})
    dy = draw(y.shape)
    (dx,) = torch.autograd.grad(y, x, dy)
    got, want = [], []
    for n in (0, len(x) // 2, len(x) - 2, len(x) - 1):
        sample = x.detach()[n : n + 1].clone(memory_format=layout).requires_grad_()
        alone = problem.call(ops, {"x": sample})
        got += [y[n : n + 1], dx[n : n + 1]]
        want += [alone, *torch.autograd.grad(alone, sample, dy[n : n + 1])]
    return _same(got, want)


CHECKS: dict[str, Callable[[Case], Finding]] = {
    "textbook": _textbook,
    "autocast": _autocast,
    "repeated": _repeated,
    "side stream": _side_stream,
    "CUDA graph": _cuda_graph,
    "measured": _measured,
    "beyond int32": _beyond_int32,
}


def cases(backends: Sequence[str], devices: Sequence[str]) -> list[Case]:
    """Every check to make; of several GPUs the first gets all, the others, which are never the current one, a few."""
    first_gpu = next((d for d in devices if d.startswith("cuda")), None)
    whole = [d for d in devices if d in ("cpu", first_gpu)]
    gpus = [] if first_gpu is None else [first_gpu]
    small = [p.name for p in (*SMALL, *ODD)]
    large = [p.name for p in LARGE]
    once, floats = ["forward+backward"], ["bf16", "f32"]
    # on a GPU the reference is PyTorch's own calls, and their limits of size are not gpseg's
    own = [b for b in backends if b != "eager"]
    grids = [
        product(["textbook"], small, backends, whole, DTYPES, LAYOUTS, DIRECTIONS),
        product(["autocast"], SITUATIONS, backends, whole, ["f32"], LAYOUTS, ["forward"]),
        product(["repeated"], SITUATIONS, backends, whole, DTYPES, LAYOUTS, once),
        product(["side stream"], SITUATIONS, backends, gpus, floats, LAYOUTS, once),
        product(["CUDA graph"], SITUATIONS, backends, gpus, floats, LAYOUTS, once),
        product(["measured"], SITUATIONS, own, gpus, floats, LAYOUTS, ["backward"]),
        product(["beyond int32"], large, own, gpus, ["bf16"], LAYOUTS, once),
        product(
            ["textbook"],
            SITUATIONS,
            backends,
            [d for d in devices if d not in whole],
            floats,
            LAYOUTS,
            ["forward", "backward"],
        ),
    ]
    every = [Case(*values) for grid in grids for values in grid]
    return [c for c in every if not refusal(c.backend, torch.device(c.device), DTYPES[c.dtype])]


def rows(case: Case) -> Iterator[CheckResult]:
    """Make the check; twice where there is a choice of routes, once by each."""
    with routes.forced(routes.COMPOSED) as chosen:
        finding = _found(case)
    yield CheckResult(case, routes.COMPOSED if chosen else "", finding)
    if chosen:
        with routes.forced(routes.FUSED):
            yield CheckResult(case, routes.FUSED, _found(case))


def _found(case: Case) -> Finding:
    try:
        with strict(), ops.use_backend(case.backend):
            return CHECKS[case.check](case)
    except torch.OutOfMemoryError:
        return Finding("skipped", detail="not enough memory")
    except Exception as error:
        return Finding("error", detail=one_line(error))


def one_line(error: Exception) -> str:
    """Its kind and message, cut where it gets long."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """Uninitialised memory is NaN, so that an output that no kernel wrote shows; float32 is float32, not TF32; torch's
    own operators are as repeatable as they can be."""
    precision = torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with (
        warnings.catch_warnings(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        warnings.simplefilter("ignore")  # that some operator of torch is not deterministic
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
