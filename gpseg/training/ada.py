"""Adaptive discriminator augmentation: the transforms, and what controls their probability.

Source: Karras et al., Training Generative Adversarial Networks with Limited Data, NeurIPS 2020 (arXiv 2006.06676),
section 3 and appendix B.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gpseg import ops

SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""The orthogonal 12-tap low-pass filter that the geometric transforms resample with."""

# Pixel k lies on the upsampled grid at 2k + _DELAY, and not half-way between two samples as a symmetric filter of even
# length would have it: that is where the filter's centre of mass is.
_DELAY = sum(i * tap for i, tap in enumerate(SYM6)) / sum(SYM6) - 5

Group = Literal["blit", "geometry", "colour"]
GROUPS: tuple[Group, ...] = ("blit", "geometry", "colour")
"""Flips, quarter turns and whole-pixel shifts; scale, rotation, stretch and shift; colours."""

LIMIT = 0.8
"""Largest probability the controller goes to: above it, augmentations begin to show in what is generated (section 2.2)."""


def augment(
    images: Tensor,
    p: float,
    generator: torch.Generator,
    groups: Collection[Group] = GROUPS,
) -> Tensor:
    """Augment what a discriminator sees, real or generated, differentiably to any order.

    Args:
        images: floating, [N, 3, r, r], about −1 … 1, r at least 16.
        p: probability of each transform, 0 … 1.
        generator: source of randomness; its state alone decides the outcome. Its draws are read on the host: one
            wait for the device it is on.
        groups: those of the transforms to use.

    Returns:
        [N, 3, r, r], which may go beyond −1 … 1; at p = 0 the images themselves.
    """
    return Transforms.draw(len(images), p, generator, groups)(images) if p > 0 else images


