"""This tree against another revision of it: `--base REV`."""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT, git
from gpseg.errors import InputError, RunError
from gpseg.selftest.timing import ratios

WORKER = Path(__file__).with_name("worker.py")
_LEAST_ROUNDS = 7


@dataclass(frozen=True)
class Race:
    """A problem for both revisions, as `benchmarks.prepared.timed_call` takes it."""

    problem: str
    direction: str
    dtype: str
    layout: str
    device: str
    threads: int


@dataclass(frozen=True)
class Change:
    """What became of a problem: seconds here and there, and how many times as fast this tree is, by round.

    Args:
        problem, direction, dtype, layout: what.
        new, old: median seconds of this tree and of the other revision; None if one of them failed.
        ratio, low, high: median, 20th and 80th percentile of the rounds' old/new.
        error: why there are no figures.
    """

    problem: str
    direction: str
    dtype: str
    layout: str
    new: float | None = None
    old: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    error: str = ""


def resolve(revision: str, tree: Path = ROOT) -> str:
    """The commit that a name stands for.

    Raises:
        InputError: there is none, or the tree is no git checkout.
    """
    try:
        git(tree, "rev-parse", "--git-dir")
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"--base: {tree} is no git checkout; clone the repository to compare"
        ) from error
    try:
        return git(tree, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except subprocess.CalledProcessError as error:
        raise InputError(
            f"--base {revision}: no such revision; give a commit, branch or tag, such as HEAD~1"
        ) from error


def build(tree: Path) -> None:
    """Compile a tree's CPU kernels where they are.

    Raises:
        RunError: it fails.
    """
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tree,
        env={**os.environ, "GPSEG_BUILD_CUDA": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = [*filter(None, (done.stdout + done.stderr).splitlines()), "nothing was said"]
        raise RunError(
            f"--base: its kernels can't be built: {last[-2] if len(last) > 1 else last[0]}"
        )


@contextlib.contextmanager
def checked_out(
    commit: str, tree: Path = ROOT, prepare: Callable[[Path], None] = build
) -> Iterator[Path]:
    """A commit in a folder of its own, built, which is gone afterwards, however that comes.

    Args:
        commit: as `resolve` gives it.
        tree: the checkout that knows it.
        prepare: what makes the new checkout usable.
    """
    folder = Path(tempfile.mkdtemp(prefix="gpseg-base-"))
    checkout = folder / "tree"
    try:
        git(tree, "worktree", "add", "--detach", "--force", str(checkout), commit)
        prepare(checkout)
        yield checkout
    except subprocess.CalledProcessError as error:
        raise RunError(f"--base: git: {error.stderr.strip()}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            git(tree, "worktree", "prune")


class Worker:
    """A process that measures with a tree's operators; a context that ends it."""

    def __init__(self, tree: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), str(tree)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Its answer.

        Raises:
            RunError: it ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RunError(
                "--base: the process that measures a revision ended; what it said is above"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def change(race: Race, new: Worker, old: Worker, seconds: float) -> Change:
    """Measure a problem in both trees, in turn, for so many seconds together."""
    about = (race.problem, race.direction, race.dtype, race.layout)
    for name, worker in (("here", new), ("there", old)):
        if error := worker.ask({"prepare": race.__dict__}).get("error"):
            return Change(*about, error=f"{name}: {error}")
    times: dict[str, list[float]] = {"new": [], "old": []}
    workers = {"new": new, "old": old}
    least = _LEAST_ROUNDS if seconds else 2
    end = time.perf_counter() + seconds
    while len(times["old"]) < least or time.perf_counter() < end:
        for name in sorted(workers, reverse=len(times["old"]) % 2 == 1):
            answer = workers[name].ask({"time": True})
            if "error" in answer:
                return Change(*about, error=answer["error"])
            times[name].append(answer["seconds"])
    new_median, old_median = (statistics.median(times[name]) for name in ("new", "old"))
    return Change(*about, new_median, old_median, *ratios(times["old"], times["new"]))


def changes(
    races: Sequence[Race], commit: str, seconds: float, tree: Path = ROOT
) -> Iterator[Change]:
    """Measure problems in this tree and in another revision of it.

    Args:
        races: the problems.
        commit: as `resolve` gives it.
        seconds: for each revision in each problem.
        tree: this one.

    Raises:
        RunError: the other can't be built, or a process died.
    """
    with checked_out(commit, tree) as other, Worker(tree) as new, Worker(other) as old:
        for race in races:
            yield change(race, new, old, 2 * seconds)


HEADS = ("problem", "this tree, ms", "the other, ms", "times as fast [20 %, 80 %]")


def cells(c: Change) -> list[str]:
    """What a table says of a change, under `HEADS`."""
    name = f"{c.problem} {c.direction} {c.dtype} {c.layout}"
    if c.new is None or c.old is None:
        return [name, f"FAILED: {c.error}", "", ""]
    return [
        name,
        f"{c.new * 1e3:.3g}",
        f"{c.old * 1e3:.3g}",
        f"{c.ratio:.2f} [{c.low:.2f}, {c.high:.2f}]",
    ]
