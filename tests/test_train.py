"""`python -m gpseg.train` from end to end, small; what it says of bad input, interruptions and full disks."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from gpseg.commandline import run
from gpseg.data import PartFolder, write_drawn
from gpseg.evaluation.segment import TrainConfig, train_segmenter
from gpseg.models.checkpoint import load_checkpoint, save_generator
from gpseg.models.segmenter import Segmenter
from gpseg.models.stylegan2 import NetworkConfig

NETWORK = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=2)
SMALL = ["--steps", "4", "--shots", "2", "--labelled-batch", "2", "--unlabelled-batch", "2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set `faces` and a generator for it."""
    home = tmp_path_factory.mktemp("home")
    write_drawn(home / "faces", 16, labelled=12, unlabelled=6)
    torch.manual_seed(0)
    save_generator(
        home / "generator.safetensors", NETWORK.generator(), NETWORK.discriminator(), NETWORK
    )
    return home


def arguments(home: Path, out: Path) -> list[str]:
    generator = home / "generator.safetensors"
    given = {"--data": home / "faces", "--generator": generator, "--out": out}
    return [*(str(x) for pair in given.items() for x in pair), *SMALL]


def train(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_:
        run("gpseg.train", TrainConfig, train_segmenter, "Train.", arguments)
    return int(exit_.value.code or 0)


def test_a_run_leaves_segmenter_scores_and_report(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train([*arguments(home, out), "--unet-steps", "2"]) == 0
    results = json.loads((out / "results.json").read_text())
    assert {"palette", "classifier", "majority mask", "U-Net from scratch"} <= results[
        "test"
    ].keys()
    for score in results["test"].values():
        assert 0 <= score["miou"] <= 1
    assert Segmenter.load(out / "segmenter.safetensors").readout == results["readout"]
    page = (out / "report.html").read_text()
    assert "segmentation stream" in page and "data:image/png;base64" in page
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["step"] == 4 and "val_palette" in logged[-1]
    # nothing is written into the user's data
    assert {p.name for p in (home / "faces").iterdir()} == {
        "classes.json", "drawn.json", "images", "masks", "splits.json", "unlabelled"
    }  # fmt: skip


def test_a_class_that_no_test_image_has_scores_null(home: Path, tmp_path: Path) -> None:
    faces = Path(shutil.copytree(home / "faces", tmp_path / "faces"))
    content = json.loads((faces / "classes.json").read_text())
    content["classes"].append({"id": len(content["classes"]), "name": "horn"})
    (faces / "classes.json").write_text(json.dumps(content))
    out = tmp_path / "run"
    assert train([*arguments(home, out), "--data", str(faces)]) == 0
    text = (out / "results.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["test"]["majority mask"]["per_class"]["horn"] is None


FEATURES = {
    "classes": [
        {"id": 0, "name": "background"},
        {"id": 1, "name": "skin"},
        {"id": 2, "name": "features", "of": ["eyes", "nose", 5]},
    ]
}


def test_masks_are_read_by_another_classes_file(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, coarse = tmp_path / "run", tmp_path / "coarse.json"
    coarse.write_text(json.dumps(FEATURES))
    options = [*arguments(home, out), "--classes", str(coarse), "--save-steps", "2"]
    assert train(options) == 0
    names = ("background", "skin", "features")
    assert Segmenter.load(out / "segmenter.safetensors").classes.names == names
    # what the file says by now doesn't matter to the run that goes on, from its state before the last
    max((out / "checkpoints").iterdir()).unlink()
    (out / "segmenter.safetensors").unlink()
    coarse.write_text(
        json.dumps({"classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "hair"}]})
    )
    assert train([*options, "--resume"]) == 0
    segmenter = Segmenter.load(out / "segmenter.safetensors")
    assert segmenter.classes.names == names
    assert "of" not in json.dumps(segmenter.classes.to_json())
    parts = PartFolder.open(home / "faces", classes=out / "classes.json")
    assert parts.reading.of == ((0,), (1,), (3, 4, 5))
    results = json.loads((out / "results.json").read_text())
    assert all(tuple(score["per_class"]) == names for score in results["test"].values())
    assert train([*arguments(home, out), "--resume"]) == 2
    assert f"that run has classes = {coarse}, not None" in capfd.readouterr().err


def test_a_bare_folder_with_five_masks_trains_without_a_score(home: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    for name in ("images", "masks"):
        (bare / name).mkdir(parents=True)
    for i, image in enumerate(sorted((home / "faces" / "images").iterdir())[:8]):
        Image.open(image).convert("L").resize((40, 28)).save(bare / "images" / f"{i}.jpg")
        if i < 5:
            mask = Image.open(home / "faces" / "masks" / image.name).resize((40, 28), 0)
            mask.save(bare / "masks" / f"{i}.png")
    out = tmp_path / "run"
    options = ["--generator", str(home / "generator.safetensors"), *SMALL, "--shots", "5"]
    assert train(["--data", str(bare), "--out", str(out), *options]) == 0
    assert json.loads((out / "results.json").read_text())["test"] == {}
    assert "no test images" in (out / "report.html").read_text()


def test_without_a_generator_one_is_trained_and_used_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    faces = shutil.copytree(home / "faces", tmp_path / "faces")
    options = ["--data", str(faces), "--resolution", "16", "--pretrain-kimg", "0.032"]
    assert train([*options, *SMALL]) == 0
    (made,) = (tmp_path / "runs").glob("generator-*/generator.safetensors")
    written = made.stat().st_mtime_ns
    assert train([*options, *SMALL]) == 0
    assert made.stat().st_mtime_ns == written
    # with other images held out, that one has seen what it would be tested on
    splits = json.loads((faces / "splits.json").read_text())
    shown = splits["few_shot_draws"][0][:3]
    moved = next(stem for stem in splits["train_pool"] if stem not in shown)
    splits["train_pool"].remove(moved)
    splits |= {"test": [moved], "few_shot_draws": [shown]}
    (faces / "splits.json").write_text(json.dumps(splits))
    assert train([*options, *SMALL]) == 0
    assert len([*(tmp_path / "runs").glob("generator-*")]) == 2


def test_a_package_that_is_missing_is_said_before_a_folder_is_made(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    out = tmp_path / "run"
    assert train([*arguments(home, out), "--perceptual", "lpips"]) == 2
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--data": "nowhere"}, "nowhere"),
        ({"--generator": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"--shots": "9"}, "9 shots"),
        ({"--draw": "7"}, "draw 7"),
        ({"--classes": "nowhere.json"}, "nowhere.json"),
        ({"--resolution": "32"}, "--resolution 32"),
        ({"--steps": "0"}, "--steps 0"),
        ({"--device": "abacus"}, "abacus"),
        ({"--device": "meta"}, "it computes nothing"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    home: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: dict[str, str],
    said: str,
) -> None:
    out = tmp_path / "run"
    assert train([*arguments(home, out), *(x for pair in change.items() for x in pair)]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and said in lines[0]
    assert not out.exists()


def test_an_empty_folder(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    options = [*arguments(home, tmp_path / "run"), "--data", str(tmp_path / "empty")]
    assert train(options) == 2
    assert "error:" in capfd.readouterr().err


def test_a_segmenter_is_no_generator(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train(arguments(home, out)) == 0
    options = ["--generator", str(out / "segmenter.safetensors")]
    assert train([*arguments(home, tmp_path / "other"), *options]) == 2
    assert '"segmenter"' in capfd.readouterr().err


def test_a_finished_folder_is_not_overwritten(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(arguments(home, out)) == 0
    before = (out / "segmenter.safetensors").read_bytes()
    assert train(arguments(home, out)) == 2
    assert (out / "segmenter.safetensors").read_bytes() == before


def test_a_full_disk_is_one_line(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gpseg.models.checkpoint.save", full)
    assert train(arguments(home, tmp_path / "run")) == 1
    assert "disk is full" in capfd.readouterr().err.splitlines()[-1]


def start(home: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    """A run of many steps in a process of its own, once its first state is saved."""
    options = [*arguments(home, out), "--steps", "100000", "--save-steps", "5", *more]
    process = subprocess.Popen(
        [sys.executable, "-m", "gpseg.train", *options], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list((out / "checkpoints").glob("state-*.pt")):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr
        time.sleep(0.1)
    return process


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(home: Path, tmp_path: Path) -> None:
    process = start(home, tmp_path / "run")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in err.splitlines()[-1]
    assert "Traceback" not in err


KILLED = """
import os, signal, sys
from gpseg.commandline import run
from gpseg.evaluation.segment import TrainConfig, train_segmenter
from gpseg.training.finetune import Finetuner

step = Finetuner.step

def dying(self, *batch):
    if self.steps == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *batch)

Finetuner.step = dying
run("gpseg.train", TrainConfig, train_segmenter, "Train.", sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(home: Path, tmp_path: Path) -> None:
    more = ["--steps", "8", "--save-steps", "3", "--precision", "fp32", "--device", "cpu"]
    options = [*arguments(home, tmp_path / "run"), *more]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", KILLED, *options], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert train([*options, "--resume"]) == 0
    assert train([*arguments(home, tmp_path / "straight"), *more]) == 0
    got, expected = (
        load_checkpoint(tmp_path / name / "segmenter.safetensors", "segmenter")[0]
        for name in ("run", "straight")
    )
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_two_processes_train_what_one_does(home: Path, tmp_path: Path) -> None:
    """To rounding; one writes, and the other waits for it."""
    more = ["--steps", "6", "--log-steps", "2", "--save-steps", "3", "--unlabelled-batch", "4"]
    more += ["--labelled-batch", "4", "--precision", "fp32", "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    job = subprocess.run(
        [*launch, "-m", "gpseg.train", *arguments(home, tmp_path / "two"), *more],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert job.returncode == 0, job.stderr
    assert job.stderr.count("test mIoU") == 1
    assert (tmp_path / "two" / "report.html").exists()
    assert train([*arguments(home, tmp_path / "one"), *more]) == 0
    two, one = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    )
    assert [entry["step"] for entry in two] == [entry["step"] for entry in one] == [2, 4, 6]
    for name in ("loss", "image", "perceptual", "map", "classifier"):
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-4), name
        assert two[-1][name] == pytest.approx(one[-1][name], rel=1e-2), name
