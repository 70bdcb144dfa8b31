"""`python -m gpseg.generate`: what it writes, and what it says to mistakes."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpseg.evaluation import generation
from gpseg.models.checkpoint import load_generator, save_generator
from gpseg.models.segmenter import to_uint8
from gpseg.models.stylegan2 import NetworkConfig

SIDE = 16


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained generator and a few real images."""
    root = tmp_path_factory.mktemp("generate")
    torch.manual_seed(0)
    network = NetworkConfig(
        SIDE, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=1
    )
    save_generator(root / "g.safetensors", network.generator(), network.discriminator(), network)
    (root / "photos").mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"{i}.png")
    return root


Call = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def gpseg_generate(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """`python -m gpseg.generate` with the generator: its exit code and the lines on stderr."""

    def call(*args: str) -> tuple[int, list[str]]:
        monkeypatch.chdir(root)
        options = ["--generator", "g.safetensors", "--device", "cpu", "--precision", "fp32", *args]
        monkeypatch.setattr(sys, "argv", ["gpseg.generate", *options])
        with pytest.raises(SystemExit) as caught:
            runpy.run_module("gpseg.generate", run_name="__main__")
        code = caught.value.code
        assert isinstance(code, int)
        return code, [line for line in capsys.readouterr().err.splitlines() if line]

    return call


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def test_it_writes_grids_images_mixed_styles_and_an_interpolation(gpseg_generate, tmp_path, root):
    out = tmp_path / "out"
    code, _ = gpseg_generate("--out", str(out), "--count", "3", "--seed", "5", "--frames", "4")
    assert code == 0
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.*")} == {
        "grid-psi0.7.png",
        "grid-psi1.png",
        "style-mixing.png",
        "interpolation.gif",
        *(f"images/seed{seed:06d}.png" for seed in (5, 6, 7)),
    }
    assert Image.open(out / "grid-psi0.7.png").size == (8 * SIDE, 8 * SIDE)
    assert Image.open(out / "style-mixing.png").size == (8 * SIDE, 5 * SIDE)
    with Image.open(out / "interpolation.gif") as film:
        assert film.n_frames == 5 * 4
        assert film.info["loop"] == 0


def test_an_image_belongs_to_its_seed_and_truncation(gpseg_generate, tmp_path, root):
    for name, args in {
        "a": ("--seed", "5", "--count", "2", "--psi", "0.5"),
        "b": ("--seed", "6", "--count", "1", "--psi", "0.5", "--batch", "1"),
    }.items():
        code, _ = gpseg_generate("--out", str(tmp_path / name), "--animation", "none", *args)
        assert code == 0
    one, two = (pixels(tmp_path / name / "images/seed000006.png") for name in "ab")
    assert torch.equal(one, two)
    generator = load_generator(root / "g.safetensors")[0]
    z = torch.randn(8, generator=torch.Generator().manual_seed(6))[None]
    with torch.no_grad():
        expected = to_uint8(generator(z, truncation_psi=0.5, noise_mode="const"))[0]
    assert (one.int() - expected.int()).abs().max() <= 1
    corner = pixels(tmp_path / "a" / "grid-psi0.5.png")[:, :SIDE, SIDE : 2 * SIDE]
    assert torch.equal(corner, one)


def test_mixed_styles_keep_their_row_and_column(gpseg_generate, tmp_path):
    """Between the sources: the row's first layers, the column's last; the sources stand at the edges."""
    code, _ = gpseg_generate("--out", str(tmp_path / "out"), "--animation", "none", "--psi", "1")
    assert code == 0
    grid = pixels(tmp_path / "out" / "style-mixing.png")
    images = pixels(tmp_path / "out" / "grid-psi1.png")
    tiles = grid.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE)
    sources = images.unfold(1, SIDE, SIDE).unfold(2, SIDE, SIDE).flatten(1, 2)
    assert not tiles[:, 0, 0].any()
    for row in range(4):
        assert torch.equal(tiles[:, row + 1, 0], sources[:, row])
    for column in range(7):
        assert torch.equal(tiles[:, 0, column + 1], sources[:, 4 + column])
    assert not torch.equal(tiles[:, 1, 1], tiles[:, 1, 2])
    assert not torch.equal(tiles[:, 1, 1], tiles[:, 2, 1])


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_an_interpolation_is_a_loop_of_small_steps(gpseg_generate, tmp_path, kind):
    out = tmp_path / "out"
    args = ("--animation", kind, "--frames", "6", "--keyframes", "2", "--count", "0")
    assert gpseg_generate("--out", str(out), *args)[0] == 0
    with Image.open(out / f"interpolation.{kind}") as film:
        frames = []
        for index in range(film.n_frames):
            film.seek(index)
            frames.append(torch.from_numpy(np.array(film.convert("RGB"))).float())
    assert len(frames) == 12
    steps = [
        float((a - b).abs().mean()) for a, b in zip(frames, frames[1:] + frames[:1], strict=True)
    ]
    assert max(steps) < 0.7 * float((frames[0] - frames[6]).abs().mean())
    assert min(steps) > 0


def test_it_measures(gpseg_generate, tmp_path, monkeypatch):
    class Pixels:
        def __init__(self, weights, device):
            assert weights == Path("inception.pth")

        def features(self, batches):
            return torch.cat([batch.float().mean(dim=(2, 3)) for batch in batches])

    monkeypatch.setattr(generation, "Inception", Pixels)
    monkeypatch.setattr(generation, "fid", lambda real, fake: float(len(real)))
    monkeypatch.setattr(generation, "kid", lambda real, fake: float(len(fake)))
    code, _ = gpseg_generate(
        *("--out", str(tmp_path / "out"), "--animation", "none", "--data", "photos"),
        *(
            "--metrics",
            "swd",
            "fid",
            "kid",
            "--metric-images",
            "20",
            "--inception",
            "inception.pth",
        ),
    )
    assert code == 0
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert values.keys() >= {"swd", "swd_16", "frechet_8", "coverage", "nearest"}
    assert (values["fid"], values["kid"]) == (12, 20)
    assert (values["real_images"], values["generated_images"]) == (12, 20)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--metrics", "swd"), "--metrics: say with --data"),
        (
            ("--metrics", "swd", "--data", "photos", "--metric-images", "5"),
            "--metric-images 5: give 6",
        ),
        (("--metrics", "swd", "--data", "nowhere"), "nowhere does not exist"),
        (("--generator", "photos/0.png"), "photos/0.png: damaged or no checkpoint"),
        (("--out", "photos"), "photos: already there and not empty"),
        (("--frames", "0"), "--frames 0: give 1 or more"),
        (("--device", "cuda:7"), 'device "cuda:7": not usable here'),
    ],
)
def test_mistakes_are_one_line(gpseg_generate, tmp_path, args, line):
    options = args if "--out" in args else ("--out", str(tmp_path / "out"), *args)
    code, lines = gpseg_generate(*options)
    assert code == 2
    assert lines[-1].startswith(f"error: {line}")
    assert not (tmp_path / "out").exists()


def test_fid_without_weights_writes_nothing(gpseg_generate, tmp_path):
    pytest.importorskip("torch_fidelity")
    code, lines = gpseg_generate(
        *("--out", str(tmp_path / "out"), "--metrics", "fid", "--data", "photos")
    )
    assert code == 2
    assert "--inception" in lines[-1]
    assert not (tmp_path / "out").exists()
