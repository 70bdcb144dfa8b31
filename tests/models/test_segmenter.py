"""Segmenters on disk, and what is said of files that are none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import gpseg
from gpseg.data import Classes, PartClass
from gpseg.errors import InputError
from gpseg.models.checkpoint import load_generator, save_generator
from gpseg.models.segmenter import READOUTS, Segmenter, to_float, to_uint8
from gpseg.models.stylegan2 import NetworkConfig
from gpseg.models.two_stream import TwoStream

NETWORK = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=2)
CLASSES = Classes(
    (PartClass(0, "background", (0, 0, 0)), PartClass(1, "part", (255, 0, 0))), swap=()
)


def make(crossing: bool = True) -> Segmenter:
    torch.manual_seed(0)
    model = TwoStream(NETWORK.generator(), NETWORK.discriminator(), NETWORK, 2, crossing=crossing)
    return Segmenter(model, NETWORK, CLASSES, readout="palette")


def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)


@pytest.mark.parametrize("crossing", [True, False])
def test_round_trip(tmp_path: Path, crossing: bool) -> None:
    segmenter, x = make(crossing), images()
    segmenter.save(tmp_path / "s.safetensors")
    loaded = Segmenter.load(tmp_path / "s.safetensors")
    assert loaded.classes == CLASSES
    assert loaded.readout == "palette"
    assert loaded.resolution == 16
    for readout in READOUTS:
        got = loaded.probabilities(x, readout)
        torch.testing.assert_close(got, segmenter.probabilities(x, readout))
        torch.testing.assert_close(got.sum(1), torch.ones(2, 16, 16))


def test_fusion_is_the_mean_of_the_others() -> None:
    segmenter, x = make(), images()
    palette, classifier, fusion = (segmenter.probabilities(x, r) for r in READOUTS)
    torch.testing.assert_close(fusion, (palette + classifier) / 2)


def test_rarity_is_taken_off_the_logits() -> None:
    segmenter, x = make(), images()
    plain = {r: segmenter.probabilities(x, r, flip=False) for r in READOUTS}
    segmenter.model.rarity[1] = 2.0
    for readout in ("palette", "classifier"):
        expected = (plain[readout].log() - torch.tensor([0.0, 2.0])[:, None, None]).softmax(1)
        torch.testing.assert_close(segmenter.probabilities(x, readout, flip=False), expected)


def test_flipping_takes_the_mean_with_the_mirror_image() -> None:
    swapped = replace(CLASSES, swap=((0, 1),))
    segmenter, x = make(), images()
    segmenter.classes = swapped
    got = segmenter.probabilities(x)
    plain = segmenter.probabilities(x, flip=False)
    # two classes trade places
    expected = segmenter.probabilities(x.flip(3), flip=False).flip(3).flip(1)
    torch.testing.assert_close(got, (plain + expected) / 2)
    assert not torch.allclose(got, plain)
    # the mirrored image gives the mirrored result
    mirrored = segmenter.probabilities(x.flip(3))
    torch.testing.assert_close(mirrored.flip(3).flip(1), got)


def test_unknown_readout() -> None:
    with pytest.raises(InputError, match="palette, classifier"):
        make().probabilities(images(), "nearest")


def test_generator_is_not_a_segmenter(tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    save_generator(path, NETWORK.generator(), NETWORK.discriminator(), NETWORK)
    with pytest.raises(InputError, match=r"generator-pretraining.*segmenter"):
        Segmenter.load(path)


def test_segmenter_is_not_a_generator(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    make().save(path)
    with pytest.raises(InputError, match=r'stage "segmenter", "generator-pretraining" is needed'):
        load_generator(path)


def test_header_is_there_to_read(tmp_path: Path) -> None:
    segmenter = make()
    segmenter.save(tmp_path / "s.safetensors")
    with safe_open(tmp_path / "s.safetensors", framework="np") as file:
        header = file.metadata()
        palette = file.get_tensor("palette")
    assert (header["stage"], header["gpseg"]) == ("segmenter", gpseg.__version__)
    config = json.loads(header["config"])
    assert [entry["name"] for entry in config["classes"]["classes"]] == ["background", "part"]
    assert config["palette"] == palette.tolist() == [[-1.0] * 3, [1.0] * 3]
    assert config["network"]["img_resolution"] == 16
    assert config["readout"] == "palette"


def test_empty_batch() -> None:
    assert make().probabilities(images()[:0]).shape == (0, 2, 16, 16)


def test_truncated(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    make().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"s\.safetensors"):
        Segmenter.load(path)


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    segmenter = make()
    segmenter.model.palette[0] = torch.nan
    segmenter.save(path)
    with pytest.raises(InputError, match=r"s\.safetensors is damaged: palette is not finite; copy"):
        Segmenter.load(path)


def test_pixels_survive_the_round_trip() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(every)), every)
