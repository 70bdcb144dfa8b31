"""A task that every rival can learn: noisy pictures with a red and a green square."""

import torch
from torch import Tensor

from gpseg.data import Classes, PairAugment, PartClass
from gpseg.models.stylegan2 import Discriminator, Generator, NetworkConfig
from gpseg.training.batches import TrainingSet

CLASSES = Classes(
    tuple(PartClass(i, name, (i, 0, 0)) for i, name in enumerate(("background", "left", "right")))
)
STILL = PairAugment(0, 1, 0, 0, 0, 0, 0, 0)
NETWORK = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=256, channel_max=16, mapping_layers=2)


def squares(count: int) -> tuple[Tensor, Tensor]:
    """Noisy pictures with a red and a green square, each somewhere in its half."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(60, 120, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(count, 16, 16, dtype=torch.uint8)
    for image, mask in zip(images, masks, strict=True):
        for part, left in ((1, 0), (2, 8)):
            x, y = torch.randint(4, (2,), generator=generator).tolist()
            mask[y : y + 5, left + x : left + x + 5] = part
            image[part - 1, y : y + 5, left + x : left + x + 5] = 230
    return images, masks


def training_set(labelled: int, unlabelled: int = 0) -> TrainingSet:
    """The first pictures with their masks, the next ones without."""
    images, masks = squares(labelled + unlabelled)
    masks[0, 0] = 255
    return TrainingSet(images[:labelled], masks[:labelled], images[labelled:], CLASSES)


def prior() -> tuple[Generator, Discriminator]:
    """Networks that no training has seen, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORK.generator(), NETWORK.discriminator()


def check_prediction(probabilities: Tensor, masks: Tensor, least: float) -> None:
    """Hold that the probabilities are some, and that each part's IoU is above `least`."""
    assert probabilities.dtype == torch.float32
    assert probabilities.shape == (len(masks), 3, 16, 16)
    assert torch.allclose(probabilities.sum(1), torch.ones(masks.shape), atol=1e-3)
    predicted = probabilities.argmax(1)
    for part in (1, 2):
        there, found = masks == part, predicted == part
        assert (there & found).sum() / (there | found).sum() > least
