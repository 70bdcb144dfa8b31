"""What `python -m benchmarks` does."""

import fnmatch
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from benchmarks import goals, growth, revision, rows, tables
from benchmarks.environment import described, environment
from benchmarks.measure import Settings, model_rows, operator_rows
from benchmarks.report import COMPARED, Report, compare
from benchmarks.rows import Row
from gpseg.errors import InputError, RunError
from gpseg.selftest import models, problems
from gpseg.selftest.models import MODELS, ModelProblem
from gpseg.selftest.problems import FAMILIES, NAMED, PARTS, Problem
from gpseg.selftest.timing import serving_backends
from gpseg.training.device import choose_device

Directions = Literal["forward", "backward", "double_backward"]
Dtypes = Literal["float32", "bfloat16", "float16", "float64"]
Layouts = Literal["nchw", "channels_last"]

CONTESTANTS = ("textbook", "compiled", "grouped")


@dataclass
class BenchmarkConfig:
    """Options of the benchmarks."""

    problems: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Problems by name or pattern, such as upsample2d-256 or 'layer*'. Default: the operators'; all that there are stand
    in gpseg/selftest/problems.py and models.py."""
    directions: tuple[Directions, ...] = ("forward", "backward")
    """What to measure of operators; models have their own."""
    dtypes: tuple[Dtypes, ...] = ("float32",)
    """Types of images; of models, types of gpseg's features beside float32."""
    layouts: tuple[Layouts, ...] = ("nchw",)
    """Layouts of images; the textbook is NCHW and eager channels_last all the same."""
    contestants: tuple[str, ...] = ()
    """Who takes part besides the textbook: compiled, grouped, or a backend such as cpp. Default: everybody."""
    models: bool = False
    """Measure whole models too."""
    scaling: bool = False
    """Measure how time and memory grow with pixels, batch and threads, and nothing else unless problems are named."""
    goals: bool = False
    """Measure what the goals need and nothing else, on two threads, and say which are met."""
    threads: int | None = None
    """Threads of the CPU. Default: as many as torch takes; with --goals two."""
    seconds: float = 1.0
    """Measure each row for this long; slow ones take longer, for 7 rounds (models 5)."""
    memory: bool = True
    """Whether to measure the peak of memory, each time in a process of its own."""
    base: str | None = None
    """Compare with another revision of this checkout instead: its CPU kernels are built in a temporary folder, and both
    take turns."""
    compare: Path | None = None
    """Compare with an earlier run: its results.json or folder."""
    device: str = "cpu"
    """cpu, cuda, cuda:1 …; auto is a GPU if there is one."""
    out: Path | None = None
    """Folder for results.json, report.md and report.html; new or empty. Default: runs/benchmarks-<date>-<time>."""


def benchmark(config: BenchmarkConfig) -> None:
    """Check, measure, print, and write the files.

    Raises:
        InputError: an option is wrong.
        RunError: a contestant gave wrong results, or another revision could not be measured.
    """
    if config.base is not None and (config.goals or config.scaling or config.contestants):
        raise InputError(
            "--base: goes with problems, not with --goals, --scaling or --contestants; leave these out"
        )
    settings = _settings(config)
    operators, whole = _problems(config)
    commit = None if config.base is None else revision.resolve(config.base)
    earlier = None if config.compare is None else rows.read(config.compare)
    folder = _folder(config.out)
    torch.set_num_threads(settings.threads)
    report = Report(environment(settings.threads, settings.device))
    print("\n".join(described(report.environment)))
    if commit is not None:
        _against(config, settings, operators, whole, commit, report)
    else:
        print(f"\n{tables.heading()}")
        _measure(config, settings, operators, whole, report, folder)
    if config.goals:
        _judge(report)
    if config.scaling:
        report.laws = growth.laws(report.rows, settings.device)
        _print_table(growth.HEADS, growth.lines(report.laws))
    if earlier is not None:
        report.earlier = str(config.compare)
        report.compared = compare(report.rows, earlier)
        _print_table(COMPARED, report.compared)
    report.write(folder)
    print(f"\nWrote {folder}/{rows.NAME}, report.md and report.html.")
    wrong = [r.contestant for r in report.failed] + [c.problem for c in report.changes if c.error]
    if wrong:
        raise RunError(f"{len(wrong)} of the rows failed and were not timed; see above")


