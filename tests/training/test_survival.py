"""Runs that are killed, fill the disk or run into numbers that mean nothing."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from gpseg.atomic import remove_leftovers
from gpseg.errors import RunError
from gpseg.models import checkpoint
from gpseg.models.checkpoint import load_checkpoint, load_generator
from gpseg.training import pretrain as module
from gpseg.training.pretrain import pretrain
from gpseg.training.pretrain_config import PretrainConfig
from gpseg.training.run_folder import RunFolder
from gpseg.training.trainer import Trainer

ROOT = Path(module.__file__).parents[2]

OPTIONS = {
    "resolution": 16,
    "channel_base": 128,
    "channel_max": 8,
    "z_dim": 8,
    "mapping_layers": 2,
    "batch": 4,
    "r1_interval": 4,
    "path_length_weight": 2.0,
    "precision": "fp32",
    "device": "cpu",
    "kimg": 0.08,  # 20 steps
    "log_kimg": 0.012,
    "snapshot_kimg": 0.02,  # 5 steps
}


def config(out: Path, **changes: object) -> PretrainConfig:
    return PretrainConfig(Path(), out=out, **{**OPTIONS, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (10, 3, 16, 16), generator=torch.Generator().manual_seed(3)).byte()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, images: Tensor) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    pretrain(config(out), images)
    return out


def tensors(run: Path) -> dict[str, Tensor]:
    return load_checkpoint(run / "generator.safetensors", checkpoint.GENERATOR_STAGE)[0]


def logged(run: Path) -> list[dict[str, float]]:
    measured = {"s_per_kimg", "memory_gib"}
    return [{k: v for k, v in e.items() if k not in measured} for e in RunFolder(run).metrics()]


def same(run: Path, other: Path) -> None:
    assert logged(run) == logged(other)
    own, expected = tensors(run), tensors(other)
    assert own.keys() == expected.keys()
    assert not [name for name, tensor in own.items() if not torch.equal(tensor, expected[name])]


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from gpseg.models import checkpoint
from gpseg.training.pretrain import pretrain
from gpseg.training.pretrain_config import PretrainConfig
from gpseg.training.trainer import Trainer

options, images, where = json.loads(sys.argv[1]), torch.load(sys.argv[2]), sys.argv[3]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
step, save, serialise = Trainer.step, torch.save, checkpoint.save

def dying_step(self, *args):
    if where == "step" and self.steps == 13:
        die()
    return step(self, *args)

def dying_save(state, file):
    save(state, file)
    if where == "state" and state["steps"] == 10:
        file.truncate(file.tell() // 2)
        die()

written = []

def dying_serialise(*args):
    content = serialise(*args)
    written.append(content)
    if where == "generator" and len(written) == 2:
        temporary = Path(options["out"]) / f".generator.safetensors.{os.getpid()}.tmp"
        temporary.write_bytes(content[: len(content) // 2])
        die()
    return content

Trainer.step, torch.save, checkpoint.save = dying_step, dying_save, dying_serialise
options["out"] = Path(options["out"])
pretrain(PretrainConfig(Path(), **options), images)
"""


@pytest.mark.parametrize(("where", "left"), [("step", 10), ("state", 5), ("generator", 5)])
def test_a_killed_run_continues_bit_for_bit(
    tmp_path: Path, images: Tensor, straight: Path, where: str, left: int
) -> None:
    out = tmp_path / "run"
    torch.save(images, tmp_path / "images.pt")
    options = json.dumps({**OPTIONS, "out": str(out)})
    arguments = [sys.executable, "-c", KILLED, options, str(tmp_path / "images.pt"), where]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(out.rglob(".*.tmp"))) == (where != "step")
    load_generator(out / "generator.safetensors")
    state = RunFolder(out).load_state()
    assert state is not None and state["steps"] == left
    pretrain(config(out, resume=True), images)
    same(out, straight)
    assert not list(out.rglob(".*.tmp"))


