from functools import partial

import pytest
import torch

from gpseg.errors import InputError
from gpseg.evaluation.rivals import (
    PixelClassifier,
    train_discriminator_classifier,
    train_pixel_classifier,
)
from gpseg.evaluation.rivals.pixel_classifier import Ensemble, drawn_pixels
from gpseg.models.stylegan2 import NetworkConfig
from gpseg.processes import in_fresh_process
from gpseg.selftest import memory
from gpseg.training.batches import TrainingSet
from gpseg.training.losses import class_weights, rarity
from tests.evaluation.rivals.squares import (
    CLASSES,
    NETWORK,
    STILL,
    check_prediction,
    prior,
    squares,
    training_set,
)

CPU = torch.device("cpu")
MIB = 2**20


def trained(data: TrainingSet | None = None, **options: object) -> PixelClassifier:
    options = {"inversion_steps": 2, "steps": 2, "members": 3, "precision": "fp32", **options}
    return train_pixel_classifier(data or training_set(4, 2), *prior(), NETWORK, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learns_parts_of_images_it_has_not_seen(precision) -> None:
    images, masks = squares(12)
    model = trained(inversion_steps=80, steps=50, augment=STILL, precision=precision)
    check_prediction(model.probabilities(images[4:]), masks[4:], 0.5)


def test_the_discriminators_features_will_do() -> None:
    images, masks = squares(12)
    _, discriminator = prior()
    model = train_discriminator_classifier(
        training_set(4), discriminator, NETWORK, steps=60, members=3, augment=STILL
    )
    check_prediction(model.probabilities(images[4:]), masks[4:], 0.5)


def test_the_prior_stays_as_it_is() -> None:
    generator, discriminator = prior()
    train_pixel_classifier(
        training_set(4), generator, discriminator, NETWORK, inversion_steps=2, steps=2, members=2
    )
    train_discriminator_classifier(training_set(4), discriminator, NETWORK, steps=2, members=2)
    for used, untouched in zip((generator, discriminator), prior(), strict=True):
        assert all(p.requires_grad and p.grad is None for p in used.parameters())
        states = zip(used.state_dict().values(), untouched.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in states)


def test_a_seed_gives_the_same_classifier_and_leaves_the_global_one_alone() -> None:
    images, _ = squares(2)
    before = torch.get_rng_state()
    first, again, other = (trained(seed=seed).probabilities(images) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_predictions_are_freed_of_the_weights() -> None:
    data, model = training_set(4, 2), trained()
    weights = class_weights(data.masks, data.classes.num_classes)
    assert torch.equal(model.ensemble.rarity, rarity(weights)) and model.ensemble.rarity.any()
    before = model.probabilities(data.images)
    model.ensemble.rarity.zero_()
    assert (before[:, 1] < model.probabilities(data.images)[:, 1]).all()


def test_members_learn_apart() -> None:
    ensemble = Ensemble(5, 3, 2, (8, 4))
    columns = torch.randn(2, 5, 7)
    logits = ensemble(columns)
    assert logits.shape == (2, 2, 3, 7)
    logits[:, 0].sum().backward()
    for layer in (ensemble.rest[2], ensemble.rest[5], ensemble.first):
        mine, others = layer.weight.grad.chunk(2)
        assert mine.abs().sum() > 0
        assert others.abs().sum() == 0


def test_tiles_together_are_the_image(monkeypatch) -> None:
    images, _ = squares(3)
    model = trained()
    whole = model.probabilities(images)
    monkeypatch.setattr("gpseg.evaluation.rivals.pixel_classifier.PIXELS_A_TILE", 37)
    torch.testing.assert_close(model.probabilities(images), whole)


def test_small_parts_are_drawn_more_often_and_ignored_pixels_never() -> None:
    masks = torch.zeros(2, 16, 16, dtype=torch.uint8)
    masks[0, 3, 5] = 1
    masks[0, 8:] = 255
    masks[1] = 255
    weights = torch.tensor([1.0, 127.0, 0.0])
    places, ids = drawn_pixels(masks, weights, 4000, torch.Generator().manual_seed(0))
    assert torch.equal(masks.flatten(1).gather(1, places), ids.to(torch.uint8))
    assert not (ids[0] == 255).any()
    assert 0.45 < (ids[0] == 1).float().mean() < 0.55
    assert (ids[1] == 255).all()


def test_an_image_without_a_labelled_pixel_does_no_harm() -> None:
    data = training_set(2)
    data.masks[1] = 255
    assert trained(data).probabilities(data.images).isfinite().all()


def test_refuses_images_of_another_resolution() -> None:
    large = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    message = "images of 32x32 px, networks for 16 px: read the images at 16 px"
    with pytest.raises(InputError, match=message):
        trained(TrainingSet(large, large[:, 0], large[:0], CLASSES))
    with pytest.raises(InputError, match=message):
        trained().probabilities(large)


NETWORK_256 = NetworkConfig(
    256, z_dim=8, w_dim=16, channel_base=1024, channel_max=128, mapping_layers=1
)


def peak_at_256(labelled: int) -> int:
    """Bytes that training and predicting take at 256 px."""
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (labelled, 3, 256, 256), dtype=torch.uint8)
    masks = (images[:, 0] // 90).clamp(max=2)
    data = TrainingSet(images, masks, images[:0], CLASSES)
    train = partial(
        train_pixel_classifier,
        data,
        NETWORK_256.generator(),
        NETWORK_256.discriminator(),
        NETWORK_256,
        inversion_steps=1,
        inversion_batch=2,
        steps=1,
        members=3,
        precision="fp32",
    )
    return memory.peak_rise(lambda: train().probabilities(images[:1]), CPU)


@pytest.mark.slow
@pytest.mark.skipif(not memory.can_measure(CPU), reason="needs Linux")
def test_memory_is_a_small_part_of_the_dense_matrix() -> None:
    labelled = 30
    channels = sum(NETWORK_256.generator().synthesis.channels.values())
    matrix = labelled * 256**2 * channels * 4  # bytes of all hypercolumns in float32
    assert matrix > 2800 * MIB
    peak = in_fresh_process(peak_at_256, labelled)
    assert peak < 200 * MIB
