"""Images and masks move together; adversarial augmentation is differentiable twice."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpseg.data import Classes, PairAugment, diff_augment

STILL = PairAugment(
    flip=0.0,
    scale=1.0,
    rotation=0.0,
    shift=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    hue=0.0,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _blobs(seed: int, count: int, height: int, width: int) -> Tensor:
    """Smooth masks of ids 0..3, uint8 [count, height, width]."""
    coarse = torch.randn(count, 4, 4, 4, generator=_generator(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return fine.argmax(dim=1).to(torch.uint8)


def _as_images(masks: Tensor) -> Tensor:
    """Write ids as grey levels -1, -1/3, 1/3, 1."""
    return (masks.float() / 1.5 - 1).unsqueeze(1).expand(-1, 3, -1, -1)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    scale=st.floats(1, 1.6),
    rotation=st.floats(0, 90),
    shift=st.floats(0, 0.4),
    size=st.sampled_from([(32, 32), (24, 40)]),
)
def test_image_and_mask_move_together(
    seed: int, flip: float, scale: float, rotation: float, shift: float, size: tuple[int, int]
) -> None:
    """Both hold their own coordinates: what the mask took is what lies nearest to the image's."""
    height, width = size
    augment = replace(STILL, flip=flip, scale=scale, rotation=rotation, shift=shift)
    column = torch.arange(width).expand(3, height, width)
    row = torch.arange(height)[:, None].expand(3, height, width)
    for ids, most in ((column, width - 1), (row, height - 1)):
        ramp = (ids * (2 / most) - 1).unsqueeze(1).expand(-1, 3, -1, -1)
        images, masks = augment(ramp, ids.to(torch.uint8), _generator(seed))
        labelled = masks != 255
        assert labelled.float().mean() > 0.2
        places = (images[:, 0] + 1) * (most / 2)
        assert (places - masks)[labelled].abs().max() <= 0.5 + 1e-3


def test_nothing_changes_without_strength() -> None:
    images = torch.rand(2, 3, 16, 16, generator=_generator()) * 2 - 1
    masks = _blobs(0, 2, 16, 16)
    same, same_masks = STILL(images, masks, _generator())
    torch.testing.assert_close(same, images)
    assert masks.equal(same_masks)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_mirrored_masks_swap_left_and_right(classes: Classes, dtype: torch.dtype) -> None:
    masks = torch.randint(0, 3, (4, 8, 8), generator=_generator()).to(dtype)
    masks[:, 0, 0] = 255
    images = torch.rand(4, 3, 8, 8, generator=_generator())
    augment = replace(STILL, flip=1.0, swap_table=classes.swap_table())
    mirrored, swapped = augment(images, masks, _generator())
    torch.testing.assert_close(mirrored, images.flip(3))
    expected = classes.swap_table()[masks.long()].flip(2)
    assert swapped.dtype == dtype
    assert swapped.long().equal(expected)


def test_only_mirrored_images_swap(classes: Classes) -> None:
    masks = torch.ones(64, 4, 4, dtype=torch.uint8)
    masks[:, :, 2:] = 0
    augment = replace(STILL, flip=0.5, swap_table=classes.swap_table())
    _, moved = augment(torch.zeros(64, 3, 4, 4), masks, _generator())
    kept = (moved == masks).flatten(1).all(dim=1)
    turned = (moved == masks.flip(2) * 2).flatten(1).all(dim=1)
    assert (kept ^ turned).all()
    assert 20 < int(turned.sum()) < 44


def test_beyond_the_image_is_ignored_and_mirrored() -> None:
    images = torch.rand(8, 3, 16, 16, generator=_generator())
    masks = torch.ones(8, 16, 16, dtype=torch.uint8)
    augment = replace(STILL, shift=0.5, ignore_index=200)
    moved_images, moved = augment(images, masks, _generator(1))
    assert set(moved.unique().tolist()) == {1, 200}
    assert moved_images.min() >= 0  # mirrored pixels, not zeros blended in
    assert (moved_images.amin(dim=(1, 2, 3)) < 0.2).all()


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_geometry_is_a_similarity_in_pixels(flip: float) -> None:
    """Turned and mirrored in a wide picture, a square keeps its area."""
    masks = torch.zeros(1, 20, 40, dtype=torch.uint8)
    masks[0, 4:16, 14:26] = 1
    augment = replace(STILL, flip=flip, rotation=90.0)
    for seed in range(5):
        _, moved = augment(_as_images(masks), masks, _generator(seed))
        assert abs(int((moved == 1).sum()) - 144) <= 10


def test_colors_leave_masks_alone_and_stay_in_range() -> None:
    images = torch.rand(6, 3, 16, 16, generator=_generator()) * 2 - 1
    masks = _blobs(1, 6, 16, 16)
    augment = replace(STILL, brightness=0.5, contrast=0.5, saturation=0.8, hue=40.0)
    colored, same = augment(images, masks, _generator())
    assert masks.equal(same)
    assert not torch.allclose(colored, images)
    assert colored.abs().max() <= 1


