"""Losses of both stages."""

import torch
from torch import Tensor
from torch.nn import functional as F

from gpseg import ops


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
