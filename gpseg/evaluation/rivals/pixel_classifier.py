"""The rival that reads the generator and leaves it as it is: small classifiers of pixels on its features.

The family of DatasetGAN (Zhang et al., CVPR 2021) and RepurposeGAN (Tritrong et al., CVPR 2021), for photographs: an encoder
finds the codes that make the frozen generator give a photograph back, and what is labelled then is the photograph
itself, not a generated image. An ensemble of three-layer perceptrons learns the class of a pixel from its hypercolumn, and
their votes are averaged. Pixels are drawn anew from augmented images at every step, small parts more often than by
their share, just as the other methods weigh them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gpseg.data import PairAugment
from gpseg.evaluation.rivals.hypercolumns import Maps, Moments, columns_at
from gpseg.evaluation.rivals.inversion import images_at_once, invert
from gpseg.evaluation.rivals.training import fit, require_resolution, seeded
from gpseg.models.segmenter import to_float
from gpseg.models.stylegan2 import Discriminator, Generator, NetworkConfig, frozen
from gpseg.training.batches import TrainingSet
from gpseg.training.device import Precision, choose_device, choose_dtype
from gpseg.training.losses import class_weights, masked_mean, part_cross_entropy, rarity

HIDDEN = (128, 32)
LR = 3e-3
IMAGES_A_STEP = 8
PIXELS_AN_IMAGE = 256
IMAGES_FOR_MOMENTS = 64
PIXELS_A_TILE = 2**10
"""Pixels that are classified together; all members' first hidden layer of them, 5 MB, stays in a cache."""


class Ensemble(nn.Module):
    """Three-layer perceptrons side by side, which differ by where they start.

    Args:
        inputs: ΣC.
        num_classes: K.
        members: M.
        hidden: widths of the hidden layers.
    """

    mean: Tensor
    deviation: Tensor
    rarity: Tensor
    """Taken off the logits at prediction, as by `gpseg.training.losses.rarity`: rare parts' pixels are drawn more often."""

    def __init__(
        self, inputs: int, num_classes: int, members: int, hidden: tuple[int, int] = HIDDEN
    ) -> None:
        super().__init__()
        self.members = members
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))
        self.register_buffer("rarity", torch.zeros(num_classes))
        first, second = (members * width for width in hidden)
        self.first = nn.Conv1d(inputs, first, 1)
        self.rest = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(first),
            nn.Conv1d(first, second, 1, groups=members),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(second),
            nn.Conv1d(second, members * num_classes, 1, groups=members),
        )

    def forward(self, columns: Tensor) -> Tensor:
        """Logits [N, M, K, P] of hypercolumns [N, ΣC, P]."""
        columns = (columns - self.mean[:, None]) / self.deviation[:, None]
        logits: Tensor = self.rest(self.first(columns))
        return logits.unflatten(1, (self.members, -1))

    def probabilities(self, maps: Maps, resolution: int) -> Tensor:
        """The members' mean class probabilities [N, K, R, R] of all pixels, a few at a time."""
        images = []
        for n in range(len(next(iter(maps.values())))):
            own = {r: x[n : n + 1].float() for r, x in maps.items()}
            pixels = torch.arange(resolution**2, device=self.mean.device)[None]
            tiles = [
                (self(columns_at(own, places, resolution)) - self.rarity[:, None])
                .softmax(2)
                .mean(1)
                for places in pixels.split(PIXELS_A_TILE, dim=1)
            ]
            images.append(torch.cat(tiles, dim=2))
        return torch.cat(images).unflatten(2, (resolution, resolution))


