"""What a command does with its options and with what goes wrong."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpseg.atomic import replacing
from gpseg.commandline import run
from gpseg.errors import InputError, RunError
from gpseg.training.run_folder import Interrupted


@dataclass
class Options:
    """Options of a command."""

    data: Path
    """Where the images are."""
    kimg: float = 1.5
    """How long it goes."""
    resume: bool = False
    """Go on."""
    out: Path | None = None
    """Where to."""


def outcome(main, *args: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        run("gpseg.command", Options, main, "What it does.", args)
    return exit_.value.code


def raising(error: BaseException):
    def main(config: Options) -> None:
        raise error

    return main


def test_options_reach_the_work(capsys):
    seen = []
    assert outcome(seen.append, "--data", "x", "--kimg", "2", "--resume") == 0
    assert seen == [Options(Path("x"), 2.0, True)]


def test_help_holds_description_options_and_defaults(capsys):
    assert outcome(raising(AssertionError()), "--help") == 0
    shown = capsys.readouterr().out
    for part in ("python -m gpseg.command", "What it does.", "--kimg", "How long it goes.", "1.5"):
        assert part in shown


def test_unknown_options_are_usage_errors(capsys):
    assert outcome(raising(AssertionError()), "--data", "x", "--nonsense") == 2


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("x.png: can't be read"), 2, "error: x.png: can't be read"),
        (RunError("the run\nfailed"), 1, "error: the run failed"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/y"),
            1,
            "error: /y: the disk is full; free some space",
        ),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), Path("/y")),
            1,
            "error: /y: read-only file system",
        ),
        (
            OSError(errno.EISDIR, os.strerror(errno.EISDIR), ".y.1.tmp", None, "y"),
            1,
            "error: y: is a directory",
        ),
        (OSError(errno.EPIPE, os.strerror(errno.EPIPE)), 1, "error: broken pipe"),
        (OSError("image file is truncated"), 1, "error: image file is truncated"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line_and_a_code(error, code, line, capsys, monkeypatch):
    monkeypatch.delenv("GPSEG_DEBUG", raising=False)
    assert outcome(raising(error), "--data", "x") == code
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("file/below", "not a directory"),
        ("loop", "too many levels of symbolic links"),
        ("dangling/below", "no such file or directory"),
        ("x" * 300, "file name too long"),
        (".", "is a directory"),
    ],
)
def test_a_place_that_can_t_be_written_is_one_line(target, reason, capsys, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    place = tmp_path / target
    assert outcome(lambda _: place.write_text("x"), "--data", "x") == 1
    assert capsys.readouterr().err == f"error: {place}: {reason}\n"


@pytest.mark.parametrize(
    ("name", "reason"), [("file/below", "not a directory"), ("folder", "is a directory")]
)
def test_a_file_that_can_t_be_replaced_goes_by_its_own_name(name, reason, capsys, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    place = tmp_path / name

    def main(_: Options) -> None:
        with replacing(place) as temporary:
            temporary.write_text("x")

    assert outcome(main, "--data", "x") == 1
    assert capsys.readouterr().err == f"error: {place}: {reason}\n"


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("x"), 2), (OSError(errno.EIO, os.strerror(errno.EIO)), 1)]
)
def test_debugging_shows_the_traceback(error, code, capsys, caplog, monkeypatch):
    monkeypatch.setenv("GPSEG_DEBUG", "1")
    assert outcome(raising(error), "--data", "x") == code
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("given", [(), ("--out", "run 1"), ("--out", "run 1", "--resume")])
def test_an_interrupted_run_says_how_to_go_on(given, capsys):
    assert outcome(raising(Interrupted(Path("run 1"))), "--data", "x", *given) == 130
    line = capsys.readouterr().err
    assert line == (
        "interrupted; run 1 holds the state, continue with: "
        "python -m gpseg.command --data x --out 'run 1' --resume\n"
    )


def test_an_interrupted_part_of_a_job_says_how_to_go_on(capsys):
    error = Interrupted(Path("run 1"), within=True)
    assert outcome(raising(error), "--data", "x", "--out", "y") == 130
    line = capsys.readouterr().err
    assert line == "interrupted; run 1 holds the state, the same command continues\n"


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run("gpseg.command", Options, raising(ZeroDivisionError()), "", ["--data", "x"])


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_each_says_who_it_is_and_one_how_to_go_on(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))

    assert outcome(raising(InputError("no such thing")), "--data", "x") == 2
    assert outcome(raising(Interrupted(Path("here"))), "--data", "x") == 130
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"rank {rank}: error: no such thing"
    goes_on = (
        "continue with: torchrun --nproc-per-node 2 -m gpseg.command --data x --out here --resume"
    )
    assert (goes_on in said[-1]) == (rank == 0) and len(said) == 2 - rank
