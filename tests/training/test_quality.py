"""Measures of generated images: they tell what is wrong, agree with themselves and leave a run as it was."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.quality import DAMAGES, blurred, noisy, repeated, shuffled, tinted
from benchmarks.quality import faces as drawn_faces
from gpseg.models.stylegan2 import NetworkConfig
from gpseg.training.quality import FEWEST_IMAGES, Quality, generated_images, real_images

COUNT, SIDE = 400, 32


@pytest.fixture(scope="module")
def faces() -> Tensor:
    return drawn_faces(0, 2 * COUNT, SIDE)


@pytest.fixture(scope="module")
def quality(faces) -> Quality:
    return Quality(faces[:COUNT].split(40))


@pytest.fixture(scope="module")
def others(faces) -> Tensor:
    return faces[COUNT:]


def swd(quality: Quality, images: Tensor) -> float:
    return quality.measure(images.split(50))["swd"]


@pytest.mark.parametrize("name", [*DAMAGES][1:])
def test_damage_shows(quality, others, name):
    real, damaged = quality.measure([others]), quality.measure([DAMAGES[name](others)])
    assert any(damaged[name] > 1.5 * real[name] for name in ("swd_32", "swd_16", "frechet_8"))


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


def test_frechet_8_sees_layout_colour_and_variety(quality, others):
    real = quality.measure([others])["frechet_8"]
    damaged = [
        shuffled(others, SIDE // 2),
        others.roll(SIDE // 4, 3),
        tinted(others, 30),
        repeated(others, 20),
    ]
    for images in damaged:
        assert quality.measure([images])["frechet_8"] > 2 * real


def test_frechet_8_is_the_distance_of_two_normal_distributions(faces, quality, others):
    def moments(images):
        pixels = F.adaptive_avg_pool2d(images.double() / 127.5 - 1, 8).flatten(1)
        return pixels.mean(dim=0), torch.cov(pixels.T)

    (mean, covariance), (other_mean, other) = moments(faces[:COUNT]), moments(others)
    root = torch.linalg.eigvals(covariance @ other).sqrt().sum().real
    expected = (mean - other_mean).square().sum() + (covariance + other).trace() - 2 * root
    assert quality.measure([others])["frechet_8"] == pytest.approx(float(expected), rel=1e-4)


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
    assert values["frechet_8"] == pytest.approx(0, abs=1e-3)
    assert values["nearest"] == pytest.approx(0, abs=1e-3)
    assert values["coverage"] == 1


def test_it_does_not_depend_on_batches_and_repeats(faces, quality, others):
    values = quality.measure([others])
    assert values.keys() == {"swd", "swd_32", "swd_16", "frechet_8", "coverage", "nearest"}
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
