"""Codes of photographs for a frozen generator: an encoder that learns to have it give the photograph back."""

import torch
from torch import Tensor, nn

from gpseg.data import PairAugment
from gpseg.evaluation.rivals.training import TRUNK_LR, fit, seeded
from gpseg.models.encoder import Encoder
from gpseg.models.segmenter import to_float
from gpseg.models.stylegan2 import Discriminator, Generator, NetworkConfig, frozen
from gpseg.nn import ZeroProjection
from gpseg.training.batches import TrainingSet
from gpseg.training.finetune_config import FinetuneConfig
from gpseg.training.losses import PerceptualLoss

PIXELS_AT_ONCE = 2**16
"""Pixels of images that pass through the networks together: 16 images of 64 px, one of 256. It bounds the memory."""


def images_at_once(resolution: int) -> int:
    """How many images of a resolution pass through the networks together."""
    return max(1, PIXELS_AT_ONCE // resolution**2)


class Inverter(nn.Module):
    """From images to what a generator makes them of.

    Args:
        generator: what the codes are for.
        discriminator: pre-trained with it; starts the encoder's trunk.
        network: what both are built from.
        skips: whether the encoder's features are added to the generator's, through projections that start at zero.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        network: NetworkConfig,
        *,
        skips: bool,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(discriminator, network, generator.num_ws).requires_grad_(True)
        self.encoder.w_mean.copy_(generator.mapping.w_avg)
        channels = generator.synthesis.channels if skips else {}
        self.skips = nn.ModuleDict({str(r): ZeroProjection(c, c) for r, c in channels.items()})
        if not skips:
            self.encoder.laterals.requires_grad_(False)  # nothing reads them

    def forward(
        self, images: Tensor, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Styles and what to inject, as `SynthesisNetwork.features_and_image` takes them, of images of -1..1."""
        ws, features = self.encoder(images, dtype=dtype)
        return ws, {int(r): project(features[int(r)]) for r, project in self.skips.items()}


class InvertedGenerator:
    """A frozen generator's features of photographs.

    Args:
        generator: its synthesis network's weights are shared.
        inverter: finds the codes.
        dtype: dtype of the features.
    """

    def __init__(self, generator: Generator, inverter: Inverter, dtype: torch.dtype) -> None:
        device = inverter.encoder.w_mean.device
        self.synthesis = frozen(generator.synthesis).to(device)
        # Where even one image is large, memory is what there is least of.
        self.synthesis.checkpointing = images_at_once(self.synthesis.img_resolution) == 1
        self.inverter = inverter
        self.dtype = dtype

    def __call__(self, images: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """The generator's features by resolution, and its images [N, 3, r, r], of images [N, 3, r, r] of -1..1."""
        ws, inject = self.inverter(images, self.dtype)
        return self.synthesis.features_and_image(
            ws, inject=inject, noise_mode="none", dtype=self.dtype
        )


def invert(
    data: TrainingSet,
    generator: Generator,
    discriminator: Discriminator,
    network: NetworkConfig,
    *,
    skips: bool,
    steps: int,
    batch: int,
    augment: PairAugment,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
) -> InvertedGenerator:
    """Train an encoder by the image stream's loss on all images, labelled or not.

    Half of a batch is labelled, however many unlabelled images there are: the pixel classifier learns from what becomes
    of those.

    Args:
        data: the images; masks are not used.
        generator: pre-trained; it is left as it is.
        discriminator: pre-trained with it; it is left as it is.
        network: what both are built from.
        skips: see `Inverter`.
        steps: training steps.
        batch: augmented images a step.
        augment: how to augment them.
        seed: decides weights, batches and augmentation.
        device: where to train.
        dtype: dtype of the feature maps.

    Returns:
        The generator with the running mean of the encoder over the last steps.

    Raises:
        RunError: the loss isn't finite.
    """
    loss = FinetuneConfig()
    with seeded(seed, device):
        inverter = Inverter(generator, discriminator, network, skips=skips).to(device)
    inverted = InvertedGenerator(generator, inverter, dtype)
    inverter.encoder.trunk.checkpointing = inverted.synthesis.checkpointing
    perceptual = PerceptualLoss(discriminator).to(device)
    random = torch.Generator().manual_seed(seed)

    def backward(*_unused: object) -> Tensor:
        images, _ = augment(_drawn(data, batch, random), None, random)
        total = torch.zeros((), device=device)
        for x in images.split(images_at_once(network.img_resolution)):
            x = x.to(device, memory_format=torch.channels_last)
            _, rebuilt = inverted(x)
            error = (rebuilt - x).square().mean() + loss.perceptual_weight * perceptual(rebuilt, x)
            error = error * (len(x) / batch)
            error.backward()
            total += error.detach()
        return total

    encoder = inverter.encoder
    new = nn.ModuleList([encoder.hidden, encoder.to_ws, encoder.laterals, inverter.skips])
    rates: list[tuple[nn.Module, float]] = [(encoder.trunk, TRUNK_LR), (new, loss.lr)]
    ema = fit(inverter, rates, backward, steps=steps, name="inversion")
    return InvertedGenerator(generator, ema, dtype)


def _drawn(data: TrainingSet, count: int, random: torch.Generator) -> Tensor:
    """`count` images of -1..1, the labelled ones first."""
    unlabelled = count // 2 if len(data.unlabelled) else 0
    sources = [(data.images, count - unlabelled), (data.unlabelled, unlabelled)]
    drawn = [
        source[torch.randint(len(source), (number,), generator=random)]
        for source, number in sources
        if number
    ]
    return to_float(torch.cat(drawn))
