import torch

from gpseg.evaluation.rivals import inversion
from gpseg.evaluation.rivals.inversion import InvertedGenerator, invert
from gpseg.models.segmenter import to_float
from tests.evaluation.rivals.squares import NETWORK, STILL, prior, squares, training_set


def inverted(skips: bool = True, steps: int = 2) -> InvertedGenerator:
    return invert(
        training_set(3, 3),
        *prior(),
        NETWORK,
        skips=skips,
        steps=steps,
        batch=4,
        augment=STILL,
        seed=0,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def test_the_encoder_learns_to_have_images_given_back() -> None:
    x = to_float(squares(6)[0])

    def error(generator: InvertedGenerator) -> float:
        with torch.no_grad():
            return float((generator(x)[1] - x).square().mean())

    for skips in (False, True):
        assert error(inverted(skips, steps=40)) < 0.5 * error(inverted(skips, steps=1))


def test_without_skips_features_are_the_generators_own_at_some_code() -> None:
    generator = inverted(skips=False)
    x = to_float(squares(2)[0])
    ws, inject = generator.inverter(x)
    assert not inject
    own, _ = prior()
    wanted, image = own.synthesis.features_and_image(ws, noise_mode="none")
    features, rebuilt = generator(x)
    assert torch.equal(rebuilt, image)
    assert all(torch.equal(features[r], wanted[r]) for r in wanted)


def test_all_that_is_trained_moves_and_the_generator_stays() -> None:
    for skips in (False, True):
        short, long = inverted(skips, steps=1), inverted(skips, steps=4)
        pairs = zip(short.inverter.named_parameters(), long.inverter.parameters(), strict=True)
        for (name, first), last in pairs:
            unused = not skips and "laterals" in name
            assert torch.equal(first, last) == unused, name
        own, _ = prior()
        pairs = zip(long.synthesis.parameters(), own.synthesis.parameters(), strict=True)
        assert all(torch.equal(a, b) and a.grad is None for a, b in pairs)


def test_images_that_pass_one_by_one_give_the_same_encoder(monkeypatch) -> None:
    whole = inverted()
    monkeypatch.setattr(inversion, "PIXELS_AT_ONCE", 16 * 16)
    parts = inverted()
    for a, b in zip(whole.inverter.parameters(), parts.inverter.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