@dataclass(frozen=True)
class Transforms:
    """How each image of a batch is changed, in this order; a neutral value where a transform isn't applied.

    Args:
        flip: mirror it, bool [N].
        turns: quarter turns, counterclockwise, int64 [N].
        shift: to the right and down, as shares of the side, rounded to whole pixels, [N, 2].
        scale: zoom factor [N].
        turn_before: rotation before the stretch, counterclockwise, in radians [N].
        stretch: factor by which it gets wider, and less high [N].
        turn_after: rotation after the stretch [N].
        move: to the right and down, as shares of the side, [N, 2].
        brightness: added to all channels [N].
        contrast: factor of all channels [N].
        invert: mirror the luma, keeping hue and saturation as they are, bool [N].
        hue: rotation about the grey axis in radians [N].
        saturation: factor of the distance from grey [N].
    """

    flip: Tensor
    turns: Tensor
    shift: Tensor
    scale: Tensor
    turn_before: Tensor
    stretch: Tensor
    turn_after: Tensor
    move: Tensor
    brightness: Tensor
    contrast: Tensor
    invert: Tensor
    hue: Tensor
    saturation: Tensor

    @classmethod
    def draw(
        cls, count: int, p: float, generator: torch.Generator, groups: Collection[Group] = GROUPS
    ) -> Transforms:
        """Draw transforms for `count` images; arguments as in `augment`."""
        uniform = torch.rand(count, 21, generator=generator, device=generator.device)
        gaussian = torch.randn(count, 7, generator=generator, device=generator.device)
        columns = torch.cat([uniform, gaussian], dim=1).cpu().double().unbind(1)
        uniforms, gaussians = iter(columns[:21]), iter(columns[21:])

        def on(group: Group, probability: float = p) -> Tensor:
            return next(uniforms) < (probability if group in groups else 0.0)

        def even(low: float, high: float) -> Tensor:
            return low + (high - low) * next(uniforms)

        def normal(deviation: float) -> Tensor:
            return deviation * next(gaussians)

        p_turn = 1 - math.sqrt(1 - p)  # of each rotation, so that one of the two has probability p
        return cls(
            flip=on("blit") & (even(0, 1) < 0.5),
            turns=on("blit") * even(0, 4).long(),
            shift=on("blit")[:, None] * torch.stack([even(-0.125, 0.125) for _ in "xy"], 1),
            scale=torch.exp2(on("geometry") * normal(0.2)),
            turn_before=on("geometry", p_turn) * even(-math.pi, math.pi),
            stretch=torch.exp2(on("geometry") * normal(0.2)),
            turn_after=on("geometry", p_turn) * even(-math.pi, math.pi),
            move=on("geometry")[:, None] * torch.stack([normal(0.125) for _ in "xy"], 1),
            brightness=on("colour") * normal(0.2),
            contrast=torch.exp2(on("colour") * normal(0.5)),
            invert=on("colour") & (even(0, 1) < 0.5),
            hue=on("colour") * even(-math.pi, math.pi),
            saturation=torch.exp2(on("colour") * normal(1.0)),
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Apply them to images [N, 3, r, r], which come back in their type; one that nothing changes stays as it is."""
        side = images.shape[-1]
        # Coordinates in a half-precision type would be off by whole pixels.
        x = images.to(torch.promote_types(images.dtype, torch.float32))
        warp = self._warp(side)
        warped = _changed(warp)
        shift = (self.shift * side).round()
        # What is warped is shifted on the way, so that what comes back into the picture was not lost.
        warp = warp @ _translation(shift)
        shift = torch.where(warped[:, None], 0, shift).long()
        moves = torch.cat([self.flip[:, None], self.turns[:, None], shift], dim=1)
        x = _where(moves.any(1), x, moves, _copied)
        x = _where(warped, x, warp, _resampled)
        color = self._color()
        x = _where(_changed(color), x, color, _recolored)
        return x.to(images.dtype)

    def _warp(self, side: int) -> Tensor:
        """Scale to move: from places in the old picture to those in the new, in pixels about the centre, [N, 3, 3]."""
        scale, stretch, narrow = self.scale, self.stretch, 1 / self.stretch
        before, after = (
            _matrix([[a.cos(), a.sin(), 0], [-a.sin(), a.cos(), 0], [0, 0, 1]])
            for a in (self.turn_before, self.turn_after)
        )
        scaled = _matrix([[scale, 0, 0], [0, scale, 0], [0, 0, 1]])
        stretched = _matrix([[stretch, 0, 0], [0, narrow, 0], [0, 0, 1]])
        return _translation(self.move * side) @ after @ stretched @ before @ scaled

    def _color(self) -> Tensor:
        """Brightness to saturation, on homogeneous colours: [N, 4, 4]."""
        one = torch.eye(4, dtype=torch.float64)
        grey = torch.zeros(4, 4, dtype=torch.float64)
        grey[:3, :3] = 1 / 3  # v·vᵀ for v = (1, 1, 1, 0) / √3
        across = torch.zeros(4, 4, dtype=torch.float64)  # v × …
        across[:3, :3] = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
        b, c = self.brightness, self.contrast
        brightness = _matrix([[1, 0, 0, b], [0, 1, 0, b], [0, 0, 1, b], [0, 0, 0, 1]])
        contrast = _matrix([[c, 0, 0, 0], [0, c, 0, 0], [0, 0, c, 0], [0, 0, 0, 1]])
        invert = one - 2 * self.invert[:, None, None] * grey
        hue, saturation = self.hue[:, None, None], self.saturation[:, None, None]
        chroma = torch.diag(torch.tensor([1.0, 1, 1, 0], dtype=torch.float64)) - grey
        turned = one + (hue.cos() - 1) * chroma + hue.sin() * across
        return (one + (saturation - 1) * chroma) @ turned @ invert @ contrast @ brightness


def _matrix(rows: Sequence[Sequence[Tensor | float]]) -> Tensor:
    """Matrices float64 [N, k, k] out of their elements, [N] each or the same for all."""
    elements = [torch.as_tensor(e, dtype=torch.float64) for row in rows for e in row]
    flat = torch.stack(torch.broadcast_tensors(*elements), dim=-1)
    return flat.unflatten(-1, (len(rows), len(rows)))


def _translation(pixels: Tensor) -> Tensor:
    x, y = pixels.unbind(-1)
    return _matrix([[1, 0, x], [0, 1, y], [0, 0, 1]])


def _changed(matrices: Tensor) -> Tensor:
    """Which of [N, k, k] are not the identity: bool [N]."""
    one = torch.eye(matrices.shape[-1], dtype=matrices.dtype)
    return (matrices != one).flatten(1).any(1)


def _where(
    chosen: Tensor, images: Tensor, how: Tensor, change: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Change the chosen images, each by its row of `how`; both are on the host."""
    if not chosen.any():
        return images
    if chosen.all():
        return change(images, how)
    at = chosen.nonzero()[:, 0].to(images.device)
    return images.index_copy(0, at, change(images.index_select(0, at), how[chosen]))


def _copied(images: Tensor, moves: Tensor) -> Tensor:
    """Mirror, turn and shift by (flip, turns, right, down), int64 [N, 4]; what comes in is mirrored at the edge."""
    last = images.shape[-1] - 1
    flip, turns, right, down = moves.to(images.device)[:, :, None, None].unbind(1)
    line = torch.arange(last + 1, device=images.device)
    # Backwards, from where a pixel goes to where it comes from.
    columns = last - (last - (line[None, None, :] - right).abs()).abs()
    rows = last - (last - (line[None, :, None] - down).abs()).abs()
    odd = turns % 2 == 1
    rows, columns = torch.where(odd, columns, rows), torch.where(odd, rows, columns)
    rows = torch.where(turns >= 2, last - rows, rows)
    columns = torch.where((turns == 1) | (turns == 2), last - columns, columns)
    columns = torch.where(flip == 1, last - columns, columns)
    source = (rows * (last + 1) + columns).flatten(1)[:, None, :]
    pixels = images.flatten(2)
    return pixels.gather(2, source.expand_as(pixels)).view_as(images)


def _resampled(images: Tensor, warp: Tensor) -> Tensor:
    """Warp at twice the resolution, between the wavelet's two directions; beyond its edges a picture is mirrored.

    Args:
        images: [N, 3, r, r].
        warp: from places in the old picture to those in the new, in pixels about the centre, float64 [N, 3, 3].
    """
    side = images.shape[-1]
    # Sample o of the new, upsampled picture, which is larger by what the filter takes, lies at (o − 5 − _DELAY) / 2 in
    # pixels of the picture; the lookup counts from −1 to 1.
    half, middle = (2 * side + 9) / 4, (0.5 - _DELAY) / 2
    to_pixels = _matrix([[half, 0, middle], [0, half, middle], [0, 0, 1]])
    back = torch.linalg.inv(warp) @ to_pixels
    corners = torch.tensor([[-1.0, 1, -1, 1], [-1, -1, 1, 1], [1, 1, 1, 1]], dtype=torch.float64)
    reach = float((back @ corners)[:, :2].abs().max())
    # What lies further out than half a side, which is rare, the lookup mirrors once more: a larger canvas costs more.
    margin = min(max(math.ceil(reach - (side - 1) / 2) + 1, 0), side // 2)
    scale, offset = 2 / (side - 1 + 2 * margin), _DELAY / (side - 1 + 2 * margin)
    to_lookup = _matrix([[scale, 0, offset], [0, scale, offset], [0, 0, 1]])
    right, down, origin = (to_lookup @ back)[:, None, :2].to(images).unbind(3)
    line = torch.linspace(-1, 1, 2 * side + 10, dtype=images.dtype, device=images.device)[:, None]
    grid = (line * right + origin)[:, None] + (line * down)[:, :, None]
    wavelet = ops.setup_filter(SYM6, images.device)
    padded = F.pad(images, [margin + 3] * 4, mode="reflect")
    fine = ops.upsample2d(padded, wavelet, padding=(-6, -7, -6, -7))
    return ops.downsample2d(_Lookup.apply(fine, grid), wavelet, padding=-5, flip_filter=True)


def _recolored(images: Tensor, color: Tensor) -> Tensor:
    color = color.to(images)
    return torch.baddbmm(color[:, :3, 3:], color[:, :3, :3], images.flatten(2)).view_as(images)


_BILINEAR, _REFLECTION = 0, 2


class _Lookup(torch.autograd.Function):
    """Bilinear lookup, linear in the images, the grid constant; torch's has no second derivative."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.size = images.shape
        return torch.grid_sampler_2d(images, grid, _BILINEAR, _REFLECTION, align_corners=True)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _LookupAdjoint.apply(dy, grid, ctx.size), None


class _LookupAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dy: Tensor, grid: Tensor, size: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        # The images' values would only matter to the grid's gradient.
        images = dy.new_zeros(()).expand(size)
        dx, _ = torch.ops.aten.grid_sampler_2d_backward(
            dy, images, grid, _BILINEAR, _REFLECTION, True, [True, False]
        )
        return dx

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Lookup.apply(dx, grid), None, None


class SignController:
    """Moves the probability of augmentation so that the discriminator stays sure of a given share of real images.

    Overfitting shows in r = E[sign(D(real))]: 0 where it can't tell, 1 where it knows every image.

    Args:
        target: r to hold.
        kimg: thousands of real images in which p would go from 0 to 1 at full tilt.
        p: where it starts.
        device: where the logits are.
        total: the sum over all processes of a tensor, where several share the batch.
    """

    def __init__(
        self,
        target: float = 0.6,
        kimg: float = 500.0,
        p: float = 0.0,
        device: torch.device | str = "cpu",
        total: Callable[[Tensor], Tensor] = Tensor.detach,
    ) -> None:
        self.total = total
        self.target = target
        self.kimg = kimg
        self.p = p
        self.signs = torch.zeros(2, device=device)
        """Sum and number of the signs since the last adjustment."""

    def add(self, real_logits: Tensor) -> None:
        """Count in the logits of real images, [N, 1]; with several processes, in each of them."""
        signs = torch.full_like(self.signs, real_logits.numel())
        signs[0] = real_logits.detach().sign().sum(dtype=torch.float32)
        self.signs += self.total(signs)

    def adjust(self) -> None:
        """Move p by what the images counted since the last time are worth; 0 ≤ p ≤ `LIMIT`."""
        total, count = self.signs.tolist()
        direction = (total > self.target * count) - (total < self.target * count)
        self.p = min(max(self.p + direction * count / (self.kimg * 1000), 0.0), LIMIT)
        self.signs.zero_()

    def state_dict(self) -> dict[str, Any]:
        """What the next adjustments depend on."""
        return {"p": self.p, "signs": self.signs.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.p = state["p"]
        self.signs.copy_(state["signs"])
