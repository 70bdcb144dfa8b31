"""Test images made harder than what was labelled: moved and damaged, or as if from another collection.

What is drawn at random depends on a seed and an image's name alone, so that every method meets the same pictures.
"""

import hashlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from gpseg.data.augment import move_masks
from gpseg.evaluation.results import Held

Change = Callable[[Tensor, Tensor, torch.Generator, int], tuple[Tensor, Tensor]]
"""From image, mask, source of randomness and ignore index to a changed image and mask."""

ELSEWHERE = "elsewhere"
"""The kind that stands in for another collection."""

BACKGROUND = 0
"""Id of the class that gives way to another background."""

BLUR = 1 / 64
"""Standard deviation of the blur, as a share of the side."""
NOISE = 20.0
"""Standard deviation of the noise, in grey levels of 255."""
JPEG_QUALITY = 20
MILD_JPEG_QUALITY = 50

STOPS = 1.2
"""Largest gain of values at the bright side, as a power of two; the dark side has as much less."""
GAMMA = 0.6
"""Largest exponent of values, up or down, as a power of two."""
TINT = 0.35
"""Largest gain of a colour channel, up or down, as a power of two."""
SATURATION = 0.8
"""Largest relative change of the distance from grey."""
HUE = 50.0
"""Largest turn of the hues in degrees."""