def test_the_same_seed_gives_the_same_run(tmp_path: Path, images: Tensor, straight: Path) -> None:
    torch.manual_seed(1)
    pretrain(config(tmp_path / "run"), images)
    same(tmp_path / "run", straight)
    pretrain(config(tmp_path / "other", seed=1, kimg=0.012), images)
    assert logged(tmp_path / "other")[0]["loss_d"] != logged(straight)[0]["loss_d"]


def test_leftovers_of_running_processes_stay(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".a.{os.getpid()}.tmp", f".a.{dead.pid}.tmp", ".a.tmp", "a"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".a.{os.getpid()}.tmp", ".a.tmp", "a"]


@pytest.mark.parametrize("part", ["generator", "generator_ema", "discriminator"])
def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """The losses of the step are fine: it is its result that isn't."""
    step = Trainer.step

    def breaks(self: Trainer, batch: object) -> dict[str, Tensor]:
        values = step(self, batch)  # type: ignore[arg-type]
        if self.steps == 10:
            next(getattr(self, part).parameters()).data.view(-1)[0] = torch.nan
        return values

    monkeypatch.setattr(Trainer, "step", breaks)
    out = tmp_path / "run"
    with pytest.raises(RunError, match=rf"{part}\.\S+ is not finite.*state-0000000020\.pt is the"):
        pretrain(config(out), images)
    assert all(tensor.isfinite().all() for tensor in tensors(out).values())
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["state-0000000020.pt"]
    monkeypatch.setattr(Trainer, "step", step)
    pretrain(config(out, resume=True), images)


TINY = """
set -e
mount -t tmpfs -o size=$1 none "$2"
shift 2
set +e
"$@" 2>stderr
echo $? >status
cp -r full/run kept
"""


def tiny_disks() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(command, capture_output=True).returncode
    )


@pytest.mark.skipif(not tiny_disks(), reason="may not mount a file system")
@pytest.mark.parametrize("kib", [4, 400])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    tmp_path: Path, images: Tensor, kib: int
) -> None:
    """The sizes break the run at its first file and at its second snapshot."""
    (tmp_path / "full").mkdir()
    torch.save(images, tmp_path / "images.pt")
    given = {k: v for k, v in OPTIONS.items() if k not in ("kimg", "log_kimg")}
    options = [str(x) for k, v in given.items() for x in (f"--{k.replace('_', '-')}", v)]
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"pictures/{i}.png")
    run = [sys.executable, "-m", "gpseg.pretrain", "--data", "pictures", "--out", "full/run"]
    subprocess.run(
        ["unshare", "-rm", "sh", "-c", TINY, "sh", f"{kib}k", "full", *run, *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    said = (tmp_path / "stderr").read_text().splitlines()
    assert (tmp_path / "status").read_text() == "1\n", said
    assert "disk is full" in said[-1] and "Traceback" not in "".join(said), said
    folder = tmp_path / "kept"
    assert not list(folder.rglob(".*.tmp"))
    if (folder / "generator.safetensors").exists():
        load_generator(folder / "generator.safetensors")
    for state in (folder / "checkpoints").glob("*.pt"):
        torch.load(state, weights_only=True)


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("writer", ["add_scalar", "add_image", "close", "__init__"])
def test_a_full_disk_under_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    folder = RunFolder.open(tmp_path / "run", "pretrain", {})
    monkeypatch.setattr(SummaryWriter, writer, refuse)

    def write() -> None:
        with folder:
            folder.log(1, {"loss": 1.0})
            folder.write_image("grid", torch.zeros(3, 8, 8, dtype=torch.uint8), 1)

    with pytest.raises(RunError, match="disk is full"):
        write()


def test_stopped_before_the_first_state(tmp_path: Path, images: Tensor, straight: Path) -> None:
    out = tmp_path / "run"
    RunFolder.open(out, "pretrain", dataclasses.asdict(config(out).filled_in())).close()
    pretrain(config(out, resume=True), images)
    same(out, straight)
