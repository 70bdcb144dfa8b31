"""How far generated images are from real ones, by measures that need no network and nothing downloaded.

They depend on no weights and on no run, so that they compare runs, with and without augmentation, over time. They are
not FID and say less: `docs/pretraining.md` has a table of what each sees and what it is blind to.

* `swd_<r>`: sliced Wasserstein distance of 7×7 patches at the level of r pixels of a Laplacian pyramid, ×10³, from the
  images' own resolution down to 16; `swd` is their mean. Karras et al., *Progressive Growing of GANs*, ICLR 2018,
  section 5; unlike there, patches of both sets are normalised by the mean and deviation of the *reals'* patches,
  because each set by its own hides wrong colours and contrast. Smaller is better; above zero for other real images too.
* `frechet_8`: Fréchet distance of the images at 8×8 pixels, as FID is of Inception's features: layout, colours and
  variety, but no detail. Smaller is better; above zero for other real images too, the more the fewer there are.
* `coverage`: share of the real images that have a generated one nearer than their fifth nearest real neighbour, at
  16×16 pixels. Naeem et al., *Reliable Fidelity and Diversity Metrics for Generative Models*, ICML 2020. Near 1 for
  real images; a generator that repeats itself loses it.
* `nearest`: median distance from a generated image to its nearest real one, over that from a real image to its nearest
  other, at 16×16 pixels. 1 for other real images, towards 0 where training images are memorised.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gpseg import ops
from gpseg.data import UnlabelledImages
from gpseg.models.segmenter import to_float, to_uint8
from gpseg.models.stylegan2 import Generator
from gpseg.nn.layers import RESAMPLE_FILTER

COARSEST = 16
_FRECHET = 8
NEIGHBOURS = 5
FEWEST_IMAGES = NEIGHBOURS + 1
MOST_IMAGES = 10_000  # distances between all pairs are in memory at once
_PATCH = 7
_PATCHES = 16  # from each image and level
_DIRECTIONS = 128
_BATCH = 64


class Quality:
    """Measures of generated images against real ones, whose statistics are computed once.

    Args:
        reals: uint8 batches [n, 3, r, r], together from `FEWEST_IMAGES` to `MOST_IMAGES` images.
    """

    def __init__(self, reals: Iterable[Tensor]) -> None:
        patches, coarse = _described(reals)
        if not FEWEST_IMAGES <= len(coarse) <= MOST_IMAGES:
            raise ValueError(f"{len(coarse)} real images; {FEWEST_IMAGES} to {MOST_IMAGES} needed")
        self.count = len(coarse)
        self._scales = {
            r: (p.mean(dim=(0, 2), keepdim=True), p.std(dim=(0, 2), keepdim=True).clamp_min(1e-8))
            for r, p in patches.items()
        }
        self._projected = self._project(patches)
        self._coarse = coarse
        self._mean, self._covariance = _moments(coarse)
        self._root = _root(self._covariance)
        distances = torch.cdist(coarse, coarse).fill_diagonal_(torch.inf)
        self._radii = distances.kthvalue(NEIGHBOURS, dim=1).values
        self._nearest = distances.min(dim=1).values.median()

    def measure(self, fakes: Iterable[Tensor]) -> dict[str, float]:
        """Measure generated images.

        Args:
            fakes: uint8 batches [n, 3, r, r], together as many images as there are reals.

        Returns:
            `swd`, `swd_<r>` for each level, `frechet_8`, `coverage` and `nearest`; the same for the same images.

        Raises:
            ValueError: the images differ in number or size from the reals.
        """
        patches, coarse = _described(fakes)
        if len(coarse) != self.count or patches.keys() != self._scales.keys():
            raise ValueError(
                f"{len(coarse)} images of {max(patches, default=0)} px; "
                f"{self.count} of {max(self._scales)} px needed"
            )
        levels = {
            r: 1000 * float((projected - self._projected[r]).abs().mean())
            for r, projected in self._project(patches).items()
        }
        distances = torch.cdist(coarse, self._coarse)
        return {
            "swd": sum(levels.values()) / len(levels),
            **{f"swd_{r}": value for r, value in levels.items()},
            "frechet_8": self._frechet(coarse),
            "coverage": float((distances.min(dim=0).values < self._radii).float().mean()),
            "nearest": float(distances.min(dim=1).values.median() / self._nearest.clamp_min(1e-8)),
        }

    def _frechet(self, coarse: Tensor) -> float:
        mean, covariance = _moments(coarse)
        # The root of the product of both has this one's eigenvalues, which are real.
        product = torch.linalg.eigvalsh(self._root @ covariance @ self._root)
        spread = (self._covariance + covariance).trace() - 2 * product.clamp_min(0).sqrt().sum()
        return max(0.0, float((mean - self._mean).square().sum() + spread))

    def _project(self, patches: dict[int, Tensor]) -> dict[int, Tensor]:
        """Sorted projections [directions, patches] of each level's patches."""
        projected = {}
        for r, level in patches.items():
            mean, deviation = self._scales[r]
            flat = ((level - mean) / deviation).flatten(1)
            directions = _random(r).standard_normal((_DIRECTIONS, flat.shape[1]))
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
            values = torch.from_numpy(directions).float() @ flat.T
            projected[r] = torch.from_numpy(np.sort(values.numpy(), axis=1))
        return projected


