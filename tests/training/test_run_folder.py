"""Run folders: making, refusing, continuing, and surviving a kill."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpseg.atomic import replacing
from gpseg.errors import InputError, RunError
from gpseg.training.distributed import Ranks
from gpseg.training.run_folder import RunFolder, stop_requests

CONFIG = {"resolution": 64, "kimg": 1.0}


def test_a_new_folder_holds_its_options(tmp_path):
    folder = RunFolder.open(tmp_path / "run", "pretrain", {**CONFIG, "data": tmp_path})
    assert json.loads((folder.path / "config.json").read_text()) == {
        **CONFIG,
        "data": str(tmp_path),
    }


def test_the_default_folder_is_named_after_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = RunFolder.open(None, "pretrain", CONFIG)
    second = RunFolder.open(None, "pretrain", CONFIG)
    assert first.path.parent.name == "runs"
    assert first.path.name.startswith("pretrain-")
    assert first.path != second.path


def test_an_existing_run_is_not_written_over(tmp_path):
    RunFolder.open(tmp_path / "run", "pretrain", CONFIG)
    with pytest.raises(InputError, match="not empty; continue it with --resume"):
        RunFolder.open(tmp_path / "run", "pretrain", CONFIG)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file"):
        RunFolder.open(tmp_path / "file", "pretrain", CONFIG)
    (tmp_path / "empty").mkdir()
    RunFolder.open(tmp_path / "empty", "pretrain", CONFIG)


def test_resume_needs_a_run(tmp_path):
    with pytest.raises(InputError, match="--out"):
        RunFolder.open(None, "pretrain", CONFIG, resume=True)
    with pytest.raises(InputError, match="no run to continue"):
        RunFolder.open(tmp_path / "run", "pretrain", CONFIG, resume=True)


def test_resume_with_other_options_names_them(tmp_path):
    RunFolder.open(tmp_path / "run", "pretrain", CONFIG)
    longer = {**CONFIG, "kimg": 2.0}
    RunFolder.open(tmp_path / "run", "pretrain", longer, resume=True, may_change=("kimg",))
    other = {**CONFIG, "resolution": 32}
    with pytest.raises(InputError, match="resolution = 64, not 32"):
        RunFolder.open(tmp_path / "run", "pretrain", other, resume=True, may_change=("kimg",))


def test_resume_takes_the_same_path_written_otherwise(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    RunFolder.open(tmp_path / "run", "pretrain", {"data": tmp_path / "photos"})
    monkeypatch.chdir(tmp_path)
    RunFolder.check(tmp_path / "run", True, {"data": Path("photos")})
    with pytest.raises(InputError, match="not others; give the same"):
        RunFolder.check(tmp_path / "run", True, {"data": Path("others")})


def test_of_options_in_groups_the_one_that_differs_is_named(tmp_path):
    options = {**CONFIG, "tuning": {"lr": 0.1, "steps": 9}}
    RunFolder.open(tmp_path / "run", "train", options).close()
    other = {**CONFIG, "tuning": {"lr": 0.2, "steps": 9}}
    with pytest.raises(InputError, match=r"that run has lr = 0\.1, not 0\.2; give"):
        RunFolder.check(tmp_path / "run", True, other)
    RunFolder.check(tmp_path / "run", True, other, may_change=("lr",))


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe{}", b"{"])
def test_options_that_cannot_be_read(tmp_path, content):
    RunFolder.open(tmp_path / "run", "pretrain", CONFIG).close()
    (tmp_path / "run" / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json: can't be read \(.+\); start a new run"):
        RunFolder.open(tmp_path / "run", "pretrain", CONFIG, resume=True)


def test_one_process_at_a_time_is_at_work_in_a_folder(tmp_path):
    with RunFolder.open(tmp_path / "run", "pretrain", CONFIG):
        with pytest.raises(InputError, match="run: another process is at work in it; wait for it"):
            RunFolder.open(tmp_path / "run", "pretrain", CONFIG, resume=True)
        # The other processes of the same job don't write.
        RunFolder.open(tmp_path / "run", "pretrain", CONFIG, resume=True, ranks=Ranks(rank=1))
    RunFolder.open(tmp_path / "run", "pretrain", CONFIG, resume=True).close()


HOLDING = """
import sys, time
from pathlib import Path
from gpseg.training.run_folder import RunFolder

