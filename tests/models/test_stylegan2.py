"""The networks: shapes, styles, noise, features, and what they must never allocate."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpseg.errors import InputError
from gpseg.models.stylegan2 import (
    MappingNetwork,
    NetworkConfig,
    channels,
    ema_copy,
    ema_update,
    frozen,
    mix_styles,
)


def config(resolution: int = 32, **changes) -> NetworkConfig:
    settings = {
        "z_dim": 12,
        "w_dim": 16,
        "channel_base": 256,
        "channel_max": 16,
        "mapping_layers": 2,
    }
    return NetworkConfig(img_resolution=resolution, **{**settings, **changes})


@pytest.fixture
def generator():
    torch.manual_seed(0)
    generator = config().generator()
    for module in generator.modules():
        if hasattr(module, "noise_strength"):
            torch.nn.init.constant_(module.noise_strength, 0.5)
    return generator


@pytest.mark.parametrize("resolution", [16, 32, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes(resolution, dtype):
    network = config(resolution)
    generator, discriminator = network.generator(dtype), network.discriminator(dtype)
    images = generator(torch.randn(4, 12))
    assert images.shape == (4, 3, resolution, resolution)
    assert images.dtype == torch.float32
    logits = discriminator(images)
    assert logits.shape == (4, 1)
    assert logits.dtype == torch.float32


def test_published_sizes_at_1024():
    network = NetworkConfig(img_resolution=1024)
    generator, discriminator = network.generator(), network.discriminator()
    shapes = {name: tuple(p.shape) for name, p in generator.named_parameters()}
    assert generator.num_ws == 18
    assert shapes["synthesis.b4.const"] == (512, 4, 4)
    assert shapes["synthesis.b1024.conv0.weight"] == (32, 64, 3, 3)
    assert shapes["synthesis.b1024.conv0.affine.weight"] == (64, 512)
    assert shapes["synthesis.b64.torgb.weight"] == (3, 512, 1, 1)
    assert shapes["mapping.fc7.weight"] == (512, 512)
    assert dict(generator.named_buffers())["synthesis.b8.conv1.noise_const"].shape == (8, 8)
    shapes = {name: tuple(p.shape) for name, p in discriminator.named_parameters()}
    assert shapes["b1024.fromrgb.weight"] == (32, 3, 1, 1)
    assert shapes["b1024.skip.weight"] == (64, 32, 1, 1)
    assert shapes["b4.conv.weight"] == (512, 513, 3, 3)
    assert shapes["b4.fc.weight"] == (512, 8192)


def test_channels():
    assert [channels(r, 2048, 96) for r in (64, 32, 16, 4)] == [32, 64, 96, 96]


@pytest.mark.parametrize("resolution", [8, 48, 2048, 0, -16])
def test_resolutions_that_are_not_built(resolution):
    with pytest.raises(InputError, match="power of two"):
        config(resolution).generator()


def test_conditional_networks_are_refused():
    with pytest.raises(InputError, match="c_dim=3"):
        MappingNetwork(8, 3, 8, num_ws=4)


def test_noise_modes(generator):
    ws = generator.mapping(torch.randn(2, 12))
    image = {mode: generator.synthesis(ws, noise_mode=mode) for mode in ("const", "none", "random")}
    torch.testing.assert_close(generator.synthesis(ws, noise_mode="const"), image["const"])
    torch.testing.assert_close(generator.synthesis(ws, noise_mode="none"), image["none"])
    assert (generator.synthesis(ws, noise_mode="random") - image["random"]).abs().mean() > 0.01
    assert (image["const"] - image["none"]).abs().mean() > 0.01
    with pytest.raises(InputError, match="noise_mode"):
        generator.synthesis(ws, noise_mode="some")


def test_noise_is_new_for_every_sample(generator):
    ws = generator.mapping(torch.randn(1, 12)).expand(2, -1, -1)
    first, second = generator.synthesis(ws, noise_mode="random")
    assert (first - second).abs().mean() > 0.01


def test_mapping_ignores_the_length_of_z(generator):
    z = torch.randn(3, 12)
    torch.testing.assert_close(generator.mapping(z), generator.mapping(5 * z), rtol=1e-4, atol=1e-5)


def test_truncation(generator):
    mapping = generator.mapping
    z = torch.randn(3, 12)
    mapping.w_avg.copy_(torch.randn(16))
    ws = mapping(z)
    assert ws.shape == (3, generator.num_ws, 16)
    torch.testing.assert_close(mapping(z, truncation_psi=0), mapping.w_avg.expand_as(ws))
    half = mapping(z, truncation_psi=0.5, truncation_cutoff=3)
    torch.testing.assert_close(half[:, :3], (ws[:, :3] + mapping.w_avg) / 2)
    torch.testing.assert_close(half[:, 3:], ws[:, 3:])


def test_mean_style_moves_only_when_asked(generator):
    mapping = generator.mapping
    z = torch.randn(64, 12)
    mapping(z)
    assert mapping.w_avg.abs().max() == 0
    ws = mapping(z, update_w_avg=True)
    torch.testing.assert_close(mapping.w_avg, ws[:, 0].mean(0) * (1 - mapping.w_avg_beta))


def test_mixed_styles_change_only_the_layers_above(generator):
    ws, other = generator.mapping(torch.randn(2, 12)), generator.mapping(torch.randn(2, 12))
    first = 4  # the 16 px block's second convolution
    mixed = mix_styles(ws, other, first)
    torch.testing.assert_close(mixed[:, :first], ws[:, :first])
    torch.testing.assert_close(mixed[:, first:], other[:, first:])
    before, _ = generator.synthesis.features_and_image(ws, noise_mode="const")
    after, _ = generator.synthesis.features_and_image(mixed, noise_mode="const")
    torch.testing.assert_close(after[8], before[8])
    assert (after[16] - before[16]).abs().mean() > 0.01


def test_injection_reaches_its_resolution_and_all_above(generator):
    synthesis = generator.synthesis
    ws = generator.mapping(torch.randn(2, 12))
    before, image = synthesis.features_and_image(ws, noise_mode="const")
    assert {r: tuple(x.shape[1:]) for r, x in before.items()} == {
        r: (synthesis.channels[r], r, r) for r in (4, 8, 16, 32)
    }
    inject = {8: torch.randn_like(before[8]).requires_grad_()}
    after, changed = synthesis.features_and_image(ws, noise_mode="const", inject=inject)
    torch.testing.assert_close(after[4], before[4])
    block = synthesis.block(8)
    x = block.conv0(before[4], ws[:, 1], noise_mode="const") + inject[8]
    torch.testing.assert_close(after[8], block.conv1(x, ws[:, 2], noise_mode="const"))
    assert (after[16] - before[16]).abs().mean() > 0.01
    changed.sum().backward()
    assert inject[8].grad.abs().sum() > 0
    zeros = {r: torch.zeros_like(x) for r, x in before.items()}
    torch.testing.assert_close(synthesis(ws, noise_mode="const", inject=zeros), image)


def test_half_precision_is_close(generator):
    ws = generator.mapping(torch.randn(2, 12))
    full = generator.synthesis(ws, noise_mode="const")
    half = generator.synthesis(ws, noise_mode="const", dtype=torch.bfloat16)
    assert (full - half).square().mean() < 1e-3 * full.square().mean()


def test_float16_needs_the_clamp_and_stays_finite_with_it():
    finite = {}
    for clamp in (None, 256):
        torch.manual_seed(0)
        generator = config(conv_clamp=clamp).generator(torch.float16)
        for name, parameter in generator.named_parameters():
            if name.endswith("conv1.bias"):
                torch.nn.init.constant_(parameter, 4e4)
        finite[clamp] = bool(generator(torch.randn(2, 12)).isfinite().all())
    assert finite == {None: False, 256: True}


def test_every_parameter_gets_a_gradient(generator):
    torch.manual_seed(1)
    discriminator = config().discriminator()
    discriminator(generator(torch.randn(4, 12))).sum().backward()
    for model in (generator, discriminator):
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_discriminator_features():
    discriminator = config().discriminator()
    images = torch.randn(2, 3, 32, 32)
    features = discriminator.features(images)
    assert {r: tuple(x.shape) for r, x in features.items()} == {
        r: (2, discriminator.channels[r], r, r) for r in (32, 16, 8, 4)
    }
    torch.testing.assert_close(discriminator.b4(features[4]), discriminator(images))
    convolved = discriminator.features(images, convolved=True)
    assert convolved.keys() == features.keys() and convolved[4].equal(features[4])
    for r in (32, 16, 8):
        torch.testing.assert_close(convolved[r], discriminator.block(r).conv0(features[r]))
    with pytest.raises(InputError, match="16x16"):
        discriminator(torch.randn(2, 3, 16, 16))


class LargestKernel(TorchDispatchMode):
    """Note the largest tensor that ends in a kernel's 3×3."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.shape[-2:] == (3, 3):
                self.numel = max(self.numel, value.numel())
        return result