class PixelClassifier:
    """A frozen network's features and the ensemble that reads them.

    Args:
        features: gives a network's feature maps of images [N, 3, R, R] of -1..1.
        ensemble: reads them.
        resolution: R.
    """

    def __init__(self, features: Callable[[Tensor], Maps], ensemble: Ensemble, resolution: int):
        self.features = features
        self.ensemble = ensemble.eval().requires_grad_(False)
        self.resolution = resolution

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities [N, K, R, R] of uint8 images [N, 3, R, R].

        Raises:
            InputError: the images have another resolution.
        """
        require_resolution(images, self.resolution)
        device = self.ensemble.mean.device
        return torch.cat(
            [
                self.ensemble.probabilities(self.features(to_float(x.to(device))), self.resolution)
                for x in images.split(images_at_once(self.resolution))
            ]
        )


def train_pixel_classifier(
    data: TrainingSet,
    generator: Generator,
    discriminator: Discriminator,
    network: NetworkConfig,
    *,
    skips: bool = True,
    inversion_steps: int = 600,
    inversion_batch: int = 8,
    steps: int = 500,
    members: int = 10,
    augment: PairAugment | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "auto",
) -> PixelClassifier:
    """Train an encoder for the frozen generator, then the pixel classifiers on its features.

    Args:
        data: what to learn from; the encoder learns from unlabelled images too.
        generator: pre-trained; it is left as it is.
        discriminator: pre-trained with it; starts the encoder, and is left as it is.
        network: what both are built from.
        skips: whether the encoder's features enter the generator; without, the features are the generator's own at the
            code found, as in the published family.
        inversion_steps: training steps of the encoder.
        inversion_batch: augmented images a step, for the encoder.
        steps: training steps of the classifiers.
        members: classifiers whose votes are averaged.
        augment: how to augment images; None for a strong augmentation that suits most classes of images.
        seed: decides weights, batches and augmentation.
        device: where to train, as `gpseg.training.device.choose_device` takes it.
        precision: dtype of the feature maps.

    Raises:
        InputError: the images have another resolution than the generator.
        RunError: the loss isn't finite.
    """
    require_resolution(data.images, network.img_resolution)
    place = choose_device(device)
    augment = augment or PairAugment().suiting(data.classes)
    inverted = invert(
        data,
        generator,
        discriminator,
        network,
        skips=skips,
        steps=inversion_steps,
        batch=inversion_batch,
        augment=augment,
        seed=seed,
        device=place,
        dtype=choose_dtype(precision, place),
    )
    return _classifier(lambda x: inverted(x)[0], data, steps, members, augment, seed, place)


def train_discriminator_classifier(
    data: TrainingSet,
    discriminator: Discriminator,
    network: NetworkConfig,
    *,
    steps: int = 500,
    members: int = 10,
    augment: PairAugment | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "auto",
) -> PixelClassifier:
    """Train the pixel classifiers on the frozen discriminator's features, which need no codes.

    Args and errors are those of `train_pixel_classifier`; unlabelled images serve for nothing but means and deviations.
    """
    require_resolution(data.images, network.img_resolution)
    place = choose_device(device)
    dtype = choose_dtype(precision, place)
    trunk = frozen(discriminator).to(place)
    augment = augment or PairAugment().suiting(data.classes)
    return _classifier(
        lambda x: trunk.features(x, dtype=dtype), data, steps, members, augment, seed, place
    )


def _classifier(
    features: Callable[[Tensor], Maps],
    data: TrainingSet,
    steps: int,
    members: int,
    augment: PairAugment,
    seed: int,
    device: torch.device,
) -> PixelClassifier:
    """Train an ensemble on a frozen network's features."""
    resolution = data.images.shape[2]
    classes = data.classes
    at_once = images_at_once(resolution)
    random = torch.Generator().manual_seed(seed)
    weights = class_weights(data.masks, classes.num_classes)

    moments = Moments(resolution)
    with torch.no_grad():
        for images in _for_moments(data, random).split(at_once):
            moments.add(features(to_float(images.to(device))))
    with seeded(seed, device):
        ensemble = Ensemble(len(moments.mean), classes.num_classes, members).to(device)
    ensemble.mean.copy_(moments.mean)
    ensemble.deviation.copy_(moments.deviation)
    ensemble.rarity.copy_(rarity(weights))
    alike = torch.ones(classes.num_classes, device=device)

    def backward(*_unused: object) -> Tensor:
        chosen = torch.randint(len(data.images), (IMAGES_A_STEP,), generator=random)
        x, y = augment(to_float(data.images[chosen]), data.masks[chosen], random)
        places, ids = drawn_pixels(y, weights, PIXELS_AN_IMAGE, random)
        with torch.no_grad():
            columns = torch.cat(
                [
                    columns_at(features(part.to(device)), there.to(device), resolution)
                    for part, there in zip(x.split(at_once), places.split(at_once), strict=True)
                ]
            )
        ids = ids.to(device)
        valid = (ids < classes.num_classes).float()
        logits = ensemble(columns)
        # The sum over members: each learns as if it were alone.
        loss = torch.stack(
            [masked_mean(part_cross_entropy(own, ids, alike), valid) for own in logits.unbind(1)]
        )
        loss.sum().backward()
        return loss.detach().mean()

    ema = fit(ensemble, [(ensemble, LR)], backward, steps=steps, name="pixel classifiers")
    return PixelClassifier(features, ema, resolution)


def _for_moments(data: TrainingSet, random: torch.Generator) -> Tensor:
    """Labelled images, and as many unlabelled ones as there is need of: one image's pixels tell little of others'."""
    more = max(0, IMAGES_FOR_MOMENTS - len(data.images))
    chosen = torch.randperm(len(data.unlabelled), generator=random)[:more]
    return torch.cat([data.images, data.unlabelled[chosen]]) if len(chosen) else data.images


def drawn_pixels(
    masks: Tensor, weights: Tensor, count: int, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Pixels [N, count], row by row, drawn by their class's weight [K], and their ids; without a class only where an
    image has none that has."""
    ids = masks.flatten(1).long()
    known = ids < len(weights)
    chances = torch.where(known, weights[ids.clamp(max=len(weights) - 1)], 0.0)
    chances[chances.sum(1) == 0] = 1.0
    places = torch.multinomial(chances, count, replacement=True, generator=random)
    return places, ids.gather(1, places)
