"""`python -m gpseg.convert` from checkpoints to graphs, and the README's example of using one."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpseg.data import Classes, PartClass
from gpseg.models.checkpoint import load_generator, save_checkpoint, save_generator
from gpseg.models.segmenter import Segmenter
from gpseg.models.stylegan2 import NetworkConfig
from gpseg.models.two_stream import TwoStream

CLASSES = Classes((PartClass(0, "background", (0, 0, 0)), PartClass(1, "part", (250, 0, 0))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a generator, a segmenter, and files that are neither."""
    root = tmp_path_factory.mktemp("convert")
    torch.manual_seed(0)
    network = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=1)
    generator, discriminator = network.generator(), network.discriminator()
    generator.mapping.w_avg.normal_()
    save_generator(root / "generator.safetensors", generator, discriminator, network)
    model = TwoStream(generator, discriminator, network, CLASSES.num_classes)
    Segmenter(model, network, CLASSES).save(root / "segmenter.safetensors")
    save_checkpoint(root / "other.safetensors", {}, "something-else", {})
    whole = (root / "segmenter.safetensors").read_bytes()
    (root / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    return root


Call = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def gpseg_convert(folder: Path, run_command: Call) -> Call:
    """`python -m gpseg.convert` in the folder: its exit code and the lines on stderr."""
    return partial(run_command, folder, "gpseg.convert")


@pytest.mark.parametrize("keep_ops", [[], ["--keep-ops"]])
def test_a_generator_as_pt2(folder: Path, gpseg_convert: Call, keep_ops: list[str]) -> None:
    options = ("--truncation-psi", "0.5", *keep_ops)
    assert gpseg_convert("generator.safetensors", "new/g.pt2", *options) == (0, [])
    program = torch.export.load(folder / "new" / "g.pt2")
    has_ops = "gpseg" in {getattr(node.target, "namespace", "") for node in program.graph.nodes}
    assert has_ops == bool(keep_ops)
    z = torch.randn(3, 8)
    generator, *_ = load_generator(folder / "generator.safetensors")
    with torch.no_grad():
        expected = generator(z, truncation_psi=0.5, noise_mode="const")
        torch.testing.assert_close(program.module()(z), expected, rtol=1e-4, atol=2e-5)


WITHOUT_TORCH = 'import sys; sys.modules["torch"] = sys.modules["gpseg"] = None\n'


def test_the_readme_s_example_of_onnxruntime(folder: Path, gpseg_convert: Call) -> None:
    assert gpseg_convert("segmenter.safetensors", "parts.onnx") == (0, [])
    photo = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(photo).save(folder / "photo.png")

    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (example,) = re.findall(r"((?:    .*\n)+    session = onnxruntime.*\n(?:    .*\n)+)", readme)
    source = re.sub("^    ", "", example, flags=re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + source + "\nnp.save('mask.npy', mask)"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "background" in done.stdout
    segmenter = Segmenter.load(folder / "segmenter.safetensors")
    expected = segmenter.probabilities(torch.from_numpy(photo).permute(2, 0, 1)[None]).argmax(1)
    assert np.array_equal(np.load(folder / "mask.npy"), expected[0].numpy())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["generator.safetensors", "g.pth"],
            "g.pth: no such conversion; there are .pkl to .safetensors",
        ),
        (["generator.onnx", "g.pt2"], "generator.onnx to g.pt2: no such conversion"),
        (["nowhere.safetensors", "g.pt2"], "nowhere.safetensors: no such file"),
        (["other.safetensors", "g.pt2"], 'stage "something-else", "generator-pretraining" or'),
        (["cut.safetensors", "g.onnx"], "cut.safetensors: damaged"),
        (["segmenter.safetensors", "g.onnx", "--keep-ops"], "--keep-ops: ONNX has no such"),
        (["segmenter.safetensors", "g.pt2", "--truncation-psi", "0.7"], "--truncation-psi: a"),
        (["generator.safetensors", "g.pt2", "--readout", "palette"], "--readout: a generator"),
        (
            ["generator.safetensors", "g.pt2", "--truncation-psi", "nan"],
            "--truncation-psi nan: give",
        ),
        (["generator.safetensors", "g.safetensors", "--keep-ops"], "are for .pt2 and .onnx"),
        ([".", "g.safetensors"], "no such conversion"),
        (["generator.safetensors", "cut.safetensors/g.pt2"], "cut.safetensors can't be made"),
    ],
)
def test_what_can_t_be_done_is_one_line(
    folder: Path, gpseg_convert: Call, args: list[str], message: str
) -> None:
    code, lines = gpseg_convert(*args)
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert not (folder / args[1]).exists()


