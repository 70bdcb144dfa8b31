"""The benchmarks check, measure, judge and tell; speed itself is not tested."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import goals, growth, rates, report, revision, rows
from benchmarks.command import BenchmarkConfig, benchmark
from benchmarks.goals import GOALS, Goal, judge
from benchmarks.growth import exponent, laws
from benchmarks.measure import Settings, operator_rows
from benchmarks.rows import Row
from gpseg import backends
from gpseg.commandline import run
from gpseg.errors import InputError, RunError
from gpseg.selftest import models, problems
from gpseg.selftest.problems import by_name
from gpseg.selftest.timing import serving_backends

ROOT = Path(__file__).parents[1]
EAGER = type(backends.get("eager"))
CPU = torch.device("cpu")


def outcome(*args: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run("benchmarks", BenchmarkConfig, benchmark, "What it does.", args)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def row(problem: str = "p", contestant: str = "cpp", **more: Any) -> Row:
    known: dict[str, Any] = {"kind": "operator", "direction": "forward", "dtype": "float32"}
    known |= {"race": f"{problem} forward", "layout": "nchw", "threads": 2}
    return Row(problem=problem, contestant=contestant, **{**known, **more})


class Page(HTMLParser):
    """Tags that are open, and what there is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag != "meta":
            self.open.append(tag)
        self.outside += [v for k, v in attributes if k in ("src", "href") and v and v[0] != "#"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one operator and one model."""
    folder = tmp_path_factory.mktemp("run") / "out"
    options = ["--contestants", "eager", "--seconds", "0", "--threads", "1", "--out", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "to-rgb", "generator-16", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert f"torch {torch.__version__}" in lines[1]
    assert "to-rgb forward float32 nchw" in lines
    assert [line.split()[0] for line in lines[6:8]] == ["textbook", "eager"]
    return folder


class TestARun:
    def test_has_every_figure(self, measured: Path) -> None:
        content = json.loads((measured / "results.json").read_text())
        names = {f.name for f in dataclasses.fields(Row)}
        assert all(r.keys() == names for r in content["rows"])
        assert content["environment"].keys() >= {"processor", "torch", "load", "revision", "dirty"}
        own = {(r.problem, r.direction, r.contestant): r for r in rows.read(measured)}
        assert len(own) == 8
        operator = own["to-rgb", "backward", "eager"]
        unmeasured = {f.name for f in dataclasses.fields(Row) if getattr(operator, f.name) is None}
        # The textbook may find room for so little in pages that it has: nothing to take a share of.
        assert unmeasured - {"memory_ratio"} == {"size", "batch"}
        assert operator.seconds and operator.copy and operator.moved
        assert operator.of_copy == pytest.approx(operator.moved / operator.seconds / operator.copy)
        assert operator.layout == "channels_last"
        assert own["to-rgb", "backward", "textbook"].ratio == 1
        model = own["generator-16", "forward+backward", "eager"]
        assert model.moved is None and model.of_matmul is not None
        assert model.memory and model.memory_ratio
        assert model.deviation is not None and 0 < model.deviation < 1e-5

    def test_has_a_page_that_needs_nothing_else(self, measured: Path) -> None:
        page = Page((measured / "report.html").read_text())
        assert page.open == []
        assert page.counts["svg"] == 3  # bars of operators and models, and the roofline
        assert page.counts["tr"] == 1 + 4 + 8
        assert page.outside == []

    def test_has_tables_to_paste(self, measured: Path) -> None:
        lines = (measured / "report.md").read_text().splitlines()
        table = [line for line in lines if line.startswith("| ")]
        assert len(table) == 2 + 8
        assert {line.count("|") for line in table} == {8}

    def test_is_compared_with_an_earlier_one(self, measured: Path, tmp_path: Path) -> None:
        now = rows.read(measured)
        then = [dataclasses.replace(r, seconds=2 * (r.seconds or 0)) for r in now[1:]]
        rows.write(tmp_path / "old.json", {}, then)
        compared = report.compare(now, rows.read(tmp_path / "old.json"))
        assert len(compared) == 7
        assert {line[-1] for line in compared} == {"2.00"}

    def test_does_not_overwrite(self, measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert outcome("to-rgb", "--out", str(measured)) == 2
        assert "already there and not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["upsample"], "no problem upsample; there are: upsample2d-256"),
        (["to-rgb", "--contestants", "c++"], "no contestant c++ here; there are: textbook"),
        (["to-rgb", "--threads", "0"], "--threads 0: give 1 or more"),
        (["--base", "HEAD", "--goals"], "--base: goes with problems, not with --goals"),
        (["to-rgb", "--base", "nowhere"], "--base nowhere: no such revision"),
        (["to-rgb", "--compare", "nowhere.json"], "nowhere.json: can't be read"),
        (["to-rgb", "--compare", "pyproject.toml"], "not a file of results"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    if "--base" in options and not (ROOT / ".git").exists():
        pytest.skip("needs a checkout")
    assert outcome(*options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any], Any]) -> None:
    right = getattr(EAGER, name)
    monkeypatch.setattr(EAGER, name, staticmethod(lambda *args: change(right(*args))))


class TestWrongNumbers:
    options = ("--contestants", "eager", "--seconds", "0", "--threads", "1", "--no-memory")

    def test_are_not_timed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        spoil(monkeypatch, "upfirdn2d", lambda y: y * 1.001)
        assert outcome("filter2d", *self.options, "--out", str(tmp_path / "o")) == 1
        said = capsys.readouterr()
        assert "eager               FAILED, not timed: y is wrong: error 1.0e-03" in said.out
        assert "2 of the rows failed" in said.err
        failed = [r for r in rows.read(tmp_path / "o") if r.contestant == "eager"]
        assert [r.outcome for r in failed] == ["failed", "failed"]
        assert [r.times for r in failed] == [[], []]
        assert all(r.error and r.seconds is None for r in failed)
        assert "2 contestants gave wrong results" in (tmp_path / "o" / "report.html").read_text()

    def test_of_a_gradient_count_in_the_forward_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spoil(monkeypatch, "bias_act_backward", lambda g: (g[0] * 1.01, g[1]))
        settings = Settings(0.0, contestants=("eager",), memory=False)
        given = operator_rows(by_name("lrelu"), ["forward"], torch.float32, "nchw", settings)
        assert [r.outcome for r in given] == ["timed", "failed"]

    def test_of_a_model_are_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spoil(monkeypatch, "demod_act", lambda y: y * 1.1)
        assert outcome("prediction-16", *self.options, "--out", str(tmp_path / "o")) == 1
        textbook, eager = rows.read(tmp_path / "o")
        assert (textbook.outcome, eager.outcome) == ("timed", "failed")
        assert "probabilities is wrong" in eager.error

    def test_an_exception_is_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def crash(y: Any) -> Any:
            raise RuntimeError("no kernel")

        spoil(monkeypatch, "upfirdn2d", crash)
        settings = Settings(0.0, contestants=("eager",), memory=False)
        given = operator_rows(by_name("filter2d"), ["forward"], torch.float32, "nchw", settings)
        *_, eager = given
        assert (eager.outcome, eager.error) == ("failed", "RuntimeError: no kernel")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("problem", ["upsample2d-1d", "swish", "layer-up"])
def test_right_numbers_are_timed_in_every_direction(problem: str, dtype: torch.dtype) -> None:
    settings = Settings(0.0, contestants=("grouped", "cpp", "eager"), memory=False)
    given = [
        r
        for layout in ("nchw", "channels_last")
        for r in operator_rows(
            by_name(problem), ["forward", "backward", "double_backward"], dtype, layout, settings
        )
    ]
    assert {r.outcome for r in given} == {"timed"}, [r.error for r in given]
    assert {r.direction for r in given} == {"forward", "backward", "double_backward"}


class TestGrowth:
    def test_exponents_are_fitted(self) -> None:
        assert exponent([(x, 3 * x**1.3) for x in (2.0, 5.0, 11.0, 70.0)]) == pytest.approx(1.3)
        assert exponent([(1, 2), (2, 4), (2, 4)]) is None
        assert exponent([(1, 2), (2, 1)], least=2) == pytest.approx(-1)

    def test_worse_than_linear_beyond_the_cache_is_marked(self) -> None:
        cache = rates.last_cache(CPU)
        given = []
        for family, power in (("good", 1.0), ("bad", 1.2)):
            for size in (8, 16, 64, 128, 256):
                moved = cache * size**2 // 32**2
                seconds = (size**2) ** power if moved > cache else 1e-3 * size**4
                given.append(
                    row(
                        family,
                        kind="growth",
                        seconds=seconds,
                        memory=size**2,
                        moved=moved,
                        size=size,
                        batch=1,
                    )
                )
        found = {(g.family, g.quantity, g.variable): g for g in laws(given, CPU)}
        assert found["good", "time", "pixels"].beyond_cache == pytest.approx(1)
        assert found["bad", "time", "pixels"].beyond_cache == pytest.approx(1.2)
        assert [k for k, g in found.items() if g.marked] == [("bad", "time", "pixels")]
        assert found["bad", "memory", "pixels"].exponent == pytest.approx(1)
        good, bad = growth.lines([*found.values()])
        assert (good[0], good[-1]) == ("good", "")
        assert (bad[0], bad[-1]) == ("bad", "worse than linear in pixels: time")
        assert bad[3].endswith("(1.20)")

    def test_is_measured(self) -> None:
        settings = Settings(0.0, contestants=("cpp",), memory=False)
        given = [
            *growth.growth_rows(
                ["bias_act"], ["forward"], torch.float32, "nchw", settings, (8, 16, 32), (1, 2)
            )
        ]
        assert [(r.size, r.batch) for r in given] == [(8, 1), (16, 1), (32, 1), (64, 1), (64, 2)]
        assert {(r.kind, r.problem, r.contestant) for r in given} == {("growth", "bias_act", "cpp")}
        (pixels,) = (
            law for law in laws(given, CPU) if (law.quantity, law.variable) == ("time", "pixels")
        )
        assert pixels.exponent is not None

    def test_of_what_is_wrong_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spoil(monkeypatch, "bias_act", lambda y: y * 1.1)
        settings = Settings(0.0, contestants=("eager",), memory=False)
        given = [
            *growth.growth_rows(
                ["bias_act"], ["forward"], torch.float32, "nchw", settings, (8, 16), (1,)
            )
        ]
        assert [r.outcome for r in given] == ["failed"]


class TestGoals:
    goal = Goal("fast", "p", "forward", "ratio", 4)

    def test_name_problems_that_exist(self) -> None:
        names = problems.BY_NAME.keys() | models.BY_NAME.keys()
        assert {g.problem for g in GOALS} <= names
        compared = {g.problem for g in GOALS if g.figure == "over_compiled"}
        assert len(compared) == len(problems.NAMED) + len(problems.PARTS) + len(models.MODELS) - 1

    @pytest.mark.parametrize(("ratio", "verdict"), [(4.0, "met"), (3.99, "missed")])
    def test_are_met_or_missed(self, ratio: float, verdict: str) -> None:
        found = judge(self.goal, [row(ratio=ratio, ratio_low=3.0, ratio_high=5.0)], "cpp", [])
        assert (found.verdict, found.value, found.low) == (verdict, ratio, 3.0)
        assert goals.cells(found)[-2:] == [f"{ratio:.2f}× [3.00, 5.00]", verdict]

    def test_of_memory_are_bounds_from_above(self) -> None:
        goal = dataclasses.replace(self.goal, figure="memory_ratio", bound=0.6)
        assert judge(goal, [row(memory_ratio=0.5)], "cpp", []).verdict == "met"
        assert judge(goal, [row(memory_ratio=0.61)], "cpp", []).verdict == "missed"

    def test_between_contestants_are_of_the_same_rounds(self) -> None:
        goal = dataclasses.replace(self.goal, figure="over_compiled", bound=1)
        given = [row(times=[1.0, 2.0, 3.0]), row(contestant="compiled", times=[2.0, 4.0, 1.5])]
        found = judge(goal, given, "cpp", [])
        assert (found.verdict, found.value) == ("met", 2)
        halves = dataclasses.replace(goal, figure="over_float32", dtype="bfloat16", bound=1.6)
        given = [row(times=[3.0, 3.0]), row(dtype="bfloat16", times=[2.0, 2.0])]
        assert judge(halves, given, "cpp", []).value == 1.5

    def test_do_not_apply_everywhere(self) -> None:
        goal = dataclasses.replace(self.goal, needs="avx512_bf16")
        assert judge(goal, [row(ratio=9.0)], "cpp", ["avx2"]).verdict == "not applicable"
        assert judge(goal, [row(ratio=9.0)], "cpp", ["avx512_bf16"]).verdict == "met"

    def test_that_were_not_measured_are_not_met(self) -> None:
        assert judge(self.goal, [], "cpp", []).verdict == "not measured"
        failed = row(outcome="failed", error="y is wrong")
        found = judge(self.goal, [failed], "cpp", [])
        assert (found.verdict, found.why) == ("not measured", "cpp failed: y is wrong")


def test_goals_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ratio: dict[str, Any] = {"seconds": 1.0, "seconds_low": 1.0, "seconds_high": 1.0, "ratio": 7.0}
    fast = row("filter2d-256", serving_backends()[0], **ratio, ratio_low=6.5, ratio_high=8.0)
    monkeypatch.setattr(goals, "rows_for_goals", lambda settings: iter([fast]))
    folder = tmp_path / "out"
    assert outcome("--goals", "--out", str(folder)) == 0
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("filter2d  "))
    assert line.split()[1:] == [
        "filter2d-256",
        "forward",
        "≥",
        "6.00×",
        "7.00×",
        "[6.50,",
        "8.00]",
        "met",
    ]
    assert any(line.startswith("1 met, ") for line in said.splitlines())
    told = json.loads((folder / "results.json").read_text())["goals"]
    assert len(told) == len(GOALS)
    assert [g["value"] for g in told if g["verdict"] == "met"] == [7.0]
    assert "## Goals" in (folder / "report.md").read_text()
    assert '<td class="good">met</td>' in (folder / "report.html").read_text()


def test_growth_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def small(*arguments: Any) -> Any:
        return measure_growth(["bias_act"], *arguments[1:], (8, 16, 32), (1,))

    measure_growth = growth.growth_rows
    monkeypatch.setattr(growth, "growth_rows", small)
    options = ["--directions", "forward", "--seconds", "0", "--threads", "1", "--no-memory"]
    assert outcome("--scaling", *options, "--out", str(tmp_path / "out")) == 0
    assert "bias_act, 8 px, batch 1 forward float32 nchw, 1 threads" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {(g["family"], g["variable"]) for g in content["growth"]} >= {("bias_act", "pixels")}
    assert Page((tmp_path / "out" / "report.html").read_text()).counts["svg"] == 1


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=n", "-c", "user.email=e"]
    done = subprocess.run(
        ["git", "-C", str(folder), *names, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


class TestAnotherRevision:
    @pytest.fixture
    def repository(self, tmp_path: Path) -> Path:
        folder = tmp_path / "repository"
        folder.mkdir()
        git(folder, "init", "-q")
        (folder / "file").write_text("old")
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", "old")
        (folder / "file").write_text("new")
        return folder

    def test_is_checked_out_apart_and_removed(self, repository: Path) -> None:
        commit = revision.resolve("HEAD", repository)
        with revision.checked_out(commit, repository, lambda tree: None) as tree:
            assert (tree / "file").read_text() == "old"
            assert (repository / "file").read_text() == "new"
        assert not tree.parent.exists()
        assert len(git(repository, "worktree", "list").splitlines()) == 1

    def test_is_removed_when_interrupted(self, repository: Path) -> None:
        seen = []

        def interrupted(tree: Path) -> None:
            seen.append(tree)
            raise KeyboardInterrupt

        commit = revision.resolve("HEAD", repository)
        with (
            pytest.raises(KeyboardInterrupt),
            revision.checked_out(commit, repository, interrupted),
        ):
            pass
        assert not seen[0].parent.exists()
        assert len(git(repository, "worktree", "list").splitlines()) == 1

    def test_that_does_not_exist_is_wrong_input(self, repository: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="--base nowhere: no such revision"):
            revision.resolve("nowhere", repository)
        with pytest.raises(InputError, match="is no git checkout"):
            revision.resolve("HEAD", tmp_path)

    def test_that_can_not_be_built_says_why(self, tmp_path: Path) -> None:
        (tmp_path / "setup.py").write_text("raise SystemExit('no compiler')")
        with pytest.raises(RunError, match="can't be built: no compiler"):
            revision.build(tmp_path)

    def test_is_measured_in_turn(self, tmp_path: Path) -> None:
        """With a slower filter2d in the older commit, and kernels that need no compiler."""
        tree = tmp_path / "repository"
        shutil.copytree(ROOT / "gpseg", tree / "gpseg", ignore=shutil.ignore_patterns("*.so"))
        copying = "import pathlib, shutil\nfor f in pathlib.Path({!r}).glob('_C*.so'):\n    shutil.copy(f, 'gpseg')\n"
        (tree / "setup.py").write_text(copying.format(str(ROOT / "gpseg")))
        (tree / ".gitignore").write_text("*.so\n__pycache__\n")
        filters = tree / "gpseg" / "ops" / "upfirdn2d.py"
        quick = filters.read_text()
        filters.write_text(f"{quick}\n\n_now = filter2d\n\n\n" + SLOW)
        git(tree, "init", "-q")
        git(tree, "add", "-A")
        git(tree, "commit", "-qm", "slow")
        filters.write_text(quick)
        revision.build(tree)
        races = [
            revision.Race("filter2d", "forward", "float32", "nchw", "cpu", 1),
            revision.Race("generator-16", "forward", "float32", "channels_last", "cpu", 1),
        ]
        operator, model = revision.changes(races, revision.resolve("HEAD", tree), 0.0, tree)
        assert operator.error == model.error == ""
        assert operator.old is not None and operator.old > 0.01
        assert operator.ratio is not None and operator.ratio > 2
        assert model.ratio is not None
        assert revision.cells(operator)[0] == "filter2d forward float32 nchw"


SLOW = """def filter2d(*args, **options):
    import time

    time.sleep(0.01)
    return _now(*args, **options)
"""
