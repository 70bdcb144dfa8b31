import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpseg.data import Classes, PartClass
from gpseg.models.checkpoint import save_checkpoint
from gpseg.models.segmenter import Segmenter
from gpseg.models.stylegan2 import NetworkConfig
from gpseg.models.two_stream import TwoStream

CLASSES = Classes((PartClass(0, "background", (0, 0, 0)), PartClass(1, "part", (250, 0, 0))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained segmenter, a checkpoint of another stage, and two photos."""
    root = tmp_path_factory.mktemp("predict")
    torch.manual_seed(0)
    network = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=1)
    model = TwoStream(network.generator(), network.discriminator(), network, CLASSES.num_classes)
    Segmenter(model, network, CLASSES).save(root / "segmenter.safetensors")
    save_checkpoint(root / "generator.safetensors", {}, "generator-pretraining", {})
    whole = (root / "segmenter.safetensors").read_bytes()
    (root / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (root / "photos").mkdir()
    for name, size in (("a.png", (40, 30)), ("b.jpg", (30, 50))):
        pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / name)
    return root


Call = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def gpseg_predict(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """`python -m gpseg.predict` in the folder: its exit code and the lines on stderr."""

    def call(*args: str) -> tuple[int, list[str]]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["gpseg.predict", "--device", "cpu", *args])
        with pytest.raises(SystemExit) as caught:
            runpy.run_module("gpseg.predict", run_name="__main__")
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().err.strip().splitlines()

    return call


def test_writes_masks_overlays_and_probabilities(folder: Path, gpseg_predict: Call) -> None:
    code, lines = gpseg_predict(
        *("--segmenter", "segmenter.safetensors", "--images", "photos/a.png", "photos/b.jpg"),
        *("--out", "masks", "--overlay", "--probabilities", "--readout", "palette"),
    )
    assert code == 0, lines
    found = {path.relative_to(folder / "masks").as_posix() for path in folder.glob("masks/**/*.*")}
    assert found == {
        *("a.png", "b.png", "overlays/a.jpg", "overlays/b.jpg"),
        *("probabilities/a.npz", "probabilities/b.npz"),
    }
    # What was written is a mask of these classes to those who train on it.
    assert CLASSES.read_mask(folder / "masks" / "a.png").shape == (30, 40)
    assert CLASSES.read_mask(folder / "masks" / "b.png").shape == (50, 30)


def test_an_unreadable_image_is_one_line_and_exit_code_1(folder: Path, gpseg_predict: Call) -> None:
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    code, lines = gpseg_predict(
        *("--segmenter", "segmenter.safetensors", "--images", "photos/a.png", "broken.jpg"),
        *("--out", "some"),
    )
    assert code == 1
    assert "1 of 2 images could not be read" in lines[-1]
    assert [line for line in lines if "skipped: " in line and "broken.jpg" in line]
    assert (folder / "some" / "a.png").is_file()


@pytest.mark.parametrize(
    ("segmenter", "message"),
    [
        ("nowhere.safetensors", "nowhere.safetensors: no such file"),
        ("generator.safetensors", 'stage "generator-pretraining"'),
        ("cut.safetensors", "cut.safetensors: damaged"),
        ("photos/b.jpg", "photos/b.jpg: damaged or no checkpoint"),
    ],
)
def test_a_segmenter_that_is_none_is_one_line_and_exit_code_2(
    folder: Path, gpseg_predict: Call, segmenter: str, message: str
) -> None:
    code, lines = gpseg_predict("--segmenter", segmenter, "--images", "photos", "--out", "none")
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert not (folder / "none").exists()
