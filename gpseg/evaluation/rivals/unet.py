"""The rival that starts from nothing: a U-Net."""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpseg.data import PairAugment
from gpseg.evaluation.rivals.training import MaskNetwork, fit_masks, seeded
from gpseg.training.batches import TrainingSet
from gpseg.training.device import Precision, choose_device, choose_dtype
from gpseg.training.finetune_config import FinetuneConfig

WIDTHS = (24, 48, 96, 192)
PEAK_LR = 1e-3


class UNet(MaskNetwork):
    """An encoder-decoder with skips (Ronneberger et al., 2015), about a million parameters.

    Args:
        num_classes: K, background included.
        widths: channels at each level, each at half the resolution of the one before.
    """

    def __init__(self, num_classes: int, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.first = conv_block(3, widths[0])
        self.down = nn.ModuleList(conv_block(fine, coarse) for fine, coarse in pairs)
        self.up = nn.ModuleList(conv_block(coarse + fine, fine) for fine, coarse in reversed(pairs))
        self.logits = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K, r, r] of images [N, 3, r, r] in -1..1; r is a multiple of 8."""
        x = self.first(images)
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(F.max_pool2d(x, 2))
        for block in self.up:
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], dim=1))
        logits: Tensor = self.logits(x)
        return logits.float()


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3×3 convolutions with batch normalisation and ReLU, from `inputs` to `outputs` channels."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def train_unet(
    data: TrainingSet,
    *,
    steps: int = 1000,
    batch: int = 16,
    augment: PairAugment | None = None,
    as_ours: FinetuneConfig | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "auto",
) -> UNet:
    """Train a U-Net from random weights.

    Args:
        data: what to learn from; r is a multiple of 8.
        steps: training steps.
        batch: augmented labelled images a step.
        augment: how to augment; None for a strong augmentation that suits most classes of images.
        as_ours: how ours learns from unlabelled images, to do the same: colours, pasted parts and own masks; None to learn from
            the labelled images alone.
        seed: decides weights, batches and augmentation.
        device: where to train, as `gpseg.training.device.choose_device` takes it.
        precision: dtype of the feature maps.

    Returns:
        The running mean of the network's weights over the last steps.

    Raises:
        RunError: the loss isn't finite.
    """
    place = choose_device(device)
    with seeded(seed, place):
        model = UNet(data.classes.num_classes).to(memory_format=torch.channels_last).to(place)
    model.dtype = choose_dtype(precision, place)
    return fit_masks(
        model,
        [(model, PEAK_LR)],
        data,
        steps=steps,
        batch=batch,
        augment=augment,
        as_ours=as_ours,
        seed=seed,
        name="U-Net",
    )
