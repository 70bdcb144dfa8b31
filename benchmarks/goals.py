"""What gpseg wants to reach, as data, and whether a run's rows reach it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch

from benchmarks.measure import Settings, model_rows, operator_rows
from benchmarks.rows import Row
from gpseg.selftest.models import MODELS
from gpseg.selftest.problems import NAMED, PARTS
from gpseg.selftest.timing import Direction, ratios, serving_backends

Verdict = Literal["met", "missed", "not applicable", "not measured"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Figure = Literal["ratio", "of_copy", "memory_ratio", "over_float32", "over_compiled"]

THREADS = 2


@dataclass(frozen=True)
class Goal:
    """A figure that a row has to reach.

    Args:
        what: in words.
        problem, direction: of the row.
        figure: `ratio` to the textbook, `of_copy`: share of a copy's bandwidth, `memory_ratio` to the textbook, how
            many times as fast as gpseg `over_float32`, or as torch.compile `over_compiled`.
        bound: the least, or of memory the most.
        dtype: of gpseg's row.
        needs: a capability of the CPU without which the goal does not apply.
    """

    what: str
    problem: str
    direction: str
    figure: Figure
    bound: float
    dtype: str = "float32"
    needs: str = ""


def _operator(
    what: str, problem: str, least: float, direction: str = "forward"
) -> tuple[Goal, Goal]:
    return (
        Goal(what, problem, direction, "ratio", least),
        Goal(f"{what}: share of a copy's bandwidth", problem, direction, "of_copy", 0.6),
    )


def _step(precision: str, dtype: str) -> tuple[Goal, Goal]:
    what = f"training step at 64², {precision}"
    return (
        Goal(what, "pretraining-step-64", "step", "ratio", 3, dtype),
        Goal(f"{what}: peak memory", "pretraining-step-64", "step", "memory_ratio", 0.6, dtype),
    )


GOALS = (
    *_operator("upsample2d", "upsample2d-256", 40),
    *_operator("downsample2d", "downsample2d-256", 6),
    *_operator("filter2d", "filter2d-256", 6),
    *_operator("bias_act", "bias_act-lrelu-clamp-256", 4),
    *_operator("bias_act backward", "bias_act-lrelu-clamp-256", 3, "backward"),
    Goal("FIR + epilogue of the up=2 layer, 256²", "epilogue-up-256", "forward", "ratio", 3),
    Goal("FIR + epilogue of the up=2 layer, 64²", "epilogue-up-64", "forward", "ratio", 3),
    Goal(
        "generator forward 256², bfloat16 over float32",
        "generator-256",
        "forward",
        "over_float32",
        1.6,
        "bfloat16",
        "avx512_bf16",
    ),
    Goal("generator forward 256²", "generator-256", "forward", "ratio", 1.5),
    Goal("generator forward + backward 256²", "generator-256", "forward+backward", "ratio", 2),
    *_step("float32", "float32"),
    *_step("bfloat16, the default where the CPU computes in it", "bfloat16"),
    *(
        Goal("not slower than torch.compile", p.name, direction, "over_compiled", 1)
        for p in (*NAMED, *PARTS)
        for direction in (("forward",) if p in PARTS else ("forward", "backward"))
    ),
    *(
        Goal("not slower than torch.compile", p.name, direction, "over_compiled", 1)
        for p in MODELS
        for direction in p.directions
        if p.kind != "r1 step"
    ),
)
"""float32, NCHW (of models what each has), against the textbook unless it says otherwise."""


@dataclass(frozen=True)
class Outcome:
    """A goal, and what came of it: met, missed, not applicable here, or not measured; with the spread where there is
    one."""

    goal: Goal
    verdict: Verdict
    value: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""


def judge(goal: Goal, rows: Sequence[Row], own: str, capabilities: Sequence[str]) -> Outcome:
    """Whether rows reach a goal.

    Args:
        goal: what to reach.
        rows: of one run.
        own: name of the backend that stands for gpseg.
        capabilities: of the CPU.
    """
    if goal.needs and goal.needs not in capabilities:
        return Outcome(goal, "not applicable", why=f"this CPU has no {goal.needs}")

    def find(contestant: str, dtype: str) -> Row | None:
        key = (goal.problem, goal.direction, contestant, dtype)
        found = (r for r in rows if (r.problem, r.direction, r.contestant, r.dtype) == key)
        return next(found, None)

    row = find(own, goal.dtype)
    if row is None:
        return Outcome(goal, "not measured", why=f"{own} did not take part")
    if row.outcome == "failed":
        return Outcome(goal, "not measured", why=f"{own} failed: {row.error}")
    value: float | None
    low: float | None = None
    high: float | None = None
    if goal.figure in ("over_float32", "over_compiled"):
        other = find(
            *((own, "float32") if goal.figure == "over_float32" else ("compiled", "float32"))
        )
        if other is None or other.outcome == "failed":
            why = "it did not take part" if other is None else other.error
            return Outcome(goal, "not measured", why=f"nothing to compare with: {why}")
        value, low, high = ratios(other.times, row.times)
    else:
        value = getattr(row, goal.figure)
        if goal.figure == "ratio":
            low, high = row.ratio_low, row.ratio_high
    if value is None:
        return Outcome(goal, "not measured", why="there is no such figure here")
    met = value <= goal.bound if goal.figure == "memory_ratio" else value >= goal.bound
    return Outcome(goal, "met" if met else "missed", value, low, high)


def rows_for_goals(settings: Settings) -> Iterator[Row]:
    """Measure what the goals need and nothing else."""
    own = serving_backends()[0]
    needed = replace(settings, contestants=(own, "compiled"), memory=False)
    wanted = {(g.problem, g.direction) for g in GOALS}
    of_memory = {g.problem for g in GOALS if g.figure == "memory_ratio"}
    for problem in (*NAMED, *PARTS):
        directions: list[Direction] = [
            d for d in ("forward", "backward") if (problem.name, d) in wanted
        ]
        if directions:
            yield from operator_rows(problem, directions, torch.float32, "nchw", needed)
    for model in MODELS:
        asked = [d for d in model.directions if (model.name, d) in wanted]
        weighed = settings.memory and model.name in of_memory
        memory = replace(needed, memory=weighed, memory_but=("compiled",))
        if asked:
            yield from model_rows(model, asked, [torch.bfloat16], memory)


def cells(outcome: Outcome) -> list[str]:
    """What a table says of an outcome, under `HEADS`."""
    goal = outcome.goal
    sign, unit = ("≤", "×") if goal.figure == "memory_ratio" else ("≥", "×")
    show: Callable[[float], str] = lambda x: f"{x:.2f}{unit}"  # noqa: E731
    if goal.figure == "of_copy":
        show = lambda x: f"{x:.0%}"  # noqa: E731
    value = "" if outcome.value is None else show(outcome.value)
    if outcome.low is not None and outcome.high is not None:
        value += f" [{outcome.low:.2f}, {outcome.high:.2f}]"
    verdict = outcome.verdict + (f": {outcome.why}" if outcome.why else "")
    where = f"{goal.problem} {goal.direction}"
    return [goal.what, where, f"{sign} {show(goal.bound)}", value, verdict]


HEADS = ("goal", "problem", "wanted", "measured [20 %, 80 %]", "")
