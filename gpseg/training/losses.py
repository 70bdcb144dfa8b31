"""Losses of both stages."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gpseg import ops
from gpseg.errors import InputError
from gpseg.models.stylegan2 import Discriminator, frozen


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating logistic loss of the generator (Goodfellow et al., 2014).

    Args:
        fake_logits: the discriminator's logits of generated images [N, 1].

    Returns:
        The mean, a scalar.
    """
    return F.softplus(-fake_logits).mean()


def discriminator_loss(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """Logistic loss of the discriminator.

    Args:
        fake_logits: logits of generated images [N, 1].
        real_logits: logits of real images [N, 1].

    Returns:
        The sum of both means, a scalar.
    """
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()


def r1_penalty(real_logits: Tensor, real_images: Tensor) -> Tensor:
    """Squared gradient of the logits by the real images (Mescheder et al., ICML 2018).

    Args:
        real_logits: [N, 1], computed from `real_images`.
        real_images: [N, C, H, W], with `requires_grad`.

    Returns:
        The mean over samples of the squared norm, a scalar with a graph; the loss term is gamma / 2 times this.
    """
    with ops.no_weight_grad():
        (gradient,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def path_lengths(images: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """How far an image moves when its styles do (path length; Karras et al., CVPR 2020).

    Args:
        images: [N, C, H, W], computed from `ws`.
        ws: styles [N, num_ws, w_dim], with a graph.
        noise: a random direction of each image, [N, C, H, W] from N(0, 1).

    Returns:
        |J_wᵀ y| of each image, [N], with a graph: the norm over w, in the root mean square over layers.
    """
    h, w = images.shape[2:]
    with ops.no_weight_grad():
        (gradient,) = torch.autograd.grad(
            (images * noise).sum() / math.sqrt(h * w), ws, create_graph=True
        )
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


class PerceptualLoss(torch.nn.Module):
    """Distance in the features of the pre-trained discriminator, which knows what matters in this class of images.

    Args:
        discriminator: pre-trained; its trunk's weights are shared, and don't learn here.
        finest: resolutions above this one are left out, where the features are little more than colours.
    """

    def __init__(self, discriminator: Discriminator, finest: int | None = None) -> None:
        super().__init__()
        self.discriminator = frozen(discriminator)
        del self.discriminator.b4  # only the trunk's features are read
        self.finest = finest or discriminator.img_resolution // 2

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Mean over resolutions of the squared distance, relative to the targets' own variance; a scalar.

        Args:
            images: [N, 3, r, r], −1 … 1; takes the gradient.
            targets: [N, 3, r, r].
        """
        got = self.discriminator.features(images)
        with torch.no_grad():
            want = self.discriminator.features(targets)
        terms = []
        for r, wanted in want.items():
            if 4 < r <= self.finest:
                distances, scales = (
                    # a sum's gradient has the layout of what is summed, a mean's is NCHW
                    x.square().sum([1, 2, 3]) / x[0].numel()
                    for x in (got[r].float() - wanted.float(), wanted.float())
                )
                terms.append((distances / (scales + 1e-6)).mean())
        return torch.stack(terms).mean()


class LpipsLoss(torch.nn.Module):
    """LPIPS (Zhang et al., CVPR 2018) by the package of that name, whose weights the user has to have.

    Raises:
        InputError: the package or its weights are missing.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from lpips import LPIPS

            self.distance = LPIPS(net="alex", verbose=False).eval().requires_grad_(False)
        except (ImportError, OSError) as error:
            raise InputError(
                f"--perceptual lpips: not usable here ({error}); install gpseg[lpips] with a torchvision for"
                " your torch, and AlexNet's weights in torch's hub cache, or leave the option out"
            ) from error

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Mean distance of images and targets [N, 3, r, r], −1 … 1; a scalar."""
        distance: Tensor = self.distance(images, targets)
        return distance.mean()


def class_weights(
    masks: Tensor, num_classes: int, strength: float = 0.5, limit: float = 8.0
) -> Tensor:
    """Weights [K] that keep small parts from vanishing: inverse frequency to the power `strength`, mean 1 a pixel.

    Args:
        masks: training masks [k, r, r]; ids of K and above are left out.
        num_classes: K.
        strength: 0 weighs all pixels alike, 1 all classes alike.
        limit: bound on the ratio to the most frequent class.
    """
    count = torch.bincount(masks[masks < num_classes].long(), minlength=num_classes).double()
    share = count / count.sum().clamp(min=1)
    weights = (share.amax() / share.clamp(min=1e-12)).pow(strength).clamp(max=limit)
    weights[count == 0] = 0
    return (weights / (weights * share).sum()).float()


def rarity(weights: Tensor) -> Tensor:
    """Half of the logarithm [K] of how much more than the background each class weighs in the loss, 0 where it doesn't.

    All of it taken off its logits, a network finds rare parts as often as they are and no more (Menon et al., ICLR 2021). That is
    too seldom for the IoU of parts that are hard to find (docs/results.md). Classes that weigh less are left: from one collection
    to another large parts differ.

    Args:
        weights: of the classes [K], as `class_weights` gives them; background first.
    """
    reference = torch.where(weights[0] > 0, weights[0], 1)
    return (weights / reference).clamp(min=1).log() / 2


def masked_mean(values: Tensor, valid: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean of `values` [N, …, r, r] over the pixels where `valid` [N, r, r]; 0 if there are none.

    Args:
        values: what to average, over its channels too.
        valid: weights of the pixels, 0 for those that don't count.
        count: what they sum up to, where that isn't `valid`'s sum: of a share of a batch, the mean of all shares' sums, so
            that the mean of their results is that of the batch.

    Returns:
        A scalar.
    """
    per_pixel = values.mean(1) if values.ndim == 4 else values
    return (per_pixel * valid).sum() / (valid.sum() if count is None else count).clamp(min=1)


def part_cross_entropy(logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy [N, r, r] of logits [N, K, r, r], weighted by class, 0 where the mask has no class.

    Args:
        logits: [N, K, r, r].
        masks: [N, r, r] of ids; K and above is ignored.
        weights: [K].
    """
    targets = masks.long().masked_fill(masks >= len(weights), -100)
    return F.cross_entropy(logits, targets, weight=weights, reduction="none", ignore_index=-100)


def parts_loss(
    logits: Tensor,
    masks: Tensor,
    weights: Tensor,
    class_weights: Tensor,
    given: int,
    count: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of masks, those of unlabelled images among them; a scalar.

    Args:
        logits: [N, K, r, r].
        masks: [N, r, r] of ids.
        weights: of their pixels [N, r, r], 0 where there is no class.
        class_weights: [K], for the first `given` masks alone: weighted once more, what is rare would grow from one prediction
            to the next.
        given: how many masks are the user's.
        count: as for `masked_mean`.
    """
    by_class = class_weights, torch.ones_like(class_weights)
    parts = zip(logits.tensor_split([given]), masks.tensor_split([given]), by_class, strict=True)
    return masked_mean(torch.cat([part_cross_entropy(*part) for part in parts]), weights, count)
