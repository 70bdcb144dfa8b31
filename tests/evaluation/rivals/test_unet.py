import pytest
import torch

from gpseg.data import Classes, PairAugment, PartClass
from gpseg.errors import RunError
from gpseg.evaluation.rivals import UNet, train_unet

CLASSES = Classes(
    tuple(PartClass(i, name, (i, 0, 0)) for i, name in enumerate(("background", "left", "right")))
)
STILL = PairAugment(0, 1, 0, 0, 0, 0, 0, 0)


def squares(count: int) -> tuple[torch.Tensor, torch.Tensor]:
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


def test_unet_has_about_a_million_parameters() -> None:
    assert 0.5e6 < sum(p.numel() for p in UNet(6).parameters()) < 1.9e6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learns_parts_of_images_it_has_not_seen(precision) -> None:
    images, masks = squares(12)
    masks[0, 0] = 255
    unet = train_unet(
        images[:4], masks[:4], CLASSES, steps=80, batch=4, augment=STILL, precision=precision
    )
    probabilities = unet.probabilities(images[4:])
    assert probabilities.dtype == torch.float32
    assert probabilities.shape == (8, 3, 16, 16)
    assert torch.allclose(probabilities.sum(1), torch.ones(8, 16, 16), atol=1e-3)
    predicted = probabilities.argmax(1)
    for part in (1, 2):
        there, found = masks[4:] == part, predicted == part
        assert (there & found).sum() / (there | found).sum() > 0.5


def test_a_seed_gives_the_same_network_and_leaves_the_global_one_alone() -> None:
    images, masks = squares(2)

    def weights(seed: int) -> torch.Tensor:
        return train_unet(images, masks, CLASSES, steps=2, batch=2, seed=seed).first[0].weight

    before = torch.get_rng_state()
    first = weights(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


def test_a_loss_that_is_not_finite_ends_in_one_line() -> None:
    images, masks = squares(2)

    class Broken(PairAugment):
        def __call__(self, images, masks, generator):  # type: ignore[no-untyped-def]
            return images * float("nan"), masks

    with pytest.raises(RunError, match="U-Net's loss is nan"):
        train_unet(images, masks, CLASSES, steps=2, batch=2, augment=Broken())
