"""What the measures of generated images see: a table of damaged drawn faces against others.

    python -m benchmarks.quality

prints the table of docs/pretraining.md.
"""

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from gpseg.data import draw_face
from gpseg.training.quality import Quality

COUNT, SIDE = 2000, 64
MEASURES = ("swd", "swd_64", "swd_32", "swd_16", "frechet_8", "coverage", "nearest")


def blurred(images: Tensor, deviation: float) -> Tensor:
    """Blur uint8 images [N, 3, r, r] by a Gaussian of so many pixels."""
    reach = math.ceil(3 * deviation)
    taps = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * deviation**2))
    kernel = (taps[:, None] * taps / taps.sum() ** 2).expand(3, 1, -1, -1)
    padded = F.pad(images.float(), (reach,) * 4, mode="replicate")
    return F.conv2d(padded, kernel, groups=3).round().byte()


def noisy(images: Tensor, deviation: float) -> Tensor:
    """Add noise of so many grey levels."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + deviation * noise).round().clamp(0, 255).byte()


def tinted(images: Tensor, amount: float) -> Tensor:
    """Add so many grey levels to red and take them from blue."""
    tint = torch.tensor([amount, 0.0, -amount]).view(1, 3, 1, 1)
    return (images + tint).clamp(0, 255).byte()


def paler(images: Tensor, share: float) -> Tensor:
    """Leave so much of the contrast."""
    return (127.5 + share * (images - 127.5)).round().byte()


def shuffled(images: Tensor, block: int) -> Tensor:
    """Shuffle blocks of so many pixels, in each image another way."""
    tiles = images.unfold(2, block, block).unfold(3, block, block)
    rows = tiles.shape[2]
    order = torch.rand(len(images), rows**2, generator=torch.Generator().manual_seed(0)).argsort(1)
    flat = tiles.flatten(2, 3).transpose(1, 2)[torch.arange(len(images))[:, None], order]
    return flat.unflatten(1, (rows, rows)).permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def stitched(images: Tensor) -> Tensor:
    """Give each image the lower half of the one before."""
    middle = images.shape[2] // 2
    return torch.cat([images[:, :, :middle], images.roll(1, 0)[:, :, middle:]], dim=2)


def repeated(images: Tensor, kept: int) -> Tensor:
    """Keep so many of the images, repeated to the same number."""
    return images[:kept].repeat(math.ceil(len(images) / kept), 1, 1, 1)[: len(images)]


def half(images: Tensor, damage: Callable[[Tensor], Tensor]) -> Tensor:
    """Damage every other image."""
    damaged = damage(images)
    damaged[::2] = images[::2]
    return damaged


DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "none: other faces": lambda x: x,
    "blur, 0.5 px": lambda x: blurred(x, 0.5),
    "blur, 1 px": lambda x: blurred(x, 1),
    "blur, 2 px": lambda x: blurred(x, 2),
    "noise, 6 of 255": lambda x: noisy(x, 6),
    "noise, 25 of 255": lambda x: noisy(x, 25),
    "half of them noise, 25": lambda x: half(x, lambda y: noisy(y, 25)),
    "tint, 13 of 255": lambda x: tinted(x, 13),
    "tint, 38 of 255": lambda x: tinted(x, 38),
    "contrast 0.8": lambda x: paler(x, 0.8),
    "grey": lambda x: x.float().mean(dim=1, keepdim=True).byte().repeat(1, 3, 1, 1),
    "pixels shuffled": lambda x: shuffled(x, 1),
    "eighths shuffled": lambda x: shuffled(x, x.shape[2] // 8),
    "quarters shuffled": lambda x: shuffled(x, x.shape[2] // 4),
    "halves shuffled": lambda x: shuffled(x, x.shape[2] // 2),
    "halves of two faces": stitched,
    "moved by an eighth": lambda x: x.roll(x.shape[3] // 8, 3),
    "upside down": lambda x: x.flip(2),
    "mean of two faces": lambda x: ((x.float() + x.roll(1, 0)) / 2).round().byte(),
    "every tenth face, ten times": lambda x: repeated(x, len(x) // 10),
    "every hundredth, a hundred times": lambda x: repeated(x, len(x) // 100),
    "one face": lambda x: repeated(x, 1),
    "half of them one face": lambda x: half(x, lambda y: repeated(y, 1)),
}
"""Damages by name, of uint8 images [N, 3, r, r]."""


def faces(first: int, count: int, side: int) -> Tensor:
    """Draw faces, uint8 [count, 3, side, side]."""
    return torch.stack([draw_face(0, i, side)[0] for i in range(first, first + count)])


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__).parse_args()
    reals, others = faces(0, COUNT, SIDE), faces(COUNT, COUNT, SIDE)
    quality = Quality([reals])
    print(f"| damage | {' | '.join(MEASURES)} |")
    print(f"| --- | {' | '.join('---:' for _ in MEASURES)} |")
    for name, damage in DAMAGES.items():
        print(_row(name, quality.measure([damage(others)])))
    print(_row("the real images themselves", quality.measure([reals])))


def _row(name: str, values: dict[str, float]) -> str:
    digits = {"frechet_8": 2, "coverage": 2, "nearest": 2}
    cells = [f"{values[measure]:.{digits.get(measure, 0)}f}" for measure in MEASURES]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
