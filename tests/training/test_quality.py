"""Measures of generated images: they tell what is wrong, agree with themselves and leave a run as it was."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpseg.data import draw_face
from gpseg.models.stylegan2 import NetworkConfig
from gpseg.training.quality import FEWEST_IMAGES, Quality, generated_images, real_images

COUNT, SIDE = 400, 32


@pytest.fixture(scope="module")
def faces() -> Tensor:
    return torch.stack([draw_face(0, index, SIDE)[0] for index in range(2 * COUNT)])


@pytest.fixture(scope="module")
def quality(faces) -> Quality:
    return Quality(faces[:COUNT].split(40))


@pytest.fixture(scope="module")
def others(faces) -> Tensor:
    return faces[COUNT:]


def blurred(images: Tensor, sigma: float) -> Tensor:
    taps = torch.exp(-(torch.arange(-4.0, 5.0) ** 2) / (2 * sigma**2))
    kernel = (taps[:, None] * taps / taps.sum() ** 2).expand(3, 1, 9, 9)
    padded = F.pad(images.float(), (4, 4, 4, 4), mode="replicate")
    return F.conv2d(padded, kernel, groups=3).round().byte()


def noisy(images: Tensor, deviation: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + deviation * noise).round().clamp(0, 255).byte()


def tinted(images: Tensor, amount: float) -> Tensor:
    tint = torch.tensor([amount, 0.0, -amount]).view(1, 3, 1, 1)
    return (images + tint).clamp(0, 255).byte()


def shuffled(images: Tensor, block: int) -> Tensor:
    columns = images.unfold(2, block, block).unfold(3, block, block)
    order = torch.randperm(columns.shape[2] ** 2, generator=torch.Generator().manual_seed(0))
    blocks = columns.flatten(2, 3)[:, :, order].unflatten(2, columns.shape[2:4])
    return blocks.transpose(3, 4).reshape(images.shape)


def repeated(images: Tensor, count: int) -> Tensor:
    return images[:count].repeat(math.ceil(len(images) / count), 1, 1, 1)[: len(images)]


def swd(quality: Quality, images: Tensor) -> float:
    return quality.measure(images.split(50))["swd"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda x: blurred(x, 0.7),
        lambda x: noisy(x, 20),
        lambda x: tinted(x, 30),
        lambda x: (127.5 + 0.7 * (x - 127.5)).byte(),
        lambda x: shuffled(x, 1),
        lambda x: shuffled(x, SIDE // 2),
        lambda x: torch.cat([x[:, :, : SIDE // 2], x.roll(1, 0)[:, :, SIDE // 2 :]], dim=2),
        lambda x: repeated(x, 1),
        lambda x: repeated(x, 5),
        lambda x: torch.cat([x[: COUNT // 2], noisy(x, 40)[COUNT // 2 :]]),
    ],
    ids=[
        "blur", "noise", "colour", "contrast", "pixels shuffled", "quarters shuffled",
        "halves of two", "one image", "five images", "half of them noise",
    ],
)  # fmt: skip
def test_damage_is_farther_from_real_images_than_other_real_images(quality, others, damage):
    assert swd(quality, damage(others)) > 1.5 * swd(quality, others)


@pytest.mark.parametrize(
    "worse",
    [
        lambda x, step: blurred(x, 0.5 * step),
        lambda x, step: noisy(x, 15 * step),
        lambda x, step: tinted(x, 25 * step),
        lambda x, step: repeated(x, 80 // step**2),
    ],
    ids=["blur", "noise", "colour", "repetition"],
)
def test_more_damage_is_farther(quality, others, worse):
    distances = [swd(quality, worse(others, step)) for step in (1, 2, 3)]
    assert distances == sorted(distances)


def test_coverage_falls_with_variety_and_nearest_with_memorising(faces, quality, others):
    real = quality.measure([others])
    assert real["coverage"] > 0.85
    assert 0.85 < real["nearest"] < 1.15
    coverage = [quality.measure([repeated(others, n)])["coverage"] for n in (100, 25, 1)]
    assert real["coverage"] > coverage[0] + 0.2 > coverage[1] + 0.2 > coverage[2]
    assert quality.measure([noisy(faces[:COUNT], 3)])["nearest"] < 0.3


def test_the_reals_themselves_are_at_no_distance(faces, quality):
    values = quality.measure([faces[:COUNT]])
    assert values["swd"] == pytest.approx(0, abs=1e-3)
    assert values["nearest"] == pytest.approx(0, abs=1e-3)
    assert values["coverage"] == 1


def test_it_does_not_depend_on_batches_and_repeats(faces, quality, others):
    values = quality.measure([others])
    assert values.keys() == {"swd", "swd_32", "swd_16", "coverage", "nearest"}
    for batches in ([others], others.split(7)):
        assert quality.measure(batches) == pytest.approx(values, rel=1e-4)
    assert Quality([faces[:COUNT]]).measure([others]) == pytest.approx(values, rel=1e-4)


def test_images_must_be_as_many_and_as_large_as_the_reals(quality, others):
    with pytest.raises(ValueError, match=r"399 images of 32 px; 400 of 32 px needed"):
        quality.measure([others[1:]])
    with pytest.raises(ValueError, match=r"of 16 px; 400 of 32 px needed"):
        quality.measure([others[:, :, ::2, ::2]])
    with pytest.raises(ValueError, match=rf"5 real images; {FEWEST_IMAGES} to"):
        Quality([others[:5]])


def test_real_images_are_chosen_the_same_way_each_time_and_all_where_they_are_few(others):
    chosen = torch.cat([*real_images(others, 70)])
    assert len(chosen) == 70
    assert torch.equal(chosen, torch.cat([*real_images(others, 70)]))
    assert torch.equal(torch.cat([*real_images(others, 1000)]), others)


def test_generated_images_are_the_same_in_every_call_and_no_stream_moves():
    torch.manual_seed(1)
    network = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=2)
    generator = network.generator()
    before = torch.get_rng_state()
    first = torch.cat([*generated_images(generator, 10, 4)])
    assert first.shape == (10, 3, 16, 16)
    assert first.dtype == torch.uint8
    assert torch.equal(first, torch.cat([*generated_images(generator, 10, 4)]))
    assert torch.equal(torch.get_rng_state(), before)