def test_hue_turns_about_grey() -> None:
    pixels = torch.tensor([[0.5, -0.2, 0.0], [0.3, 0.3, 0.3]]).T.reshape(1, 3, 1, 2)
    pixels = pixels - pixels.mean()
    turned, _ = replace(STILL, hue=120.0)(pixels, None, _generator(3))
    torch.testing.assert_close(turned.sum(dim=1), pixels.sum(dim=1))
    torch.testing.assert_close(turned.norm(dim=1), pixels.norm(dim=1))
    torch.testing.assert_close(turned[..., 1], pixels[..., 1])
    assert not torch.allclose(turned[..., 0], pixels[..., 0], atol=0.05)


def test_saturation_scales_the_distance_from_grey() -> None:
    images = torch.rand(1, 3, 8, 8, generator=_generator()) - 0.5
    colored, _ = replace(STILL, saturation=0.5)(images, None, _generator())
    grey, colored_grey = images.mean(dim=1), colored.mean(dim=1)
    torch.testing.assert_close(colored_grey, grey)
    ratio = (colored - colored_grey).norm() / (images - grey).norm()
    assert 0.5 <= ratio <= 1.5
    torch.testing.assert_close(colored - colored_grey, ratio * (images - grey))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pair_augment_keeps_types(dtype: torch.dtype) -> None:
    images, masks = torch.rand(2, 3, 64, 64, generator=_generator()), _blobs(0, 2, 64, 64)
    exact, exact_masks = PairAugment()(images.double(), masks, _generator())
    rounded, same_masks = PairAugment()(images.to(dtype), masks, _generator())
    assert rounded.dtype == dtype
    assert (exact_masks != same_masks).float().mean() < 0.01
    assert (rounded.double() - exact).abs().mean() < 0.01


@pytest.mark.parametrize("augment", [PairAugment(), None])
def test_the_generator_decides(augment: PairAugment | None) -> None:
    images = torch.rand(3, 3, 16, 16, generator=_generator())

    def run(seed: int) -> Tensor:
        if augment is None:
            return diff_augment(images, _generator(seed))
        return augment(images, None, _generator(seed))[0]

    assert run(5).equal(run(5))
    assert not torch.allclose(run(5), run(6))


def test_diff_augment_gradients_to_second_order() -> None:
    images = torch.randn(2, 3, 6, 8, dtype=torch.float64, generator=_generator())
    images.requires_grad_()

    def augmented(x: Tensor) -> Tensor:
        # Squared, so that the second derivative is not zero everywhere.
        return diff_augment(x, _generator(1)).square()

    assert torch.autograd.gradcheck(augmented, (images,))
    assert torch.autograd.gradgradcheck(augmented, (images,))


def test_translation_shifts_by_whole_pixels_and_fills_with_zero() -> None:
    images = torch.rand(30, 3, 16, 8, generator=_generator()) + 1
    moved = diff_augment(images, _generator(2), color=False, translation=0.25, cutout=0.0)
    shifts = set()
    for image, shifted in zip(images, moved, strict=True):
        rows, columns = shifted[0].nonzero().unbind(1)
        down = int(rows.min()) or int(rows.max()) - 15
        right = int(columns.min()) or int(columns.max()) - 7
        rolled = image.roll((down, right), dims=(1, 2))
        torch.testing.assert_close(shifted[shifted != 0], rolled[shifted != 0])
        shifts.add((down, right))
    assert {abs(down) for down, _ in shifts} == set(range(5))
    assert {abs(right) for _, right in shifts} == set(range(3))


def test_cutout_blanks_at_most_its_square() -> None:
    blanked = diff_augment(torch.ones(40, 1, 16, 16), _generator(), False, 0.0, 0.5) == 0
    areas = blanked.flatten(1).sum(dim=1)
    assert areas.max() <= 64
    assert areas.max() >= 56
    assert areas.min() >= 9  # the square's centre lies in the picture
    rows, columns = blanked[:, 0].any(dim=2).sum(dim=1), blanked[:, 0].any(dim=1).sum(dim=1)
    assert areas.equal(rows * columns)


def test_colors_vary_as_published() -> None:
    images = torch.rand(200, 3, 4, 4, generator=_generator())
    changed = diff_augment(images, _generator(1), translation=0.0, cutout=0.0)
    shift = (changed - images).mean(dim=(1, 2, 3))
    assert shift.min() < -0.45
    assert shift.max() > 0.45
    assert shift.abs().max() <= 0.5 + 1e-5
    spread = changed.mean(dim=1).std(dim=(1, 2)) / images.mean(dim=1).std(dim=(1, 2))
    assert spread.min() >= 0.5 - 1e-4
    assert spread.max() <= 1.5 + 1e-4
    assert math.isclose(float(spread.mean()), 1.0, abs_tol=0.1)


def test_what_was_drawn_moves_masks_that_come_later(classes: Classes) -> None:
    augment = PairAugment(swap_table=classes.swap_table())
    masks = _blobs(3, 6, 32, 32)
    images, moved = augment(_as_images(masks), masks, _generator(4))
    change = augment.draw(images.shape, _generator(4))
    assert change.images(_as_images(masks)).equal(images)
    assert change.masks(masks).equal(moved)
    assert change[2:5].masks(masks[2:5]).equal(moved[2:5])