def test_without_onnx(gpseg_convert: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, lines = gpseg_convert("generator.safetensors", "g.onnx")
    assert code == 2
    assert len(lines) == 1
    assert "pip install gpseg[onnx]" in lines[0]


def test_a_checkpoint_in_float16_is_half_the_size_and_nearly_the_same(
    folder: Path, gpseg_convert: Call
) -> None:
    source = folder / "generator.safetensors"
    assert gpseg_convert("generator.safetensors", "half.safetensors")[0] == 0
    half = folder / "half.safetensors"
    saved = source.stat().st_size - half.stat().st_size
    wanted, judge, network, about = load_generator(source)
    numbers = sum(t.numel() for m in (wanted, judge) for t in m.state_dict().values())
    assert saved > 1.9 * numbers  # bytes
    found, same_judge, same_network, same_about = load_generator(half)
    assert (same_network, same_about) == (network, about)
    z = torch.randn(3, network.z_dim)
    with torch.no_grad():
        images = wanted(z, noise_mode="const")
        torch.testing.assert_close(found(z, noise_mode="const"), images, rtol=0, atol=0.02)
        torch.testing.assert_close(same_judge(images), judge(images), rtol=0, atol=0.05)
    assert found.synthesis.block(8).conv1.weight.dtype == torch.float32


@pytest.mark.parametrize("target", ["generator.safetensors", "link.safetensors"])
def test_a_file_is_not_converted_to_itself(folder: Path, gpseg_convert: Call, target: str) -> None:
    (folder / "link.safetensors").unlink(missing_ok=True)
    (folder / "link.safetensors").symlink_to("generator.safetensors")
    source = folder / "generator.safetensors"
    before = source.read_bytes()
    code, lines = gpseg_convert("generator.safetensors", target)
    assert (code, len(lines)) == (2, 1)
    assert f"{target}: that is the source; give another target" in lines[0]
    assert source.read_bytes() == before


def test_a_folder_is_no_target(
    folder: Path, gpseg_convert: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpseg.models.export.export_generator", lambda *_: pytest.fail("exported"))
    (folder / "folder.pt2").mkdir()
    code, lines = gpseg_convert("generator.safetensors", "folder.pt2")
    assert (code, len(lines)) == (2, 1)
    assert "folder.pt2: is a folder; give a file" in lines[0]


@pytest.mark.parametrize(
    ("source", "target"),
    [("generator.safetensors", "said.safetensors"), ("segmenter.safetensors", "said.onnx")],
)
def test_it_says_what_was_written_and_no_library_says_more(
    source: str, target: str, folder: Path, gpseg_convert: Call, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert gpseg_convert(source, target)[0] == 0
    size = (folder / target).stat().st_size
    assert caplog.messages == [f"{target}, {size / 1e6:.1f} MB"]


def test_a_full_disk_asks_for_no_option_that_is_not_there(
    folder: Path, gpseg_convert: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    code, lines = gpseg_convert("generator.safetensors", "full.safetensors")
    assert code == 1
    assert lines == [
        "error: full.safetensors: the disk is full; free some space and run it again, "
        "with --resume if the command has it"
    ]
