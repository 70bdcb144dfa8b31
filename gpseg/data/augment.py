"""Augmentation of batches: images together with their masks, and for adversarial training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional as F

from gpseg.data.classes import Classes


@dataclass(frozen=True)
class PairAugment:
    """Random flips, similarity transforms and colours for images and their masks.

    One resampling moves image and mask alike; beyond the image's edge the picture is mirrored and
    the mask is `ignore_index`. Colours change in the image only. Zero strengths change nothing.

    Args:
        flip: probability of mirroring, 0..1.
        scale: largest zoom factor, in or out, at least 1.
        rotation: largest rotation in degrees.
        shift: largest shift along each axis as a share of the side.
        brightness: largest shift of the values, which span -1..1.
        contrast: largest relative change of the distance from the image's mean, 0..1.
        saturation: largest relative change of the distance from grey, 0..1.
        hue: largest turn of the hues in degrees.
        swap_table: int64 [256], ids in a mirrored mask (`Classes.swap_table`); None keeps ids.
        ignore_index: id of mask pixels that come from beyond the image.
    """

    flip: float = 0.5
    scale: float = 1.425
    rotation: float = 22.5
    shift: float = 0.14
    brightness: float = 0.35
    contrast: float = 0.425
    saturation: float = 0.65
    hue: float = 22.5
    swap_table: Tensor | None = field(default=None, compare=False)
    ignore_index: int = 255

    def suiting(self, classes: Classes, device: torch.device | str = "cpu") -> PairAugment:
        """The same for masks of some classes.

        Args:
            classes: say which ids a mirrored mask swaps, and which pixels are ignored.
            device: where the masks are.
        """
        table = classes.swap_table().to(device)
        return replace(self, swap_table=table, ignore_index=classes.ignore_index)

    @overload
    def __call__(
        self, images: Tensor, masks: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def __call__(
        self, images: Tensor, masks: None, generator: torch.Generator
    ) -> tuple[Tensor, None]: ...

    def __call__(
        self, images: Tensor, masks: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Augment a batch, each image in its own way.

        Args:
            images: floating, [N, 3, H, W] in -1..1, N at least 1.
            masks: integer, [N, H, W], or None.
            generator: source of randomness; its state alone decides the outcome.

        Returns:
            Images and masks of the same shapes and types.
        """
        change = self.draw(images.shape, generator)
        return change.images(images), None if masks is None else change.masks(masks)

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> PairChange:
        """Draw what a batch is to go through, for masks that are known only later.

        Args:
            shape: of the images, [N, 3, H, W].
            generator: source of randomness, and where its device is the change's.
        """
        count, _, height, width = shape
        random = torch.rand(count, 9, generator=generator, device=generator.device)
        flips = random[:, 0] < self.flip
        signed = 2 * random[:, 1:] - 1
        return PairChange(
            affine=self._affine(flips, signed[:, :4], width / height),
            flips=flips,
            matrix=self._color_matrix(signed[:, 4:7]),
            offset=self.brightness * signed[:, 7],
            swap_table=self.swap_table,
            ignore_index=self.ignore_index,
        )

    def _affine(self, flips: Tensor, signed: Tensor, aspect: float) -> Tensor:
        """Map output to input coordinates, which span -1..1 along each axis: [N, 2, 3]."""
        zoom = self.scale ** signed[:, 0]
        angle = math.radians(self.rotation) * signed[:, 1]
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        mirror = torch.where(flips, -1.0, 1.0)
        shift_x, shift_y = (2 * self.shift * signed[:, 2:]).unbind(1)
        rows = [cos * mirror, -sin / aspect, shift_x, sin * aspect * mirror, cos, shift_y]
        return torch.stack(rows, dim=1).reshape(-1, 2, 3)

    def _color_matrix(self, signed: Tensor) -> Tensor:
        """Contrast, saturation and hue as one matrix on colours around their mean: [N, 3, 3]."""
        contrast = 1 + self.contrast * signed[:, 0]
        saturation = 1 + self.saturation * signed[:, 1]
        angle = math.radians(self.hue) * signed[:, 2]
        # Rodrigues' rotation about the grey axis; saturation scales what lies across that axis.
        grey = torch.full((3, 3), 1 / 3, device=signed.device)
        root = 1 / math.sqrt(3)
        cross = root * torch.tensor(
            [[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=signed.device
        )
        across = torch.eye(3, device=signed.device) - grey
        cos, sin = (saturation * f(angle) for f in (torch.cos, torch.sin))
        turn = grey + cos[:, None, None] * across + sin[:, None, None] * cross
        return contrast[:, None, None] * turn


@dataclass(frozen=True)
class PairChange:
    """What `PairAugment` drew for a batch of images [N, 3, H, W] and their masks.

    Args:
        affine: from output to input coordinates, which span -1..1 along each axis, [N, 2, 3].
        flips: which are mirrored, [N].
        matrix: of colours around an image's mean, [N, 3, 3].
        offset: added to the colours, [N].
        swap_table: ids in a mirrored mask, int64 [256]; None keeps ids.
        ignore_index: id of mask pixels that come from beyond the image.
    """

    affine: Tensor
    flips: Tensor
    matrix: Tensor
    offset: Tensor
    swap_table: Tensor | None
    ignore_index: int

    def __getitem__(self, rows: slice) -> PairChange:
        """What was drawn for some of the images."""
        own = {name: getattr(self, name)[rows] for name in ("affine", "flips", "matrix", "offset")}
        return replace(self, **own)

    def images(self, images: Tensor) -> Tensor:
        """Move and recolour floating images [N, 3, H, W] in -1..1."""
        # Coordinates in a half-precision type would be off by whole pixels.
        precise = images.to(torch.promote_types(images.dtype, torch.float32))
        grid = F.affine_grid(self.affine.to(precise), [*images.shape], align_corners=False)
        moved = F.grid_sample(precise, grid, padding_mode="reflection", align_corners=False)
        recolored = _recolored(moved, self.matrix.to(precise), self.offset.to(precise))
        return recolored.to(images.dtype)

    def masks(self, masks: Tensor) -> Tensor:
        """Move integer masks [N, H, W] as their images, swapping the ids of mirrored ones."""
        if self.swap_table is not None:
            swapped = self.swap_table.to(masks.device)[masks.long()].to(masks.dtype)
            masks = torch.where(self.flips.to(masks.device)[:, None, None], swapped, masks)
        return move_masks(masks, self.affine.to(masks.device), self.ignore_index)


def move_masks(masks: Tensor, affine: Tensor, ignore_index: int) -> Tensor:
    """Move masks; every pixel takes the id that is nearest to where it comes from.

    Args:
        masks: integer, [N, H, W].
        affine: from output to input coordinates, which span -1..1 along each axis, float32 [N, 2, 3].
        ignore_index: id of pixels that come from beyond the mask.

    Returns:
        [N, H, W], of the masks' type.
    """
    # Shifted by one, ids leave 0, with which sampling pads, to what lies beyond the mask.
    ids = masks.to(affine.dtype).unsqueeze(1) + 1
    grid = F.affine_grid(affine, [*ids.shape], align_corners=False)
    moved = F.grid_sample(ids, grid, mode="nearest", align_corners=False).squeeze(1) - 1
    return torch.where(moved < 0, ignore_index, moved).to(masks.dtype)


def _recolored(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Apply a colour matrix around each image's mean colour, and an offset, within -1..1."""
    pixels = images.flatten(2)
    mean = pixels.mean(dim=(1, 2), keepdim=True)
    # matrix @ (pixels - mean) + mean + offset, with the mean's part taken out of the product.
    base = mean - matrix.sum(dim=2, keepdim=True) * mean + offset[:, None, None]
    return torch.baddbmm(base, matrix, pixels).clamp(-1, 1).reshape(images.shape)


def diff_augment(
    images: Tensor,
    generator: torch.Generator,
    color: bool = True,
    translation: float = 0.125,
    cutout: float = 0.5,
) -> Tensor:
    """Augment what a discriminator sees, real or generated, differentiably to any order.

    Brightness, saturation and contrast; a shift by whole pixels; a blanked square.

    Args:
        images: floating, [N, C, H, W] in -1..1, N at least 1.
        generator: source of randomness; its state alone decides the outcome.
        color: change the colours.
        translation: largest shift as a share of the side, 0..1.
        cutout: side of the blanked square as a share of the image's, 0..1.

    Returns:
        [N, C, H, W], which may go beyond -1..1; what is shifted in or blanked is 0.

    Source:
        The policies of Zhao et al., Differentiable Augmentation for Data-Efficient GAN Training,
        2020 (arXiv 2006.10738).
    """
    count, _, height, width = images.shape
    random = torch.rand(count, 7, generator=generator, device=generator.device)
    if color:
        brightness, saturation, contrast = random[:, :3, None, None, None].to(images).unbind(1)
        images = images + (brightness - 0.5)
        grey = images.mean(dim=1, keepdim=True)
        images = grey + (images - grey) * (2 * saturation)
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (0.5 + contrast)
    if translation:
        images = _translated(images, (2 * random[:, 3:5] - 1) * translation)
    if cutout:
        keep = _outside_square(random[:, 5:7].to(images.device), cutout, height, width)
        images = images * keep.to(images.dtype)
    return images


def _translated(images: Tensor, shares: Tensor) -> Tensor:
    """Shift each image by shares [N, 2] of its height and width, in whole pixels."""
    size = torch.tensor(images.shape[2:], device=shares.device)
    shifts = (shares * size).round().long().tolist()
    # A pad that is negative on one side shifts, and so do its derivatives, of any order.
    moved = [
        F.pad(image, (right, -right, down, -down))
        for image, (down, right) in zip(images, shifts, strict=True)
    ]
    return torch.stack(moved)


def _outside_square(places: Tensor, share: float, height: int, width: int) -> Tensor:
    """Tell the pixels outside squares centred at places [N, 2], in shares: bool [N, 1, H, W]."""
    outside = []
    for place, size in ((places[:, :1], height), (places[:, 1:], width)):
        line = (torch.arange(size, device=places.device) + 0.5) / size
        outside.append((line - place).abs() > share / 2)
    rows, columns = outside
    return (rows[:, :, None] | columns[:, None, :]).unsqueeze(1)
