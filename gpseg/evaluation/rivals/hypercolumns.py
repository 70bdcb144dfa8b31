"""Hypercolumns that are never laid out: all resolutions' features of a pixel, for few pixels at a time.

The hypercolumn of a pixel is what the feature maps of all resolutions hold there, each brought to the image's resolution R
by bilinear interpolation, one after the other from the coarsest on (Hariharan et al., CVPR 2015). Of all pixels of N
images that is a matrix [N·R·R, ΣC], 23 GB of float32 for 30 images of 256 px and the published StyleGAN2.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Maps = Mapping[int, Tensor]
"""Feature maps [N, C_r, r, r] by resolution r, in any order."""


def columns_at(maps: Maps, places: Tensor, resolution: int) -> Tensor:
    """The hypercolumns of some pixels.

    Args:
        maps: feature maps.
        places: pixels of each image, int64 [N, P], counted row by row.
        resolution: R.

    Returns:
        [N, ΣC, P], float32.
    """
    xy = torch.stack([places % resolution, places // resolution], dim=-1)
    grid = ((xy + 0.5) * (2 / resolution) - 1).unsqueeze(2)  # [N, P, 1, 2], -1..1 edge to edge
    return torch.cat(
        [
            F.grid_sample(maps[r].float(), grid, padding_mode="border", align_corners=False)
            for r in sorted(maps)
        ],
        dim=1,
    ).squeeze(3)


class Moments:
    """Mean and variance of each hypercolumn channel over all pixels of images that pass by once.

    With U the interpolation along an axis, Σ (Uᵀ x U)² over the image's pixels is Σ x ∘ (UUᵀ x UUᵀ) over the map's: nothing is
    brought to the image's resolution. What passes by is merged as in Chan et al., *Algorithms for computing the sample
    variance*, 1983.

    Args:
        resolution: R.
    """

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution
        self._images = 0
        self._mean = torch.zeros(())
        self._variance = torch.zeros(())

    def add(self, maps: Maps) -> None:
        """Count in the images that `maps` belong to."""
        each = [self._of(maps[r].float(), r) for r in sorted(maps)]
        mean, variance = (torch.cat(values).double().cpu() for values in zip(*each, strict=True))
        new = len(next(iter(maps.values())))
        share = new / (self._images + new)
        between = (mean - self._mean).square() * (share * (1 - share))
        self._variance = torch.lerp(self._variance.to(variance), variance, share) + between
        self._mean = torch.lerp(self._mean.to(mean), mean, share)
        self._images += new

    def _of(self, x: Tensor, r: int) -> tuple[Tensor, Tensor]:
        mean = x.mean((0, 2, 3))  # also at the image's resolution: every value has the same weight
        x = x - mean[:, None, None]
        smoothed = x
        if r < self.resolution:
            axis = _interpolation(r, self.resolution, x.device)
            gram = axis @ axis.T * (r / self.resolution)
            smoothed = gram @ x @ gram
        return mean, (x * smoothed).mean((0, 2, 3))

    @property
    def mean(self) -> Tensor:
        """[ΣC], float32."""
        return self._mean.float()

    @property
    def deviation(self) -> Tensor:
        """Standard deviation [ΣC], float32; 1 where a channel doesn't vary."""
        deviation = self._variance.clamp(min=0).sqrt().float()
        return torch.where(deviation > 1e-6, deviation, 1.0)


def _interpolation(r: int, resolution: int, device: torch.device) -> Tensor:
    """The matrix [r, resolution] that a line of r values is multiplied with to be brought to `resolution`."""
    unit = torch.eye(r, device=device).unsqueeze(0)
    return F.interpolate(unit, size=resolution, mode="linear", align_corners=False)[0]