def _settings(config: BenchmarkConfig) -> Settings:
    if config.seconds < 0:
        raise InputError(f"--seconds {config.seconds}: give 0 or more")
    if config.threads is not None and config.threads < 1:
        raise InputError(f"--threads {config.threads}: give 1 or more")
    known = (*CONTESTANTS, *serving_backends())
    for name in config.contestants:
        if name not in known:
            raise InputError(
                f"--contestants: no contestant {name} here; there are: {', '.join(known)}"
            )
    default = goals.THREADS if config.goals else torch.get_num_threads()
    device = choose_device(config.device)
    return Settings(
        config.seconds, config.threads or default, device, config.contestants, config.memory
    )


def _problems(config: BenchmarkConfig) -> tuple[list[Problem], list[ModelProblem]]:
    """The operators' problems and the models' that are asked for."""
    if not config.problems:
        return [*NAMED, *PARTS], [*MODELS] if config.models else []
    every = {**problems.BY_NAME, **models.BY_NAME}
    usual = [p.name for p in (*NAMED, *PARTS, *MODELS)]
    names: dict[str, None] = {}
    for asked in config.problems:
        found = [asked] if asked in every else fnmatch.filter(usual, asked)
        if not found:
            raise InputError(f"no problem {asked}; there are: {', '.join(usual)}")
        names |= dict.fromkeys(found)
    return (
        [problems.BY_NAME[name] for name in names if name in problems.BY_NAME],
        [models.BY_NAME[name] for name in names if name in models.BY_NAME],
    )


def _folder(out: Path | None) -> Path:
    folder = out or Path("runs") / f"benchmarks-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out {folder}: already there and not empty; give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: can't be made ({error.strerror})") from error
    return folder


def _measure(
    config: BenchmarkConfig,
    settings: Settings,
    operators: Sequence[Problem],
    whole: Sequence[ModelProblem],
    report: Report,
    folder: Path,
) -> None:
    """All rows, into the report and on the screen; results.json is written as it goes, for a run that is cut short."""
    race = ""
    for row in _rows(config, settings, operators, whole):
        report.rows.append(row)
        if race != row.race:
            race = row.race
            print(f"\n{race}")
            rows.write(folder / rows.NAME, report.environment, report.rows)
        print(tables.text(row), flush=True)


def _rows(
    config: BenchmarkConfig,
    settings: Settings,
    operators: Sequence[Problem],
    whole: Sequence[ModelProblem],
) -> Iterable[Row]:
    if config.goals:
        yield from goals.rows_for_goals(settings)
        return
    dtypes = [getattr(torch, name) for name in config.dtypes]
    if not config.scaling or config.problems:
        for problem in operators:
            for dtype in dtypes:
                for layout in config.layouts:
                    yield from operator_rows(problem, config.directions, dtype, layout, settings)
        for model in whole:
            yield from model_rows(model, model.directions, dtypes, settings)
    if config.scaling:
        directions = [d for d in config.directions if d != "double_backward"]
        for dtype in dtypes:
            for layout in config.layouts:
                yield from growth.growth_rows([*FAMILIES], directions, dtype, layout, settings)


def _against(
    config: BenchmarkConfig,
    settings: Settings,
    operators: Sequence[Problem],
    whole: Sequence[ModelProblem],
    commit: str,
    report: Report,
) -> None:
    races = [
        revision.Race(p.name, direction, dtype, layout, str(settings.device), settings.threads)
        for p in operators
        for dtype in config.dtypes
        for layout in config.layouts
        for direction in config.directions
        if direction == "forward" or p not in PARTS
    ]
    races += [
        revision.Race(
            p.name, direction, dtype, "channels_last", str(settings.device), settings.threads
        )
        for p in whole
        for dtype in config.dtypes
        for direction in p.directions
    ]
    assert config.base is not None
    report.base = f"{config.base} ({commit[:12]})"
    print(f"\nBuilding {report.base} …\n\n  {'  '.join(revision.HEADS)}", flush=True)
    for change in revision.changes(races, commit, settings.seconds):
        report.changes.append(change)
        name, *figures = revision.cells(change)
        print(f"  {name:<56}" + "  ".join(f"{f:>10}" for f in figures).rstrip(), flush=True)


def _judge(report: Report) -> None:
    own, capabilities = serving_backends()[0], report.environment["capabilities"]
    report.outcomes = [goals.judge(g, report.rows, own, capabilities) for g in goals.GOALS]
    _print_table(goals.HEADS, [goals.cells(o) for o in report.outcomes])
    counts = {v: sum(o.verdict == v for o in report.outcomes) for v in goals.VERDICTS}
    print("\n" + ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n) + ".")


def _print_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    every = [heads, *lines]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    print()
    for line in every:
        cells = (c.ljust(w) for c, w in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip(), flush=True)
