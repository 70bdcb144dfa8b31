"""Several processes under torchrun: the gradients of one, and what happens when one of them ends."""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpseg.errors import InputError
from gpseg.models.checkpoint import GENERATOR_STAGE, load_checkpoint
from gpseg.training import distributed
from gpseg.training.distributed import ALONE, join
from gpseg.training.pretrain import pretrain
from gpseg.training.pretrain_config import PretrainConfig
from gpseg.training.run_folder import RunFolder

ROOT = Path(distributed.__file__).parents[2]

OPTIONS = [
    "--data",
    "pictures",
    "--metric-images",
    "0",
    "--resolution",
    "16",
    "--channel-base",
    "128",
    "--channel-max",
    "8",
    "--z-dim",
    "8",
    "--mapping-layers",
    "2",
    "--batch",
    "8",
    "--r1-interval",
    "4",
    "--path-length-weight",
    "2",
    "--precision",
    "fp32",
    "--device",
    "cpu",
    "--augment",
    "none",
    "--log-kimg",
    "0.016",
    "--snapshot-kimg",
    "0.04",
    "--rank-timeout",
    "20",
]


def torchrun(*arguments: object, cwd: Path, processes: int = 2, **how: object) -> subprocess.Popen:
    """Start a job; its own process group, so that nothing of it is left behind."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", str(processes)]
    launch += [f"--{name.replace('_', '-')}={value}" for name, value in how.items()]
    return subprocess.Popen(
        [*launch, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(job: subprocess.Popen, timeout: float = 120) -> str:
    try:
        return job.communicate(timeout=timeout)[0]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("home")
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{i}.png")
    return tmp_path


GRADIENTS = """
import sys
from pathlib import Path
import torch
from gpseg.training.distributed import join
from gpseg.training.pretrain_config import PretrainConfig
from gpseg.training.trainer import Trainer

