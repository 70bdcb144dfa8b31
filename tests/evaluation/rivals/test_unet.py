import pytest
import torch

from gpseg.data import PairAugment
from gpseg.errors import RunError
from gpseg.evaluation.rivals import UNet, train_unet
from tests.evaluation.rivals.squares import CLASSES, STILL, check_prediction, squares


def test_unet_has_about_a_million_parameters() -> None:
    assert 0.5e6 < sum(p.numel() for p in UNet(6).parameters()) < 1.9e6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learns_parts_of_images_it_has_not_seen(precision) -> None:
    images, masks = squares(12)
    masks[0, 0] = 255
    unet = train_unet(
        images[:4], masks[:4], CLASSES, steps=80, batch=4, augment=STILL, precision=precision
    )
    check_prediction(unet.probabilities(images[4:]), masks[4:], 0.5)


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