def real_images(images: Tensor | UnlabelledImages, count: int) -> Iterator[Tensor]:
    """The same choice of real images every time, in batches.

    Args:
        images: uint8 [N, 3, r, r].
        count: how many; all of them if there are fewer.

    Yields:
        uint8 [n, 3, r, r].
    """
    chosen = torch.from_numpy(np.sort(_random(0).permutation(len(images))[:count]))
    for index in chosen.split(_BATCH):
        yield images[index]


@torch.no_grad()
def generated_images(generator: Generator, count: int, batch: int) -> Iterator[Tensor]:
    """Images of a generator without truncation, from the same latents every time; no random stream moves.

    Args:
        generator: the generator.
        count: how many images.
        batch: how many at once.

    Yields:
        uint8 [n, 3, r, r], on the CPU.
    """
    device = generator.mapping.w_avg.device
    latents = torch.from_numpy(_random(0).standard_normal((count, generator.z_dim))).float()
    for z in latents.split(batch):
        yield to_uint8(generator(z.to(device), noise_mode="const")).cpu()


def _moments(coarse: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [192] and covariance [192, 192] (float64) of images [N, 768], at 8×8 pixels."""
    pixels = F.adaptive_avg_pool2d(coarse.unflatten(1, (3, COARSEST, COARSEST)), _FRECHET)
    flat = pixels.flatten(1).double()
    return flat.mean(dim=0), torch.cov(flat.T)


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a covariance."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def _random(seed: int) -> np.random.RandomState:
    """A stream that numpy promises to keep, so that figures of different versions compare."""
    return np.random.RandomState(seed)


def _described(batches: Iterable[Tensor]) -> tuple[dict[int, Tensor], Tensor]:
    """Describe images by patches and as a whole.

    Args:
        batches: uint8 [n, 3, r, r].

    Returns:
        Patches [n · patches, 3, 49] of each level, by its resolution, and the images at 16×16 pixels [n, 768].
    """
    patches: dict[int, list[Tensor]] = {}
    coarse = [torch.empty(0, 3 * COARSEST**2)]
    streams: dict[int, np.random.RandomState] = {}
    for batch in batches:
        images = to_float(batch.cpu())
        coarse.append(F.adaptive_avg_pool2d(images, COARSEST).flatten(1))
        for level in _pyramid(images):
            r = level.shape[2]
            stream = streams.setdefault(r, _random(r))
            patches.setdefault(r, []).append(_patches_of(level, stream))
    return {r: torch.cat(parts) for r, parts in patches.items()}, torch.cat(coarse)


def _pyramid(images: Tensor) -> Iterator[Tensor]:
    """The Laplacian pyramid of [n, 3, r, r]: what each level adds to the next, and the last as it is."""
    f = ops.setup_filter(RESAMPLE_FILTER)
    while images.shape[2] > COARSEST:
        smaller = ops.downsample2d(images, f)
        yield images - ops.upsample2d(smaller, f)
        images = smaller
    yield images


def _patches_of(level: Tensor, stream: np.random.RandomState) -> Tensor:
    """Cut patches [n · patches, 3, 49] out of [n, 3, r, r] at random places."""
    n, _, r, _ = level.shape
    corners = torch.from_numpy(stream.randint(0, r - _PATCH + 1, (n, _PATCHES, 2)))
    windows = level.unfold(2, _PATCH, 1).unfold(3, _PATCH, 1)
    image = torch.arange(n)[:, None]
    return windows[image, :, corners[..., 0], corners[..., 1]].reshape(n * _PATCHES, 3, _PATCH**2)
