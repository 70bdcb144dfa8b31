"""Test images made harder than what was labelled: moved, blurred, noisy, compressed, grey.

What is drawn at random depends on a seed and an image's name alone, so that every method meets the same pictures.
"""

import hashlib
import io
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from gpseg.evaluation.results import Held

ROTATION = 20.0
"""Largest rotation in degrees."""
SCALE = 1.25
"""Largest zoom, in or out."""
SHIFT = 0.1
"""Largest shift along each axis, as a share of the side."""
BLUR = 1 / 64
"""Standard deviation of the blur, as a share of the side."""
NOISE = 20.0
"""Standard deviation of the noise, in grey levels of 255."""
JPEG_QUALITY = 20


def jittered(held: Held, kind: str, seed: int, ignore_index: int) -> Held:
    """Change labelled images in one way.

    Args:
        held: the images.
        kind: one of `KINDS`.
        seed: decides, with an image's name, what is drawn at random.
        ignore_index: id of mask pixels that come from beyond the image.

    Returns:
        Images and masks of the same shapes and types. Only "similarity" changes masks.
    """
    images, masks = [], []
    for stem, image, mask in zip(held.stems, held.images, held.masks, strict=True):
        random = torch.Generator().manual_seed(_number(seed, kind, stem))
        if kind == "similarity":
            image, mask = _moved(image, mask, random, ignore_index)
        else:
            image = _CHANGES[kind](image, random)
        images.append(image)
        masks.append(mask)
    return Held(held.stems, torch.stack(images), torch.stack(masks)) if images else held


def _number(seed: int, kind: str, stem: str) -> int:
    digest = hashlib.sha256(f"{seed} {kind} {stem}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _moved(
    image: Tensor, mask: Tensor, random: torch.Generator, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Rotate, zoom and shift; beyond its edge the image goes on as its edge is, and the mask is ignored."""
    turn, zoom, *shift = (2 * torch.rand(4, generator=random) - 1).tolist()
    angle, zoom = math.radians(ROTATION * turn), SCALE**zoom
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    x, y = (2 * SHIFT * value for value in shift)
    affine = torch.tensor([[[cos, -sin, x], [sin, cos, y]]])
    grid = F.affine_grid(affine, [1, 1, *mask.shape], align_corners=False)
    picture = F.grid_sample(image[None].float(), grid, padding_mode="border", align_corners=False)
    # Shifted by one, ids leave 0, with which sampling pads, to what lies beyond the image.
    ids = F.grid_sample(mask[None, None].float() + 1, grid, mode="nearest", align_corners=False) - 1
    ids = torch.where(ids < 0, ignore_index, ids)
    return picture[0].round().to(image.dtype), ids[0, 0].to(mask.dtype)


def _blurred(image: Tensor, random: torch.Generator) -> Tensor:
    return _pixels(_picture(image).filter(ImageFilter.GaussianBlur(BLUR * image.shape[-1])))


def _noisy(image: Tensor, random: torch.Generator) -> Tensor:
    noise = NOISE * torch.randn(image.shape, generator=random)
    return (image + noise).round().clamp(0, 255).to(image.dtype)


def _compressed(image: Tensor, random: torch.Generator) -> Tensor:
    stream = io.BytesIO()
    _picture(image).save(stream, format="JPEG", quality=JPEG_QUALITY)
    return _pixels(Image.open(stream))


def _grey(image: Tensor, random: torch.Generator) -> Tensor:
    return _pixels(_picture(image).convert("L").convert("RGB"))


_CHANGES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "blur": _blurred,
    "noise": _noisy,
    "JPEG": _compressed,
    "grey": _grey,
}

KINDS: dict[str, str] = {
    "similarity": f"rotation to ±{ROTATION:g}°, scale {1 / SCALE:g} to {SCALE:g}, shift to ±{100 * SHIFT:g} %",
    "blur": f"Gaussian, σ {100 * BLUR:.1f} % of the side",
    "noise": f"Gaussian, σ {NOISE:g} of 255",
    "JPEG": f"quality {JPEG_QUALITY}",
    "grey": "no colour",
}
"""Ways to change an image, and how much."""


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
