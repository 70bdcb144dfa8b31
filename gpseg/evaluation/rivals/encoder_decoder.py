"""The rival without a generator: a plain encoder-decoder whose encoder is the pre-trained discriminator's trunk."""

import copy
import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpseg.data import PairAugment
from gpseg.evaluation.rivals.training import (
    TRUNK_LR,
    MaskNetwork,
    fit_masks,
    require_resolution,
    seeded,
)
from gpseg.evaluation.rivals.unet import PEAK_LR, conv_block
from gpseg.models.stylegan2 import Discriminator, NetworkConfig
from gpseg.training.batches import TrainingSet
from gpseg.training.device import Precision, choose_device, choose_dtype
from gpseg.training.finetune_config import FinetuneConfig

WIDTH = 64


class EncoderDecoder(MaskNetwork):
    """A discriminator's trunk and a light decoder that starts from random weights, with skips at every resolution.

    Args:
        trunk: a discriminator; its residual blocks are copied, its epilogue is left out.
        num_classes: K, background included.
        width: the decoder's channels at each resolution, or fewer where the trunk has fewer.
    """

    def __init__(self, trunk: Discriminator, num_classes: int, width: int = WIDTH) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(trunk).requires_grad_(True)
        del self.trunk.b4
        channels = dict(sorted(self.trunk.channels.items()))
        widths = [channels[4], *(min(width, c) for r, c in channels.items() if r > 4)]
        self.up = nn.ModuleDict(
            {
                str(r): conv_block(below + channels[r], own)
                for (below, own), r in zip(
                    itertools.pairwise(widths), list(channels)[1:], strict=True
                )
            }
        )
        self.logits = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K, r, r] of images [N, 3, r, r] in -1..1."""
        require_resolution(images, self.trunk.img_resolution)
        features = self.trunk.features(images, convolved=True, dtype=self.dtype)
        x = features[4]
        for r, block in self.up.items():
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = block(torch.cat([x, features[int(r)]], dim=1))
        logits: Tensor = self.logits(x)
        return logits.float()


def train_encoder_decoder(
    data: TrainingSet,
    discriminator: Discriminator,
    network: NetworkConfig,
    *,
    pretrained: bool = True,
    steps: int = 1000,
    batch: int = 16,
    augment: PairAugment | None = None,
    as_ours: FinetuneConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "auto",
) -> EncoderDecoder:
    """Train as `train_unet` does, so that only the network and where it starts differ.

    Args:
        data: what to learn from.
        discriminator: pre-trained; it is left as it is.
        network: what it is built from.
        pretrained: whether the trunk starts from the discriminator; without is a control that starts from random
            weights.
        steps: training steps.
        batch: augmented labelled images a step.
        augment: how to augment; None for a strong augmentation that suits most classes of images.
        as_ours: as for `train_unet`.
        seed: decides weights, batches and augmentation.
        device: where to train, as `gpseg.training.device.choose_device` takes it.
        precision: dtype of the feature maps.

    Returns:
        The running mean of the network's weights over the last steps.

    Raises:
        InputError: the images have another resolution than the discriminator.
        RunError: the loss isn't finite.
    """
    require_resolution(data.images, network.img_resolution)
    place = choose_device(device)
    if not pretrained:
        with seeded(seed, place):
            discriminator = network.discriminator()
    with seeded(seed, place):  # again, so that both start from the same decoder
        model = EncoderDecoder(discriminator, data.classes.num_classes).to(place)
    model.dtype = choose_dtype(precision, place)
    decoder = nn.ModuleList([model.up, model.logits])
    return fit_masks(
        model,
        [(model.trunk, TRUNK_LR), (decoder, PEAK_LR)],
        data,
        steps=steps,
        batch=batch,
        augment=augment,
        as_ours=as_ours,
        seed=seed,
        name="encoder-decoder",
    )
