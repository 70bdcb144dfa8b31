import pytest
import torch

from gpseg.errors import InputError
from gpseg.evaluation.rivals import EncoderDecoder, train_encoder_decoder
from tests.evaluation.rivals.squares import (
    NETWORK,
    STILL,
    check_prediction,
    prior,
    squares,
    training_set,
)


def trained(**options: object) -> EncoderDecoder:
    _, discriminator = prior()
    options = {"steps": 1, "batch": 4, "precision": "fp32", **options}
    return train_encoder_decoder(training_set(4), discriminator, NETWORK, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_learns_parts_of_images_it_has_not_seen(precision) -> None:
    images, masks = squares(12)
    model = trained(steps=80, augment=STILL, precision=precision)
    check_prediction(model.probabilities(images[4:]), masks[4:], 0.5)


def test_the_control_starts_from_another_trunk_and_the_same_decoder(monkeypatch) -> None:
    """Seen at a learning rate of zero, where everything stays as it starts."""
    module = "gpseg.evaluation.rivals.encoder_decoder"
    monkeypatch.setattr(f"{module}.TRUNK_LR", 0.0)
    monkeypatch.setattr(f"{module}.PEAK_LR", 0.0)
    own, control = (
        dict(trained(pretrained=pretrained).named_parameters()) for pretrained in (True, False)
    )
    _, discriminator = prior()
    for name, weight in discriminator.named_parameters():
        if not name.startswith("b4."):
            assert torch.equal(own[f"trunk.{name}"], weight)
            if name.endswith("weight"):
                assert not torch.equal(control[f"trunk.{name}"], weight)
    for name in own:
        assert name.startswith("trunk.") or torch.equal(own[name], control[name])


def test_trunk_and_decoder_both_learn_and_the_discriminator_stays() -> None:
    _, discriminator = prior()
    before = {name: x.clone() for name, x in discriminator.state_dict().items()}
    data = training_set(4)
    short, long = (
        train_encoder_decoder(data, discriminator, NETWORK, steps=n, batch=4, precision="fp32")
        for n in (1, 4)
    )
    for (name, first), last in zip(short.named_parameters(), long.parameters(), strict=True):
        assert not torch.equal(first, last), name
    assert all(torch.equal(x, before[name]) for name, x in discriminator.state_dict().items())


def test_a_seed_gives_the_same_network() -> None:
    first, again, other = (
        [*trained(steps=3, seed=seed).state_dict().values()] for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_refuses_images_of_another_resolution() -> None:
    _, discriminator = prior()
    with pytest.raises(InputError, match="32x32 px, networks for 16 px: read the images at 16 px"):
        EncoderDecoder(discriminator, 3).probabilities(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