@dataclass(frozen=True)
class Similarity:
    """Ranges of a random move.

    Args:
        rotation: largest rotation in degrees.
        scale: largest zoom, in or out.
        shift: largest shift along each axis, as a share of the side.
    """

    rotation: float
    scale: float
    shift: float

    def __str__(self) -> str:
        return (
            f"rotation to ±{self.rotation:g}°, scale {1 / self.scale:.3g} to {self.scale:g}, "
            f"shift to ±{100 * self.shift:g} %"
        )

    def __call__(
        self, image: Tensor, mask: Tensor, random: torch.Generator, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        """Move both; beyond its edge the image goes on as its edge is, and the mask is ignored."""
        turn, zoom, *shift = _signed(4, random)
        angle, zoom = math.radians(self.rotation * turn), self.scale**zoom
        cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
        x, y = (2 * self.shift * value for value in shift)
        affine = torch.tensor([[[cos, -sin, x], [sin, cos, y]]])
        grid = F.affine_grid(affine, [1, 1, *mask.shape], align_corners=False)
        picture = F.grid_sample(
            image[None].float(), grid, padding_mode="border", align_corners=False
        )
        return picture[0].round().to(image.dtype), move_masks(mask[None], affine, ignore_index)[0]


@dataclass(frozen=True)
class Kind:
    """A way to change an image.

    Args:
        what: what it does and how much, in a few words.
        change: does it.
        foreign: whether images look as if from another collection; else they are moved or damaged.
    """

    what: str
    change: Change
    foreign: bool = False


def jittered(held: Held, kind: str, seed: int, ignore_index: int) -> Held:
    """Change labelled images in one way.

    Args:
        held: the images.
        kind: one of `KINDS`.
        seed: decides, with an image's name, what is drawn at random.
        ignore_index: id of mask pixels that come from beyond the image.

    Returns:
        Images and masks of the same shapes and types. Masks change where images move: in "similarity", "framing" and "elsewhere".
    """
    images, masks = [], []
    for stem, image, mask in zip(held.stems, held.images, held.masks, strict=True):
        random = torch.Generator().manual_seed(_number(seed, kind, stem))
        image, mask = KINDS[kind].change(image, mask, random, ignore_index)
        images.append(image)
        masks.append(mask)
    return Held(held.stems, torch.stack(images), torch.stack(masks)) if images else held


def _number(seed: int, kind: str, stem: str) -> int:
    digest = hashlib.sha256(f"{seed} {kind} {stem}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _signed(count: int, random: torch.Generator) -> list[float]:
    """Numbers in -1..1."""
    return (2 * torch.rand(count, generator=random) - 1).tolist()


def _strong(count: int, random: torch.Generator) -> list[float]:
    """Numbers in -1..1 but not in -½..½, so that no image is left as it is."""
    return [math.copysign((1 + abs(value)) / 2, value) for value in _signed(count, random)]


def _image_only(change: Callable[[Tensor, torch.Generator], Tensor]) -> Change:
    """A change that neither needs nor changes the mask."""
    return lambda image, mask, random, _: (change(image, random), mask)


def _in_turn(*changes: Change) -> Change:
    """Several changes, one after the other."""

    def all_of_them(
        image: Tensor, mask: Tensor, random: torch.Generator, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        for change in changes:
            image, mask = change(image, mask, random, ignore_index)
        return image, mask

    return all_of_them


def _blurred(image: Tensor, random: torch.Generator, sigma: float) -> Tensor:
    """Blur by a Gaussian whose standard deviation is a share of the side."""
    return _pixels(_picture(image).filter(ImageFilter.GaussianBlur(sigma * image.shape[-1])))


def _noisy(image: Tensor, random: torch.Generator) -> Tensor:
    return _values(image + NOISE * torch.randn(image.shape, generator=random))


def _compressed(image: Tensor, random: torch.Generator, quality: int) -> Tensor:
    stream = io.BytesIO()
    _picture(image).save(stream, format="JPEG", quality=quality)
    return _pixels(Image.open(stream))


def _grey(image: Tensor, random: torch.Generator) -> Tensor:
    return _pixels(_picture(image).convert("L").convert("RGB"))


def _lit(image: Tensor, random: torch.Generator) -> Tensor:
    """Light from one side, and a darker or brighter tone."""
    across, _ = _turned_axes(image.shape[-2:], random)
    strength, gamma = _strong(2, random)
    light = 2 ** (STOPS * abs(strength) * across)
    return _values(255 * (image / 255) ** 2 ** (GAMMA * gamma) * light)


def _tinted(image: Tensor, random: torch.Generator) -> Tensor:
    """Another white balance, other hues, stronger or weaker colours."""
    hue, saturation, *tint = _strong(5, random)
    hues, *others = _picture(image).convert("HSV").split()
    turn = round(256 * HUE * hue / 360)
    turned = hues.point([(value + turn) % 256 for value in range(256)])
    picture = Image.merge("HSV", [turned, *others]).convert("RGB")
    picture = ImageEnhance.Color(picture).enhance(1 + SATURATION * saturation)
    gains = 2 ** (TINT * torch.tensor(tint))
    return _values(_pixels(picture) * gains[:, None, None])


def _before_another_background(
    image: Tensor, mask: Tensor, random: torch.Generator, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Put a drawn background in place of the class; edges are soft, or they would show where the parts end."""
    parts = F.pad((mask != BACKGROUND).float()[None, None], (1, 1, 1, 1), mode="replicate")
    soft = F.conv2d(parts, _BINOMIAL)[0, 0]
    kept = torch.where(mask == ignore_index, 1.0, soft)
    backdrop = _backdrop(mask.shape, random)
    return _values(kept * image + (1 - kept) * backdrop), mask


_BINOMIAL = torch.tensor([1.0, 2, 1]).outer(torch.tensor([1.0, 2, 1]))[None, None] / 16


def _backdrop(size: torch.Size, random: torch.Generator) -> Tensor:
    """A shading, stripes, checks or clouds in colours at random: [3, H, W] in 0..255."""
    colours = 255 * torch.rand(2, 3, generator=random)
    pattern = _PATTERNS[int(torch.randint(len(_PATTERNS), (), generator=random))]
    share = pattern(size, random)
    first, second = colours[:, :, None, None]
    return torch.lerp(first, second, share)


def _shading(size: torch.Size, random: torch.Generator) -> Tensor:
    across, _ = _turned_axes(size, random)
    return (across + 1) / 2


def _stripes(size: torch.Size, random: torch.Generator) -> Tensor:
    across, _ = _turned_axes(size, random)
    return (_wave(across, random) + 1) / 2


def _checks(size: torch.Size, random: torch.Generator) -> Tensor:
    across, along = _turned_axes(size, random)
    return (_wave(across, random) * _wave(along, random) + 1) / 2


def _clouds(size: torch.Size, random: torch.Generator) -> Tensor:
    share = torch.zeros(3, *size)
    for cells in (3, 6, 12, 24):
        coarse = torch.rand(1, 3, cells, cells, generator=random) - 0.5
        share += 3 / cells * F.interpolate(coarse, size, mode="bicubic", align_corners=False)[0]
    return (share + 0.5).clamp(0, 1)


_PATTERNS = (_shading, _stripes, _checks, _clouds)


def _wave(place: Tensor, random: torch.Generator) -> Tensor:
    """A wave in -1..1 of 2 to 8 periods to the side, its flanks steep."""
    periods, phase = torch.rand(2, generator=random).tolist()
    return (3 * torch.sin(math.pi * (2 + 6 * periods) * place + 2 * math.pi * phase)).tanh()


def _turned_axes(size: torch.Size, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Coordinates [H, W] along two axes in a direction at random, -1..1 within the picture's circle."""
    angle = math.pi * _signed(1, random)[0]
    y, x = (torch.linspace(-1, 1, side) for side in size)
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y[:, None], cos * y[:, None] - sin * x


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _values(image: Tensor) -> Tensor:
    """Grey levels of 255 as they are kept."""
    return image.round().clamp(0, 255).to(torch.uint8)


_SIMILARITY = Similarity(rotation=20, scale=1.25, shift=0.1)
_FRAMING = Similarity(rotation=40, scale=1.6, shift=0.2)
_BACKGROUND = _before_another_background
_LIGHT, _COLOUR = _image_only(_lit), _image_only(_tinted)

KINDS: Mapping[str, Kind] = {
    "similarity": Kind(str(_SIMILARITY), _SIMILARITY),
    "blur": Kind(
        f"Gaussian, σ {100 * BLUR:.1f} % of the side", _image_only(partial(_blurred, sigma=BLUR))
    ),
    "noise": Kind(f"Gaussian, σ {NOISE:g} of 255", _image_only(_noisy)),
    "JPEG": Kind(
        f"quality {JPEG_QUALITY}", _image_only(partial(_compressed, quality=JPEG_QUALITY))
    ),
    "grey": Kind("no colour", _image_only(_grey)),
    "light": Kind(
        f"from one side, {2 ** (STOPS / 2):.2g} to {2**STOPS:.2g} times as bright there and as much darker on the other; "
        f"a gamma of {2 ** (GAMMA / 2):.2g} to {2**GAMMA:.2g} or its inverse",
        _LIGHT,
        foreign=True,
    ),
    "colour": Kind(
        f"hues turned by {HUE / 2:g} to {HUE:g}°, saturation changed by {50 * SATURATION:g} to {100 * SATURATION:g} %, "
        f"each channel {2 ** (TINT / 2):.2g} to {2**TINT:.2g} times as bright or as dark",
        _COLOUR,
        foreign=True,
    ),
    "background": Kind(
        "drawn shading, stripes, checks or clouds in its place", _BACKGROUND, foreign=True
    ),
    "framing": Kind(str(_FRAMING), _FRAMING, foreign=True),
    ELSEWHERE: Kind(
        f"all four of these, half the blur and JPEG of quality {MILD_JPEG_QUALITY}",
        _in_turn(
            _BACKGROUND,
            _FRAMING,
            _LIGHT,
            _COLOUR,
            _image_only(partial(_blurred, sigma=BLUR / 2)),
            _image_only(partial(_compressed, quality=MILD_JPEG_QUALITY)),
        ),
        foreign=True,
    ),
}
"""Ways to change an image by name."""
