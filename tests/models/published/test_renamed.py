"""Converted weights against a second implementation, from the layout's mathematics alone, in float64 and plain torch."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gpseg.errors import InputError
from gpseg.models.published.networks import networks_in
from gpseg.models.published.renamed import discriminator_weights, generator_weights
from gpseg.models.stylegan2 import NetworkConfig
from tests.models.published.files import act, state_dicts, torch_file

NETWORK = NetworkConfig(32, z_dim=8, w_dim=8, channel_base=256, channel_max=16, mapping_layers=3)


def blur(x: Tensor, kernel: Tensor, pad: tuple[int, int]) -> Tensor:
    """FIR filtering of each channel; a true convolution."""
    x = F.pad(x, (*pad, *pad))
    taps = kernel.flip(0, 1)[None, None].expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, taps, groups=x.shape[1])


def modulated(g: dict[str, Tensor], name: str, x: Tensor, w: Tensor, demodulate: bool) -> Tensor:
    stored = g[f"{name}.conv.weight"][0]
    below, k = stored.shape[1], stored.shape[2]
    style = w @ (g[f"{name}.conv.modulation.weight"] / math.sqrt(w.shape[1])).t()
    style = style + g[f"{name}.conv.modulation.bias"]
    results = []
    for sample, s in zip(x, style, strict=True):
        weight = stored / math.sqrt(below * k * k) * s[None, :, None, None]
        if demodulate:
            weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if f"{name}.conv.blur.kernel" in g:
            y = F.conv_transpose2d(sample[None], weight.transpose(0, 1), stride=2)
            results.append(blur(y, g[f"{name}.conv.blur.kernel"], (1, 1)))
        else:
            results.append(F.conv2d(sample[None], weight, padding=k // 2))
    return torch.cat(results)


def styled(g: dict[str, Tensor], name: str, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    y = modulated(g, name, x, w, True) + g[f"{name}.noise.weight"] * noise
    return act(y, g[f"{name}.activate.bias"].reshape(1, -1, 1, 1))


def to_rgb(g: dict[str, Tensor], name: str, x: Tensor, w: Tensor, below: Tensor | None) -> Tensor:
    rgb = modulated(g, name, x, w, False) + g[f"{name}.bias"]
    if below is None:
        return rgb
    n, c, h, _ = below.shape
    spread = torch.zeros(n, c, 2 * h, 2 * h, dtype=below.dtype)
    spread[:, :, ::2, ::2] = below
    return rgb + blur(spread, g[f"{name}.upsample.kernel"], (2, 1))


def images(g: dict[str, Tensor], w: Tensor) -> Tensor:
    x = g["input.input"].expand(w.shape[0], -1, -1, -1)
    x = styled(g, "conv1", x, w[:, 0], g["noises.noise_0"])
    image = to_rgb(g, "to_rgb1", x, w[:, 1], None)
    for i in range(sum(name.endswith("upsample.kernel") for name in g)):
        x = styled(g, f"convs.{2 * i}", x, w[:, 2 * i + 1], g[f"noises.noise_{2 * i + 1}"])
        x = styled(g, f"convs.{2 * i + 1}", x, w[:, 2 * i + 2], g[f"noises.noise_{2 * i + 2}"])
        image = to_rgb(g, f"to_rgbs.{i}", x, w[:, 2 * i + 3], image)
    return image


def styles(g: dict[str, Tensor], z: Tensor, layers: int) -> Tensor:
    x = z / (z.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
    for i in range(1, layers + 1):
        weight = g[f"style.{i}.weight"] * 0.01 / math.sqrt(x.shape[1])
        x = act(x @ weight.t(), g[f"style.{i}.bias"] * 0.01)
    return x


def logits(d: dict[str, Tensor], x: Tensor) -> Tensor:
    def convolved(x: Tensor, weight: Tensor, **how: int) -> Tensor:
        return F.conv2d(x, weight / math.sqrt(weight[0].numel()), **how)

    def channelwise(bias: Tensor) -> Tensor:
        return bias.reshape(1, -1, 1, 1)

    x = act(convolved(x, d["convs.0.0.weight"]), channelwise(d["convs.0.1.bias"]))
    for i in range(1, 1 + sum(name.endswith("skip.0.kernel") for name in d)):
        b = f"convs.{i}"
        y = convolved(x, d[f"{b}.conv1.0.weight"], padding=1)
        y = blur(act(y, channelwise(d[f"{b}.conv1.1.bias"])), d[f"{b}.conv2.0.kernel"], (2, 2))
        y = convolved(y, d[f"{b}.conv2.1.weight"], stride=2)
        y = act(y, channelwise(d[f"{b}.conv2.2.bias"]))
        skip = blur(x, d[f"{b}.skip.0.kernel"], (1, 1))
        x = (y + convolved(skip, d[f"{b}.skip.1.weight"], stride=2)) / math.sqrt(2)
    deviation = (x.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()  # the batch is one group
    x = torch.cat([x, deviation.expand(x.shape[0], 1, 4, 4)], dim=1)
    x = convolved(x, d["final_conv.0.weight"], padding=1)
    x = act(x, channelwise(d["final_conv.1.bias"])).reshape(x.shape[0], -1)
    for i in (0, 1):
        weight = d[f"final_linear.{i}.weight"]
        x = x @ (weight / math.sqrt(weight.shape[1])).t()
        x = act(x, d["final_linear.0.bias"]) if i == 0 else x + d["final_linear.1.bias"]
    return x


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_networks_compute_what_the_layout_says(legacy):
    stored = state_dicts(NETWORK)
    g, d = double(stored["g_ema"]), double(stored["d"])
    found = networks_in(torch_file(stored, legacy=legacy))
    assert found.network == NETWORK
    z = torch.randn(4, 8)
    with torch.no_grad():
        w = styles(g, z.double(), 3)
        expected = images(g, w[:, None].expand(-1, found.generator.num_ws, -1))
        torch.testing.assert_close(
            found.generator.mapping(z)[:, 0].double(), w, rtol=1e-5, atol=1e-6
        )
        image = found.generator(z, noise_mode="const")
        scale = expected.abs().max()
        torch.testing.assert_close(image.double() / scale, expected / scale, rtol=0, atol=2e-6)
        judged = logits(d, image.double())
        torch.testing.assert_close(
            found.discriminator(image).double() / judged.abs().max(),
            judged / judged.abs().max(),
            rtol=0,
            atol=2e-6,
        )
        # each layer has a style of its own
        ws = torch.randn(2, found.generator.num_ws, 8)
        expected = images(g, ws.double())
        image = found.generator.synthesis(ws, noise_mode="const")
        scale = expected.abs().max()
        torch.testing.assert_close(image.double() / scale, expected / scale, rtol=0, atol=2e-6)
    torch.testing.assert_close(found.generator.mapping.w_avg, stored["latent_avg"])


def test_a_bias_with_axes_of_length_one_is_the_same():
    stored = state_dicts(NETWORK)["g_ema"]
    old = stored | {"conv1.activate.bias": stored["conv1.activate.bias"].reshape(1, -1, 1, 1)}
    found, expected = generator_weights(old, None), generator_weights(stored, None)
    assert found["synthesis.b4.conv1.bias"].shape == (16,)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "name",
    ["constant", "convs.0.something", "convs.0.conv.weights", "style.0.weight", "to_rgbs.x.bias"],
)
def test_weights_that_have_no_place(name):
    with pytest.raises(InputError, match="which StyleGAN2 does not have"):
        generator_weights({name: torch.ones(1)}, None)
    with pytest.raises(InputError, match="which StyleGAN2 does not have"):
        discriminator_weights({name: torch.ones(1)})