folder = RunFolder.open(Path(sys.argv[1]), "pretrain", {})
print("open", flush=True)
time.sleep(60)
"""


def test_a_folder_is_free_when_the_process_at_work_in_it_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLDING, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(InputError, match="another process"):
            RunFolder.open(tmp_path / "run", "pretrain", {}, resume=True)
        process.kill()
    RunFolder.open(tmp_path / "run", "pretrain", {}, resume=True).close()


def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with RunFolder.open(tmp_path / "run", "pretrain", CONFIG) as folder:
        folder.save_state(1, {})


def test_states_come_back_and_the_last_two_stay(tmp_path):
    folder = RunFolder.open(tmp_path / "run", "pretrain", CONFIG)
    for step in (9, 10, 11):
        folder.save_state(step, {"w": torch.full((2,), float(step)), "rng": torch.get_rng_state()})
    assert len(list((folder.path / "checkpoints").iterdir())) == 2
    state = folder.load_state()
    assert state["step"] == 11
    assert state["w"].tolist() == [11, 11]


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path):
    folder = RunFolder.open(tmp_path / "run", "pretrain", CONFIG)
    for step in (1, 2):
        folder.save_state(step, {"w": torch.zeros(2)})
    older, newer = sorted((folder.path / "checkpoints").iterdir())
    newer.write_bytes(newer.read_bytes()[:100])
    assert folder.load_state()["step"] == 1
    older.write_bytes(b"")
    with pytest.raises(InputError, match="neither this state nor the one before"):
        folder.load_state()


@pytest.mark.parametrize("content", [b"junk\n", b"\x80\x02]q\x00.", b"\x80\x02}q\x00.", b"g1\n."])
def test_a_newest_state_of_any_content_is_passed_over(tmp_path, caplog, content):
    folder = RunFolder.open(tmp_path / "run", "pretrain", CONFIG)
    folder.save_state(1, {"w": torch.zeros(2)})
    (folder.path / "checkpoints" / "state-0000000002.pt").write_bytes(content)
    assert folder.load_state()["step"] == 1
    (warning,) = caplog.messages
    assert "state-0000000002.pt: can't be read" in warning
    assert "\n" not in warning


def test_what_was_logged_after_the_state_is_forgotten(tmp_path):
    folder = RunFolder.open(tmp_path / "run", "pretrain", CONFIG)
    for step in (1, 2, 3):
        folder.log(step, {"loss": step / 2})
        if step == 2:
            folder.save_state(step, {})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut short by a kill
    assert [entry["step"] for entry in folder.metrics()] == [1, 2, 3]
    folder.load_state()
    assert folder.metrics() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]


def test_a_run_without_a_state_starts_over(tmp_path):
    folder = RunFolder.open(tmp_path / "run", "pretrain", CONFIG)
    folder.log(5, {"loss": 1.0})
    assert folder.load_state() is None
    assert folder.metrics() == []


def test_pictures_and_curves_are_written(tmp_path):
    with RunFolder.open(tmp_path / "run", "pretrain", CONFIG) as folder:
        folder.log(7, {"loss": 1.0})
        folder.write_image("grid", torch.zeros(3, 8, 8, dtype=torch.uint8), 7)
    assert [p.name for p in (folder.path / "samples").iterdir()] == ["00000007-grid.png"]
    (events,) = (folder.path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


def test_replacing_keeps_the_old_file_when_the_write_fails(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_ends_the_run_with_one_line(tmp_path, monkeypatch):
    folder = RunFolder.open(tmp_path / "run", "pretrain", CONFIG)
    folder.save_state(1, {"w": torch.zeros(2)})

    def save_half(state, file):
        file.write(b"half")
        raise RuntimeError("PytorchStreamWriter failed: No space left on device")

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(RunError, match="the disk is full"):
        folder.save_state(2, {"w": torch.zeros(2)})
    assert folder.load_state()["step"] == 1

    def refuse(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(json, "dumps", refuse)
    with pytest.raises(RunError, match="the disk is full"):
        folder.log(2, {"loss": 1.0})


def test_a_signal_is_noted_where_stderr_is_no_file(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with stop_requests() as stop_requested:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_once(number):
    before = signal.getsignal(number)
    with stop_requests() as stop_requested:
        assert not stop_requested()
        os.kill(os.getpid(), number)
        assert stop_requested()
        # The second one is to break off at once.
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before


def test_the_longest_names_can_be_written(tmp_path):
    path = tmp_path / ("ä" * 120 + ".png")
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert temporary.name.endswith(f".{os.getpid()}.tmp")
    assert [*tmp_path.iterdir()] == [path] and path.read_text() == "whole"
