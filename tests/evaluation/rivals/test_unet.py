import pytest
import torch

from gpseg.data import PairChange
from gpseg.errors import RunError
from gpseg.evaluation.rivals import UNet, train_unet
from gpseg.models.segmenter import to_float
from gpseg.training.batches import Batches
from gpseg.training.finetune_config import FinetuneConfig
from gpseg.training.losses import class_weights, rarity
from tests.evaluation.rivals.squares import STILL, check_prediction, squares, training_set


def test_unet_has_about_a_million_parameters() -> None:
    assert 0.5e6 < sum(p.numel() for p in UNet(6).parameters()) < 1.9e6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learns_parts_of_images_it_has_not_seen(precision) -> None:
    images, masks = squares(12)
    unet = train_unet(training_set(4), steps=80, batch=4, augment=STILL, precision=precision)
    check_prediction(unet.probabilities(images[4:]), masks[4:], 0.5)


def test_learns_from_unlabelled_images_as_ours_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = Batches.targets

    def watched(self, batch, progress, probabilities):  # type: ignore[no-untyped-def]
        masks, weights = original(self, batch, progress, probabilities)
        asked.append((progress, len(batch.masks), len(masks), len(batch.images)))
        return masks, weights

    monkeypatch.setattr(Batches, "targets", watched)
    images, masks = squares(20)
    unet = train_unet(
        training_set(4, 8),
        steps=80,
        batch=4,
        augment=STILL,
        as_ours=FinetuneConfig(labelled_batch=1, unlabelled_batch=3, self_training_from=0.75),
    )
    check_prediction(unet.probabilities(images[12:]), masks[12:], 0.5)
    assert asked == [(n / 80, 4, 4 if n < 60 else 7, 7) for n in range(80)]


def test_predictions_are_freed_of_the_weights() -> None:
    data = training_set(2)
    unet = train_unet(data, steps=2, batch=2)
    weights = class_weights(data.masks, data.classes.num_classes)
    assert torch.equal(unet.rarity.flatten(), rarity(weights)) and unet.rarity.any()
    x = to_float(data.images)
    expected = (unet.logits_of(x) - rarity(weights)[:, None, None]).softmax(1)
    torch.testing.assert_close(unet.probabilities(x), expected)


def test_a_seed_gives_the_same_network_and_leaves_the_global_one_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        return train_unet(training_set(2), steps=2, batch=2, seed=seed).first[0].weight

    before = torch.get_rng_state()
    first = weights(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


def test_a_loss_that_is_not_finite_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: PairChange, images: torch.Tensor) -> torch.Tensor:
        return images * float("nan")

    monkeypatch.setattr(PairChange, "images", broken)
    with pytest.raises(RunError, match="U-Net's loss is nan"):
        train_unet(training_set(2), steps=2, batch=2)
