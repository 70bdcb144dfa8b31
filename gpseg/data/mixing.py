"""What images take from others: colours, of the whole or of parts, and parts together with their masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def take_colors(images: Tensor, sources: Tensor, shares: Tensor) -> Tensor:
    """Give images the colours of others: their mean and covariance over the pixels, not where they are.

    Of all linear maps that do so it is the one that changes the colours least (Monge-Kantorovich: Pitié and Kokaram, *The
    linear Monge-Kantorovitch linear colour mapping for example-based colour transfer*, CVMP 2007).

    Args:
        images: floating, [N, 3, H, W] in -1..1.
        sources: whose colours to take, [N, 3, H', W'].
        shares: how far to go, 0..1, [N].

    Returns:
        [N, 3, H, W] in -1..1.
    """
    mean, covariance = _color_moments(images)
    wanted_mean, wanted = _color_moments(sources)
    root, inverse = _roots(covariance)
    matrix = inverse @ _roots(root @ wanted @ root)[0] @ inverse
    matrix = torch.lerp(torch.eye(3).to(matrix), matrix, shares[:, None, None])
    mean_to = torch.lerp(mean, wanted_mean, shares[:, None, None])
    pixels = torch.baddbmm(mean_to - matrix @ mean, matrix, images.flatten(2))
    return pixels.clamp(-1, 1).reshape(images.shape)


def color_parts(images: Tensor, masks: Tensor, colors: Tensor, shares: Tensor) -> Tensor:
    """Shift the colours of parts so that their means come nearer to given colours, each part for itself.

    Args:
        images: floating, [N, 3, H, W] in -1..1.
        masks: ids, [N, H, W]; pixels of K and above stay as they are.
        colors: of each image's K classes, [N, K, 3] in -1..1.
        shares: how far to go, 0..1, [N, K].

    Returns:
        [N, 3, H, W] in -1..1.
    """
    count = colors.shape[1]
    members = nn.functional.one_hot(masks.long().clamp(max=count), count + 1)[..., :count]
    members = members.to(images).flatten(1, 2)  # [N, H W, K]
    sizes = members.sum(1).clamp(min=1)
    pixels = images.flatten(2)
    means = (pixels @ members).transpose(1, 2) / sizes.unsqueeze(2)
    shifts = shares.unsqueeze(2) * (colors - means)
    moved = pixels + (members @ shifts).transpose(1, 2)
    return moved.clamp(-1, 1).reshape(images.shape)


def half_the_parts(masks: Tensor, order: Tensor) -> Tensor:
    """Tell the pixels of half of the classes that occur in each mask, rounded up.

    Args:
        masks: ids, uint8 [N, H, W].
        order: which classes come first, by a number of each in each mask, [N, K]; ids of K and above never do.

    Returns:
        bool [N, H, W].

    Source:
        ClassMix (Olsson et al., WACV 2021), which pastes them onto another image.
    """
    ids = masks.flatten(1).long()
    occurs = torch.zeros(len(masks), 256, dtype=torch.bool, device=masks.device)
    occurs = occurs.scatter_(1, ids, True)[:, : order.shape[1]]
    place = order.masked_fill(~occurs, torch.inf).argsort(1).argsort(1)
    first = occurs & (place < (occurs.sum(1, keepdim=True) + 1) // 2)
    return nn.functional.pad(first, (0, 256 - first.shape[1])).gather(1, ids).reshape(masks.shape)


def _color_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [N, 3, 1] and covariance [N, 3, 3] of the colours; a little more than measured, so that it has an inverse."""
    pixels = images.flatten(2)
    mean = pixels.mean(dim=2, keepdim=True)
    centred = pixels - mean
    covariance = centred @ centred.transpose(1, 2) / pixels.shape[2]
    return mean, covariance + 1e-4 * torch.eye(3).to(covariance)


def _roots(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Square roots of symmetric positive matrices [N, 3, 3], and their inverses."""
    values, vectors = torch.linalg.eigh(matrices)
    root = values.clamp(min=1e-6).sqrt().unsqueeze(1)
    return (vectors * root) @ vectors.transpose(1, 2), (vectors / root) @ vectors.transpose(1, 2)
