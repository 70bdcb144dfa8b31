"""What a segmenter must beat on the same labels: here, a U-Net that starts from nothing."""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from gpseg.data import Classes, PairAugment
from gpseg.errors import RunError
from gpseg.models.segmenter import to_float
from gpseg.models.stylegan2 import ema_copy, ema_update
from gpseg.training.device import Precision, choose_device, choose_dtype
from gpseg.training.losses import class_weights, masked_mean, part_cross_entropy

WIDTHS = (24, 48, 96, 192)
PEAK_LR = 1e-3
WEIGHT_DECAY = 0.01
EMA_HALF_LIFE = 20  # steps


class UNet(nn.Module):
    """An encoder-decoder with skips (Ronneberger et al., 2015), about a million parameters.

    Args:
        num_classes: K, background included.
        widths: channels at each level, each at half the resolution of the one before.
    """

    def __init__(self, num_classes: int, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.first = _block(3, widths[0])
        self.down = nn.ModuleList(_block(fine, coarse) for fine, coarse in pairs)
        self.up = nn.ModuleList(_block(coarse + fine, fine) for fine, coarse in reversed(pairs))
        self.logits = nn.Conv2d(widths[0], num_classes, 1)
        self.dtype = torch.float32

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

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities [N, K, r, r] of uint8 images [N, 3, r, r], in evaluation mode."""
        device = self.logits.weight.device
        x = to_float(images.to(device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits: Tensor = self.eval()(x)
        return logits.softmax(1)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def train_unet(
    images: Tensor,
    masks: Tensor,
    classes: Classes,
    *,
    steps: int = 500,
    batch: int = 16,
    augment: PairAugment | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "auto",
) -> UNet:
    """Train a U-Net from random weights on labelled images alone.

    Args:
        images: uint8 [k, 3, r, r], r a multiple of 8.
        masks: class ids and `classes.ignore_index` [k, r, r].
        classes: the classes.
        steps: training steps.
        batch: augmented images a step.
        augment: how to augment; None for a strong augmentation that suits most classes of images.
        seed: decides weights, batches and augmentation.
        device: where to train, as `gpseg.training.device.choose_device` takes it.
        precision: dtype of the feature maps.

    Returns:
        The running mean of the network's weights over the last steps.

    Raises:
        RunError: the loss isn't finite.
    """
    place = choose_device(device)
    dtype = choose_dtype(precision, place)
    if augment is None:
        augment = PairAugment(swap_table=classes.swap_table(), ignore_index=classes.ignore_index)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        torch.manual_seed(seed)
        model = UNet(classes.num_classes).to(memory_format=torch.channels_last).to(place)
    ema = ema_copy(model)
    ema.dtype = model.dtype = dtype
    weights = class_weights(masks, classes.num_classes).to(place)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LR, weight_decay=WEIGHT_DECAY, fused=True
    )
    random = torch.Generator().manual_seed(seed)
    with tqdm(range(steps), desc="U-Net", unit="step", mininterval=1.0) as bar:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = PEAK_LR * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            chosen = torch.randint(len(images), (batch,), generator=random)
            x, y = augment(to_float(images[chosen]), masks[chosen], random)
            assert y is not None
            x = x.to(place, memory_format=torch.channels_last)
            y = y.to(place)
            with torch.autocast(place.type, dtype, enabled=dtype != torch.float32):
                logits = model(x)
            loss = masked_mean(
                part_cross_entropy(logits, y, weights), (y < classes.num_classes).float()
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            ema_update(ema, model, 0.5 ** (1 / min(EMA_HALF_LIFE, 0.1 * (step + 1))))
            if step % 20 == 0 or step == steps - 1:
                value = loss.item()
                bar.set_postfix_str(f"loss {value:.3f}")
                if not math.isfinite(value):
                    raise RunError(f"the U-Net's loss is {value} at step {step}; use fp32")
    return ema