out = Path(sys.argv[1])
with join(out) as ranks:
    torch.manual_seed(0)
    config = PretrainConfig(Path(), resolution=16, channel_base=128, channel_max=8, z_dim=8, mapping_layers=2, batch=16,
        augment="none", precision="fp32", device="cpu", path_length_weight=2.0, style_mixing=1.0)
    trainer = Trainer(config, config.network(), torch.device("cpu"), ranks)
    for name, p in trainer.generator.named_parameters():
        if name.endswith("noise_strength"):
            p.data.fill_(0.3)
    found = {}

    def keep(name, model):
        return lambda: found.update({f"{name} {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    images = torch.randint(0, 256, (10, 3, 16, 16), generator=torch.Generator().manual_seed(3)).byte()
    batch = next(trainer.batches(images))
    reals = trainer._reals(batch)
    trainer.optimizer_g.step = keep("generator", trainer.generator)
    fakes, _ = trainer._generator_step(batch.mixed_from)
    trainer.optimizer_g.step = keep("path length", trainer.generator)
    trainer._path_length_step(batch.mixed_from)
    trainer.optimizer_d.step = keep("discriminator", trainer.discriminator)
    trainer._discriminator_step(fakes, reals)
    trainer.optimizer_d.step = keep("r1", trainer.discriminator)
    trainer._r1_step(reals)
    found["w_avg"] = trainer.generator.mapping.w_avg
    found["path_length_mean"] = trainer.path_length_mean
    torch.save(found, out / f"{ranks.count}-{ranks.rank}.pt")
"""


def test_two_processes_have_the_gradients_of_one_at_twice_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    job = torchrun(script, tmp_path, cwd=tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    runpy.run_path(str(script))
    said = finish(job)
    assert job.returncode == 0, said
    one = torch.load(tmp_path / "1-0.pt")
    two = [torch.load(tmp_path / f"2-{rank}.pt") for rank in range(2)]
    assert len(one) > 80 and one.keys() == two[0].keys() == two[1].keys()
    for name, expected in one.items():
        assert torch.equal(two[0][name], two[1][name]), name
        scale = expected.abs().max().item() + 1e-6
        torch.testing.assert_close(two[0][name], expected, rtol=0, atol=1e-4 * scale, msg=name)


@pytest.fixture(scope="module")
def two(home: Path) -> tuple[Path, str]:
    """A run of two processes, and what it said."""
    job = torchrun("-m", "gpseg.pretrain", *OPTIONS, "--kimg", "0.4", "--out", "two", cwd=home)
    said = finish(job)
    assert job.returncode == 0, said
    return home / "two", said


@pytest.mark.slow
def test_a_job_of_two_is_the_run_of_one(two: tuple[Path, str], home: Path) -> None:
    """To rounding, which a GAN does not forget; only the first process writes and tells."""
    folder, said = two
    assert said.count("2 processes") == 1
    given = {
        name[2:].replace("-", "_"): v for name, v in zip(OPTIONS[::2], OPTIONS[1::2], strict=True)
    }
    kinds = {"precision": str, "device": str, "augment": str, "data": Path}
    options = {k: kinds.get(k, float if "." in v else int)(v) for k, v in given.items()}
    options |= {"data": home / "pictures", "out": home / "one", "kimg": 0.048}
    pretrain(PretrainConfig(**options))
    one = RunFolder(home / "one").metrics()
    for entry, expected in zip(RunFolder(folder).metrics(), one, strict=False):
        for name in expected.keys() - {"s_per_kimg", "memory_gib"}:
            assert entry[name] == pytest.approx(expected[name], rel=1e-2), name


def processes(job: subprocess.Popen) -> dict[int, int]:
    """Process ids of a job's workers by rank, as the kernel lists the launcher's children."""
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        rank = [v[5:] for v in variables if v.startswith(b"RANK=")]
        if rank:
            ranks[int(rank[0])] = int(child)
    return ranks


def wait_for_state(job: subprocess.Popen, folder: Path) -> None:
    end = time.monotonic() + 120
    while not list(folder.glob("checkpoints/state-*.pt")):
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job(home: Path) -> None:
    job = torchrun("-m", "gpseg.pretrain", *OPTIONS, "--kimg", "900", "--out", "run", cwd=home)
    wait_for_state(job, home / "run")
    killed = time.monotonic()
    os.kill(processes(job)[0], signal.SIGKILL)
    said = finish(job, 60)
    assert time.monotonic() - killed < 15
    assert job.returncode != 0
    (line,) = re.findall(r"^rank 1: error: .*$", said, re.MULTILINE)
    assert "rank 0 of 2 ended or does not answer" in line and "--resume" in line


HANGING = """
import time
import torch
from gpseg.errors import RunError
from gpseg.training.distributed import join

with join("out", timeout=2) as ranks:
    if ranks.first:
        time.sleep(4)
    ranks.wait()  # for the first one's work, however long
    if ranks.rank == 1:
        time.sleep(60)
    began = time.monotonic()
    try:
        ranks.any(False)
    except RunError as error:
        print(f"told after {time.monotonic() - began:.0f} s: {error}", flush=True)
        raise SystemExit(1)
"""


def test_a_rank_that_hangs_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    job = torchrun("hanging.py", cwd=tmp_path)
    said = finish(job, 60)
    (seconds,) = re.findall(r"told after (\d+) s: rank 1 of 2 ended or does not answer", said)
    assert int(seconds) < 10
    assert job.returncode != 0


@pytest.mark.slow
def test_a_restarted_job_continues_from_its_last_state(two: tuple[Path, str], home: Path) -> None:
    options = [*OPTIONS, "--kimg", "0.4", "--out", "restarted"]
    job = torchrun("-m", "gpseg.pretrain", *options, cwd=home, max_restarts=1)
    wait_for_state(job, home / "restarted")
    os.kill(processes(job)[1], signal.SIGKILL)
    said = finish(job)
    assert job.returncode == 0, said
    assert "rank 0: error: rank 1 of 2 ended" in said
    (seen,) = re.findall(r"restarted: continuing at (\d+)", said)
    assert int(seen) >= 40
    expected, got = (RunFolder(path) for path in (two[0], home / "restarted"))
    assert [e["step"] for e in got.metrics()] == [e["step"] for e in expected.metrics()]
    assert [e["loss_d"] for e in got.metrics()] == [e["loss_d"] for e in expected.metrics()]
    tensors, others = (
        load_checkpoint(folder.path / "generator.safetensors", GENERATOR_STAGE)[0]
        for folder in (expected, got)
    )
    assert all(torch.equal(others[name], tensor) for name, tensor in tensors.items())


def test_wrong_options_are_said_and_leave_nothing(home: Path) -> None:
    job = torchrun("-m", "gpseg.pretrain", *OPTIONS, "--batch", "12", "--out", "none", cwd=home)
    said = finish(job)
    assert job.returncode != 0
    assert "--batch 12: give a multiple of 4 for each of 2 processes" in said
    assert not (home / "none").exists()


def test_one_process_is_alone() -> None:
    with join(None) as ranks:
        assert ranks is ALONE and ranks.first
        assert ranks.any(True) and not ranks.any(False)
        assert list(range(6))[ranks.share(6)] == list(range(6))
        value = torch.ones(2)
        ranks.mean_([value])
        assert value.tolist() == [1, 1]


def test_several_processes_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--out"), join(None):
        pass


DIFFERENT = """
import torch
from gpseg.errors import RunError
from gpseg.training.distributed import join

with join("out") as ranks:
    same = torch.arange(3.0)
    ranks.check_equal([same], "weights")
    assert ranks.any(ranks.rank == 1)
    values = [torch.full((2,), float(ranks.rank)), torch.full((1,), ranks.rank, dtype=torch.float64)]
    ranks.mean_(values)
    assert [v.tolist() for v in values] == [[0.5, 0.5], [0.5]]
    own = torch.full((2,), 1.0 + 2**-20 * ranks.rank)
    try:
        ranks.check_equal([same, own], "weights")
    except RunError as error:
        print(f"told: {error}", flush=True)
"""


def test_processes_that_differ_are_found(tmp_path: Path) -> None:
    (tmp_path / "different.py").write_text(DIFFERENT)
    job = torchrun("different.py", cwd=tmp_path)
    said = finish(job)
    assert job.returncode == 0, said
    assert said.count("told: the processes have different weights") == 2