def test_no_weights_per_sample(generator):
    shared = max(p.numel() for p in generator.parameters() if p.shape[-2:] == (3, 3))
    with LargestKernel() as mode:
        generator(torch.randn(5, 12)).square().sum().backward()
    assert mode.numel == shared


def test_ema_moves_parameters_and_copies_buffers(generator):
    ema = ema_copy(generator)
    old = [p.clone() for p in ema.parameters()]
    with torch.no_grad():
        for p in generator.parameters():
            p.add_(1)
        generator.mapping.w_avg.fill_(3)
    ema_update(ema, generator, 0.75)
    for average, before, p in zip(ema.parameters(), old, generator.parameters(), strict=True):
        torch.testing.assert_close(average, 0.75 * before + 0.25 * p)
        assert not average.requires_grad
    assert (ema.mapping.w_avg == 3).all()


def test_frozen_shares_parameters_and_leaves_the_model_as_it_is(generator):
    fixed = frozen(generator)
    for own, p in zip(fixed.parameters(), generator.parameters(), strict=True):
        assert own.data_ptr() == p.data_ptr() and torch.equal(own, p)
        assert p.requires_grad and not own.requires_grad
    assert generator.training and not fixed.training
    ws = torch.randn(2, generator.num_ws, generator.w_dim, requires_grad=True)
    fixed.synthesis(ws, noise_mode="none").sum().backward()
    assert ws.grad is not None and all(p.grad is None for p in generator.parameters())
    del fixed.synthesis
    assert generator.synthesis is not None
