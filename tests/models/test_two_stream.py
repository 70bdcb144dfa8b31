"""The two-stream model: no gap at the start, the crossings' gradients, the palette."""

from functools import partial

import pytest
import torch

from gpseg.models.stylegan2 import NetworkConfig
from gpseg.models.two_stream import TwoStream, far_apart_palette

NETWORK = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=2)
CLASSES = 4


@pytest.fixture
def model() -> TwoStream:
    torch.manual_seed(0)
    return TwoStream(NETWORK.generator(), NETWORK.discriminator(), NETWORK, CLASSES)


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_both_streams_start_as_the_generator(model: TwoStream) -> None:
    x = images()
    streams = model(x)
    ws, _ = model.encoder(x)
    expected = model.image_stream(ws, noise_mode="none")
    assert streams.colours is not None
    torch.testing.assert_close(streams.reconstruction, expected)
    torch.testing.assert_close(streams.colours, expected)


def test_streams_share_no_weights(model: TwoStream) -> None:
    own = {p.data_ptr() for p in model.image_stream.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in model.segmentation_stream.parameters())


def test_shapes_and_subset(model: TwoStream) -> None:
    streams = model(images(3), segmented=2)
    assert streams.colours is not None and streams.logits is not None
    assert streams.reconstruction is not None
    assert streams.reconstruction.shape == (3, 3, 16, 16)
    assert streams.colours.shape == (2, 3, 16, 16)
    assert streams.logits.shape == (2, CLASSES, 16, 16)
    alone = model(images(3), segmented=0)
    assert alone.colours is None and alone.logits is None


def test_without_reconstruction_the_image_stream_only_feeds_the_other(model: TwoStream) -> None:
    assert model.crossings is not None
    for p in model.crossings.parameters():
        torch.nn.init.normal_(p)
    with torch.no_grad():
        whole = model(images(3), segmented=2)
    streams = model(images(3), segmented=2, reconstruct=False)
    assert streams.reconstruction is None
    assert streams.colours is not None and streams.logits is not None
    torch.testing.assert_close(streams.colours, whole.colours)
    torch.testing.assert_close(streams.logits, whole.logits)
    (streams.colours.square().mean() + streams.logits.square().mean()).backward()
    assert all(p.grad is None for p in model.image_stream.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.crossings.parameters())


def test_every_parameter_learns_after_one_step(model: TwoStream) -> None:
    """Zero projections get a gradient at once; what lies behind them, once they have moved."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        streams = model(images())
        assert streams.colours is not None and streams.logits is not None
        loss = streams.reconstruction.square().mean() + streams.colours.square().mean()
        optimizer.zero_grad()
        (loss + streams.logits.square().mean()).backward()
        optimizer.step()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # no noise is added in this model, so its strengths have nothing to learn
    assert [n for n in without if "noise_strength" not in n] == []


def test_crossing_carries_gradient_into_the_image_stream() -> None:
    def image_stream_grad(crossing: bool) -> bool:
        torch.manual_seed(0)
        net = TwoStream(
            NETWORK.generator(), NETWORK.discriminator(), NETWORK, CLASSES, crossing=crossing
        )
        if net.crossings is not None:
            for p in net.crossings.parameters():
                torch.nn.init.normal_(p)
        colours = net(images()).colours
        assert colours is not None
        colours.square().mean().backward()
        return any(p.grad is not None and p.grad.any() for p in net.image_stream.parameters())

    assert image_stream_grad(crossing=True)
    assert not image_stream_grad(crossing=False)


def test_feature_grad_scales_what_reaches_the_features(model: TwoStream) -> None:
    def norm(share: float) -> float:
        model.zero_grad()
        logits = model(images(), feature_grad=share).logits
        assert logits is not None
        logits.square().mean().backward()
        grad = model.segmentation_stream.block(16).conv1.weight.grad
        return 0.0 if grad is None else float(grad.norm())

    whole = norm(1.0)
    assert whole > 0
    assert norm(0.25) == pytest.approx(0.25 * whole, rel=1e-4)
    assert norm(0.0) == 0


def test_palette_logits_pick_the_nearest_colour(model: TwoStream) -> None:
    masks = torch.arange(CLASSES).repeat(16, 4)[None]
    colours = model.palette[masks].permute(0, 3, 1, 2)
    logits = model.palette_logits(colours + 0.1, temperature=0.25)
    assert torch.equal(logits.argmax(1), masks)
    distances = (colours + 0.1 - model.palette[:, None, :, None, None]).square().sum(2)
    torch.testing.assert_close(logits, -distances.transpose(0, 1) / 0.25)


@pytest.mark.parametrize("segmented", [2, 3, None])
def test_gradients_of_features_keep_their_layout(
    model: TwoStream, segmented: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice's would be NCHW, and with it every pass after it."""
    x = images(3).contiguous(memory_format=torch.channels_last)
    ws, skips = model.encoder(x)
    seen: dict[int, bool] = {}

    def note(r: int, grad: torch.Tensor) -> None:
        seen[r] = grad.is_contiguous(memory_format=torch.channels_last)

    for r, skip in skips.items():
        assert skip.is_contiguous(memory_format=torch.channels_last)
        skip.register_hook(partial(note, r))
    monkeypatch.setattr(model.encoder, "forward", lambda *_, **__: (ws, skips))
    streams = model(x, segmented=segmented)
    assert streams.colours is not None and streams.logits is not None
    loss = streams.reconstruction.square().mean() + streams.colours.square().mean()
    (loss + streams.logits.square().mean()).backward()
    assert seen == dict.fromkeys(skips, True)


@pytest.mark.parametrize("count", [2, 3, 8, 10, 20, 40, 125, 255])
def test_palette_colours_are_far_apart(count: int) -> None:
    palette = far_apart_palette(count)
    assert palette.shape == (count, 3)
    assert palette.abs().max() <= 1
    distances = torch.pdist(palette)
    assert distances.min() >= (2 if count <= 8 else 0.5 if count <= 125 else 0.33)
