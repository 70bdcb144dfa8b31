"""`python -m gpseg.selftest`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gpseg import backends
from gpseg.commandline import run
from gpseg.selftest import command
from gpseg.selftest.command import SelftestConfig, selftest
from gpseg.selftest.timing import Call, serving_backends

ROOT = Path(__file__).parents[2]
EAGER = type(backends.get("eager"))
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what it says without a GPU")


def outcome(*args: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run("gpseg.selftest", SelftestConfig, selftest, "What it does.", args)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@no_gpu
def test_checks_and_writes_a_file(tmp_path: Path) -> None:
    options = ["--problems", "fir-1d", "--backends", "eager"]
    done = subprocess.run(
        [sys.executable, "-m", "gpseg.selftest", *options],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (path,) = tmp_path.iterdir()
    assert path.match("gpseg-selftest-no-gpu-20??-??-??-??????.json")
    *_, counts, gpu, wrote = done.stdout.splitlines()
    assert counts == "24 checks passed, 0 failed, 0 were skipped."
    assert gpu == "There is no GPU: nothing about one was checked or measured."
    assert wrote.startswith(f"Wrote {path.name}. ")
    content = json.loads(path.read_text())
    assert content["format"] == 1
    assert content["complete"] is True
    assert content["benchmark"] == []
    assert content["environment"]["torch"] == torch.__version__
    assert content["environment"]["gpus"] == []
    assert f"torch         {torch.__version__}" in content["environment"]["description"]
    assert len(content["checks"]) == 24  # types × layouts × directions
    assert len({tuple(sorted(c.items())) for c in content["checks"]}) == 24
    assert content["checks"][0] | {"error": 0} == {
        "check": "textbook",
        "problem": "fir-1d",
        "backend": "eager",
        "device": "cpu",
        "dtype": "f16",
        "layout": "nchw",
        "direction": "forward",
        "route": "",
        "outcome": "passed",
        "error": 0,
        "tolerance": 0.005,
        "detail": "y",
    }


def test_a_broken_backend_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = EAGER.upfirdn2d

    def wrong(x: Any, *arguments: Any) -> Any:
        if x.dtype == torch.float64:
            raise RuntimeError("no kernel for this type")
        return right(x, *arguments) * 1.5

    monkeypatch.setattr(EAGER, "upfirdn2d", staticmethod(wrong))
    path = tmp_path / "result.json"
    options = ["--problems", "fir-1d", "lrelu", "--no-benchmark", "--out", str(path)]
    assert outcome("--backends", "eager", *options) == 1
    shown = capsys.readouterr()
    on_a_cpu = [c for c in json.loads(path.read_text())["checks"] if c["device"] == "cpu"]
    outcomes = {(c["problem"], c["dtype"] == "f64"): set() for c in on_a_cpu}
    for c in on_a_cpu:
        outcomes[c["problem"], c["dtype"] == "f64"].add(c["outcome"])
    assert outcomes == {
        ("fir-1d", False): {"failed"},
        ("fir-1d", True): {"error"},
        ("lrelu", False): {"passed"},
        ("lrelu", True): {"passed"},
    }
    assert "failed: textbook fir-1d eager cpu f16 nchw forward: error" in shown.out
    assert shown.err.endswith(f"checks failed; {path} lists them\n")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "nowhere/x.json"], "--out nowhere/x.json: can't be written (No such file or"),
        (["--out", "folder"], "--out folder: can't be written (Is a directory)"),
        (["--problems", "fir"], "--problems: no problem fir; there are: fir-none, fir-1d, "),
        (["--backends", "tpu"], "--backends: no backend tpu; there are: cuda, triton, cpp, "),
        (["--backends", "cpp"], "--backends: cpp is off: no compiler"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(backends, "_off", lambda n: "no compiler" if n == "cpp" else None)
    assert outcome(*options) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_default_is_what_serves_by_itself() -> None:
    assert command._backends(()) == serving_backends()
    assert not {"simt", "ttsem"} & {*serving_backends()}


def test_the_benchmark_goes_into_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the CPU in the place of a GPU."""

    def once(call: Call) -> float:
        call()
        return 1.0

    monkeypatch.setattr(command, "on_gpu", lambda device: once)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    report = command.Report({})
    config = SelftestConfig(problems=("to-rgb-64",), quick=True, seconds=0)
    command._measure(config, ["eager"], torch.device("cpu"), report)
    report.write(tmp_path / "x.json")
    content = json.loads((tmp_path / "x.json").read_text())["benchmark"]
    assert {(c["problem"], c["dtype"], c["layout"]) for c in content} == {
        ("to-rgb-64", "bf16", "channels_last")
    }
    assert {c["direction"] for c in content} == {"forward", "forward+backward"}
    assert len(content) == 2 * 5
    assert [row["choices"] for row in content] == [{}] * len(content)
    for row in content:
        assert len(row["times"]) >= 7
        assert row["bytes_per_second"] > 0
    assert capsys.readouterr().out.count("to-rgb-64 bf16 channels_last forward") == 2
