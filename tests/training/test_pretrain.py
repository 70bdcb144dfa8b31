"""Pre-training end to end, at a size that takes seconds."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpseg.data import PartFolder, packed, write_drawn
from gpseg.errors import InputError, RunError
from gpseg.models.checkpoint import load_generator
from gpseg.training import losses
from gpseg.training import pretrain as loop
from gpseg.training import trainer as module
from gpseg.training.pretrain import image_grid, pretrain
from gpseg.training.pretrain_config import PretrainConfig
from gpseg.training.run_folder import Interrupted, RunFolder
from gpseg.training.trainer import Trainer
from tests.data_sets.archives import zipped

SMALL = {
    "resolution": 16,
    "channel_base": 128,
    "channel_max": 8,
    "z_dim": 8,
    "mapping_layers": 2,
    "batch": 4,
    "r1_interval": 4,
    "precision": "fp32",
    "device": "cpu",
    "log_kimg": 0.016,
    "snapshot_kimg": 0.032,
    "metric_images": 0,
}


def config(tmp_path: Path, kimg: float, **changes) -> PretrainConfig:
    return PretrainConfig(data=tmp_path, out=tmp_path / "run", kimg=kimg, **{**SMALL, **changes})


@pytest.fixture
def images():
    return torch.randint(0, 256, (10, 3, 16, 16), generator=torch.Generator().manual_seed(3)).byte()


def weights(path: Path) -> dict[str, torch.Tensor]:
    generator, discriminator, _, _ = load_generator(path)
    return {
        **generator.state_dict(),
        **{f"d.{k}": v for k, v in discriminator.state_dict().items()},
    }


def test_images_to_be_tested_on_are_not_trained_on(tmp_path, caplog):
    parts = PartFolder.open(write_drawn(tmp_path / "faces", 16, labelled=12, unlabelled=3))
    held_out = len(parts.splits.val) + len(parts.splits.test)
    with caplog.at_level(logging.INFO):
        pretrain(dataclasses.replace(config(tmp_path, 0.004), data=parts.root))
    assert f"{held_out} val and test images are left out" in caplog.text
    assert f"training on {15 - held_out} images" in caplog.text


def test_a_data_set_without_masks_yet_is_trained_on(tmp_path, caplog):
    parts = PartFolder.open(write_drawn(tmp_path / "faces", 16, labelled=12, unlabelled=3))
    for mask in (parts.root / "masks").iterdir():
        mask.unlink()
    with caplog.at_level(logging.INFO):
        pretrain(dataclasses.replace(config(tmp_path, 0.004), data=parts.root))
    assert "training on 15 images" in caplog.text


def test_a_run_leaves_what_it_promises(tmp_path, images):
    path = pretrain(config(tmp_path, 0.064), images)
    folder = path.parent
    assert path.name == "generator.safetensors"
    assert len(list((folder / "samples").glob("*.png"))) == 4
    assert Image.open(next((folder / "samples").glob("*.png"))).size == (128, 128)
    entries = RunFolder(folder).metrics()
    assert [entry["step"] for entry in entries] == [16, 32, 48, 64]
    assert entries[0].keys() >= {"loss_g", "loss_d", "r1", "sign_real", "s_per_kimg", "memory_gib"}
    generator, _, network, stored = load_generator(path)
    assert network.img_resolution == generator.img_resolution == 16
    assert stored["images_seen"] == 64


def test_a_short_run_is_logged_too(tmp_path, images):
    path = pretrain(config(tmp_path, 0.008, log_kimg=1.0, snapshot_kimg=10.0), images)
    assert [entry["step"] for entry in RunFolder(path.parent).metrics()] == [8]


@pytest.mark.parametrize("augment", ["none", "diffaug"])
def test_a_resumed_run_is_the_straight_run(tmp_path, images, augment):
    straight = pretrain(config(tmp_path / "a", 0.064, augment=augment), images)
    half = config(tmp_path / "b", 0.032, augment=augment)
    pretrain(half, images)
    torch.manual_seed(99)
    resumed = pretrain(dataclasses.replace(half, kimg=0.064, resume=True), images)
    expected = weights(straight)
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, expected[name]), name
    assert [entry["step"] for entry in RunFolder(resumed.parent).metrics()] == [16, 32, 48, 64]


def test_a_run_with_adaptive_augmentation_resumes_between_two_adjustments(tmp_path, images):
    # A target that is always exceeded: p rises by 16 / 80 every four steps.
    changes = {"augment": "ada", "ada_target": -1.0, "ada_kimg": 0.08, "log_kimg": 0.004}
    straight = pretrain(config(tmp_path / "a", 0.064, **changes), images)
    entries = RunFolder(straight.parent).metrics()
    levels = [entry["augment_p"] for entry in entries]
    assert levels == pytest.approx([0.0] * 4 + [0.2] * 4 + [0.4] * 4 + [0.6] * 4)
    half = config(tmp_path / "b", 0.024, **changes)
    pretrain(half, images)
    torch.manual_seed(99)
    resumed = pretrain(dataclasses.replace(half, kimg=0.064, resume=True), images)
    expected = weights(straight)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())
    kept = ("step", "loss_g", "loss_d", "sign_real", "augment_p")
    for got, want in zip(RunFolder(resumed.parent).metrics(), entries, strict=True):
        assert [got[name] for name in kept] == [want[name] for name in kept]


def test_a_fixed_probability_of_augmentation_stays(tmp_path, images):
    settings = config(tmp_path, 1.0, augment="ada", ada_target=-1.0, ada_kimg=0.01, augment_p=0.3)
    trainer = Trainer(settings, settings.network(), torch.device("cpu"))
    levels = [trainer.step(images)["augment_p"].item() for _ in range(5)]
    assert levels == pytest.approx([0.3] * 5)


def test_all_that_the_discriminator_sees_is_augmented(tmp_path, images, monkeypatch):
    settings = config(tmp_path, 1.0, augment="ada", augment_p=0.3, r1_interval=1)
    trainer = Trainer(settings, settings.network(), torch.device("cpu"))
    seen = []

    def spy(x, p, generator):
        seen.append((len(x), p, x.requires_grad))
        return x

    monkeypatch.setattr(module, "ada_augment", spy)
    trainer.step(images)
    assert seen == [(4, 0.3, True), (8, 0.3, False), (4, 0.3, True)]  # fakes, fakes and reals, R1


def test_training_moves_every_weight_and_the_mean_follows(tmp_path, images):
    settings = config(tmp_path, 1.0)
    trainer = Trainer(settings, settings.network(), torch.device("cpu"))
    before = {n: p.clone() for n, p in trainer.generator.named_parameters()}
    before |= {f"d.{n}": p.clone() for n, p in trainer.discriminator.named_parameters()}
    for _ in range(4):
        values = trainer.step(images)
    assert "r1" not in values
    after = dict(trainer.generator.named_parameters())
    after |= {f"d.{n}": p for n, p in trainer.discriminator.named_parameters()}
    for name, parameter in after.items():
        assert not torch.equal(parameter, before[name]), name
    for name, average in trainer.generator_ema.named_parameters():
        assert not torch.equal(average, before[name]), name
        assert not torch.equal(average, after[name]), name


def test_the_discriminator_learns_to_tell_the_images_apart(tmp_path):
    reals = torch.full((8, 3, 16, 16), 255, dtype=torch.uint8)
    reals[:, :, ::2] = 0
    settings = config(tmp_path, 1.0, augment="none", lr_generator=0.0, r1_gamma=0.1)
    torch.manual_seed(0)
    trainer = Trainer(settings, settings.network(), torch.device("cpu"))
    values = [trainer.step(reals) for _ in range(60)]
    assert values[-1]["sign_real"] == 1
    assert values[-1]["loss_d"] < 0.5 * values[0]["loss_d"]


def test_r1_is_the_squared_gradient():
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    a = torch.randn(2, 4, 4)
    penalty = losses.r1_penalty((x * a).sum(dim=(1, 2, 3))[:, None] ** 2 / 2, x)
    expected = ((x * a).sum(dim=(1, 2, 3)) ** 2 * a.square().sum()).mean()
    torch.testing.assert_close(penalty, expected)


def test_a_run_to_continue_is_compared_before_any_work(tmp_path, images, monkeypatch):
    settings = config(tmp_path, 0.064)
    RunFolder.open(settings.out, "pretrain", dataclasses.asdict(settings.filled_in())).close()
    monkeypatch.setattr("gpseg.training.pretrain.Trainer", lambda *_: pytest.fail("worked"))
    with pytest.raises(InputError, match="that run has seed = 0, not 1"):
        pretrain(dataclasses.replace(settings, seed=1, resume=True), images)
    with pytest.raises(InputError, match="not empty; continue it with --resume"):
        pretrain(settings, images)


def test_a_non_finite_loss_stops_the_run(tmp_path, images, monkeypatch):
    settings = config(tmp_path, 0.2)
    step = Trainer.step

    def breaks(self, images):
        values = step(self, images)
        return {**values, "loss_d": values["loss_d"] * float("nan")} if self.seen > 40 else values

    monkeypatch.setattr(Trainer, "step", breaks)
    with pytest.raises(RunError, match=r"loss_d is not finite.*state-0000000032\.pt"):
        pretrain(settings, images)
    monkeypatch.setattr(Trainer, "step", step)
    pretrain(dataclasses.replace(settings, kimg=0.04, resume=True), images)


def test_ctrl_c_saves_the_state(tmp_path, images, monkeypatch):
    settings = config(tmp_path, 0.064)
    step = Trainer.step

    def interrupted(self, images):
        if self.seen == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, images)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(Interrupted):
        pretrain(settings, images)
    monkeypatch.setattr(Trainer, "step", step)
    assert RunFolder(settings.out).load_state()["seen"] == 24
    resumed = pretrain(dataclasses.replace(settings, resume=True), images)
    straight = pretrain(dataclasses.replace(settings, out=tmp_path / "straight"), images)
    expected = weights(straight)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(resumed).items())


def write_images(folder: Path, count: int = 3) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch": 6}, "--batch 6"),
        ({"resolution": 48}, "resolution 48"),
        ({"kimg": 0}, "--kimg 0"),
        ({"channel_base": 8}, "--channel-base 8"),
        ({"device": "nonsense"}, "nonsense"),
        ({"augment": "ada", "ada_target": 1.5}, "--ada-target 1.5"),
        ({"augment": "ada", "ada_kimg": 0}, "--ada-kimg 0"),
        ({"augment": "ada", "augment_p": 1.1}, "--augment-p 1.1"),
        ({"augment_p": 0.5}, "--augment-p 0.5.*--augment ada"),
    ],
)
def test_options_that_cannot_work(tmp_path, images, changes, named):
    settings = dataclasses.replace(config(tmp_path, 0.1), **changes)
    with pytest.raises(InputError, match=named):
        pretrain(settings, images)
    assert not settings.out.exists()


def test_image_grid():
    tiles = torch.linspace(-1, 1, 10)[:, None, None, None].expand(10, 3, 2, 4)
    grid = image_grid(tiles)
    assert grid.shape == (3, 4, 32)
    assert grid[0, 0, 0] == 0
    assert grid[0, 2, 4] == 255
    assert (grid[:, 2:, 8:] == 0).all()


def start(*args: object, cwd: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(module.__file__).parents[2]),
    }
    command = [sys.executable, "-m", "gpseg.pretrain", *map(str, args)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


OPTIONS = (
    "--data",
    "images",
    "--resolution",
    "16",
    "--channel-max",
    "8",
    "--z-dim",
    "8",
    "--batch",
    "4",
)
OPTIONS = (*OPTIONS, "--snapshot-kimg", "0.02", "--device", "cpu")


def wait_for_state(run: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/state-*.pt")):
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_kill_leaves_a_readable_folder_and_sigterm_says_how_to_go_on(tmp_path):
    write_images(tmp_path / "images")
    run = start(*OPTIONS, "--kimg", "1000", "--out", "run", cwd=tmp_path)
    wait_for_state(run, tmp_path / "run")
    run.kill()
    run.communicate()
    assert RunFolder(tmp_path / "run").load_state() is not None
    load_generator(tmp_path / "run" / "generator.safetensors")

    seen = RunFolder(tmp_path / "run").load_state()["seen"]
    run = start(*OPTIONS, "--kimg", "1000", "--out", "run", "--resume", cwd=tmp_path)
    for _ in iter(lambda: "continuing" in run.stdout.readline(), True):
        pass
    run.terminate()
    last = run.communicate()[0].strip().splitlines()[-1]
    assert run.returncode == 130
    assert last.startswith(
        "interrupted; run holds the state, continue with: python -m gpseg.pretrain"
    )
    assert last.endswith("--out run --resume")
    assert RunFolder(tmp_path / "run").load_state()["seen"] > seen


def test_packed_images_give_the_same_run(tmp_path, monkeypatch):
    write_images(tmp_path / "images", 6)
    settings = config(tmp_path / "kept", 0.032, seed=3)
    settings.data = tmp_path / "images"
    kept = weights(pretrain(settings))
    monkeypatch.setenv("GPSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed, "_SMALL", -1)
    runs = {"mapped": weights(pretrain(dataclasses.replace(settings, out=tmp_path / "mapped")))}
    monkeypatch.setattr(packed, "_memory", lambda: 0)  # batches are made ahead
    in_zip = dataclasses.replace(settings, out=tmp_path / "zipped", data=zipped(settings.data))
    runs["zipped"] = weights(pretrain(in_zip))
    # stopped and continued: what was drawn ahead is drawn again
    half = dataclasses.replace(settings, out=tmp_path / "half", kimg=0.016)
    pretrain(half)
    runs["resumed"] = weights(pretrain(dataclasses.replace(half, kimg=0.032, resume=True)))
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2
    for name, tensor in kept.items():
        assert all(torch.equal(run[name], tensor) for run in runs.values()), name


def test_data_that_is_not_there_is_one_line(tmp_path):
    run = start("--data", "nowhere.zip", "--out", "run", "--device", "cpu", cwd=tmp_path)
    assert run.communicate(timeout=60)[0] == "error: nowhere.zip does not exist; check the path\n"
    assert run.returncode == 2
    assert not (tmp_path / "run").exists()


def test_measuring_at_snapshots_leaves_the_run_as_it_was(tmp_path, images):
    seen = []
    plain = pretrain(config(tmp_path / "a", 0.064), images)
    measured = pretrain(
        config(tmp_path / "b", 0.064, metric_images=2000),
        images,
        after_snapshot=lambda folder: seen.append(folder.path),
    )
    expected = weights(plain)
    for name, tensor in weights(measured).items():
        assert torch.equal(tensor, expected[name]), name
    entries = [e for e in RunFolder(measured.parent).metrics() if "swd" in e]
    assert [entry["step"] for entry in entries] == [32, 64]
    assert entries[0].keys() == {"step", "swd", "swd_16", "frechet_8", "coverage", "nearest"}
    assert seen == [measured.parent] * 2


def test_too_few_images_to_measure_with_are_left_unmeasured(tmp_path, images):
    path = pretrain(config(tmp_path, 0.008, metric_images=2000), images[:5])
    assert not any("swd" in entry for entry in RunFolder(path.parent).metrics())


def test_without_data_it_draws_its_own_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "DRAWN_IMAGES", 5)
    settings = dataclasses.replace(config(tmp_path, 0.008), data=None)
    assert pretrain(settings).exists()
    drawn = tmp_path / "runs" / "drawn-16-pretraining"
    assert len(list((drawn / "unlabelled").iterdir())) == 5
    # not the faces that gpseg.train labels and tests on
    assert json.loads((drawn / "drawn.json").read_text())["seed"] != 0
