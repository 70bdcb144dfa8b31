"""What the networks keep for the backward pass, and that no weight is copied into another layout."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from gpseg.models.stylegan2 import (
    Discriminator,
    DiscriminatorBlock,
    Generator,
    NetworkConfig,
    SynthesisBlock,
    SynthesisLayer,
)
from gpseg.training.losses import r1_penalty

N, W = 2, 12
NETWORK = NetworkConfig(32, z_dim=W, w_dim=W, channel_base=256, channel_max=16, mapping_layers=2)


def images(channels: int, resolution: int) -> Tensor:
    x = torch.randn(N, channels, resolution, resolution)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def kept(module: nn.Module, call: Callable[[], object]) -> list[tuple[int, ...]]:
    """Sizes of the feature maps, of more than one channel, that autograd keeps: each memory once, parameters left out."""
    own = {t.untyped_storage().data_ptr() for t in [*module.parameters(), *module.buffers()]}
    sizes: dict[int, tuple[int, ...]] = {}
    alive = []

    def pack(t: Tensor) -> Tensor:
        alive.append(t)  # so that no memory comes up twice
        place = t.untyped_storage().data_ptr()
        if t.ndim == 4 and t.shape[0] == N and t.shape[1] > 1 and place not in own:
            sizes[place] = tuple(t.shape[1:])
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return sorted(sizes.values(), reverse=True)


def test_a_synthesis_layer_keeps_its_input_and_the_convolution() -> None:
    layer = SynthesisLayer(16, 8, W, 32)
    x, w = images(16, 32), torch.randn(N, W)
    assert kept(layer, lambda: layer(x, w)) == [(16, 32, 32), (8, 32, 32)]
    layer = SynthesisLayer(16, 8, W, 32, up=2)
    x = images(16, 16)
    assert kept(layer, lambda: layer(x, w)) == [(16, 16, 16), (8, 32, 32)]


def test_a_synthesis_block_keeps_two_maps_a_layer() -> None:
    block = SynthesisBlock(16, 8, W, 32, 3)
    x, img = images(16, 16), images(3, 16)
    found = kept(block, lambda: block(x, img, torch.randn(N, 3, W)))
    assert found == [(16, 16, 16)] + [(8, 32, 32)] * 4


def test_a_discriminator_block_keeps_one_map_a_layer_and_what_it_filters() -> None:
    block = DiscriminatorBlock(8, 16)
    x = images(8, 32)
    found = kept(block, lambda: block(x)[1])
    # results of the two convolutions, and what both strided ones take
    assert found == [(16, 16, 16), (8, 33, 33), (8, 32, 32), (8, 32, 32), (8, 16, 16)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_the_networks_keep(checkpointing: bool) -> None:
    generator, discriminator = NETWORK.generator(), NETWORK.discriminator()
    generator.synthesis.checkpointing = discriminator.checkpointing = checkpointing
    z, x = torch.randn(N, W), images(3, 32)

    def elements(sizes: list[tuple[int, ...]]) -> int:
        return sum(torch.Size(size).numel() for size in sizes)

    in_generator = elements(kept(generator, lambda: generator(z)))
    in_discriminator = elements(kept(discriminator, lambda: discriminator(x)))
    if checkpointing:
        # what a block takes: features and colours; images, features; and the epilogue, which is not recomputed
        assert in_generator == 16 * (4**2 + 8**2 + 16**2) + 3 * (4**2 + 8**2 + 16**2)
        assert in_discriminator == 3 * 32**2 + 8 * 32**2 + 16 * (16**2 + 8**2) + (17 + 16) * 4**2
        return
    # the constant, and of each layer the convolution and the result
    assert in_generator == 16 * 4**2 * (1 + 2) + 16 * (8**2 + 16**2) * 4 + 8 * 32**2 * 4
    filtered = 8 * (33**2 + 16**2) + 16 * (17**2 + 8**2 + 9**2 + 4**2)
    results = 8 * 2 * 32**2 + 16 * (3 * 16**2 + 3 * 8**2 + 4**2)
    assert in_discriminator == 3 * 32**2 + filtered + results + (17 + 16) * 4**2


def gradients(generator: Generator, discriminator: Discriminator) -> list[Tensor]:
    torch.manual_seed(1)  # of noise and latents
    logits = discriminator(generator(torch.randn(4, W)))
    first = torch.autograd.grad(
        logits.square().sum(), [*generator.parameters(), *discriminator.parameters()]
    )
    x = torch.randn(4, 3, 32, 32, requires_grad=True)
    penalty = r1_penalty(discriminator(x), x)
    weights = [p for name, p in discriminator.named_parameters() if name.endswith("weight")]
    return [*first, *torch.autograd.grad(penalty, weights)]


def test_checkpointing_changes_no_gradient() -> None:
    networks = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        generator = NETWORK.generator(checkpointing=checkpointing)
        for module in generator.modules():
            if isinstance(module, SynthesisLayer):
                nn.init.constant_(module.noise_strength, 0.5)
        networks.append((generator, NETWORK.discriminator(checkpointing=checkpointing)))
    plain, recomputed = (gradients(*pair) for pair in networks)
    for g, want in zip(recomputed, plain, strict=True):
        torch.testing.assert_close(g, want)


def test_neither_weights_nor_features_change_their_layout() -> None:
    generator, discriminator = NETWORK.generator(), NETWORK.discriminator()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        images = generator(torch.randn(4, W)).contiguous()  # as augmentation leaves them
        discriminator(images).sum().backward()
    copies = [
        (event.input_shapes[0], [parent.name for parent in parents(event)])
        for event in profiled.events()
        if event.name == "aten::copy_" and len(event.input_shapes[0]) == 4
    ]
    # torch's own convolution_backward brings what oneDNN gives into the layout of its result
    weights = [names for size, names in copies if size[2:] == [3, 3]]
    assert [names for names in weights if "aten::convolution_backward" not in names] == []
    # the first and the last maps, of 4×4, come from a constant and go to a fully connected layer
    assert [size for size, _ in copies if size[0] == 4 and size[1] > 3 and size[3] > 4] == []


def parents(event: Any) -> Iterator[Any]:
    """What called an operator, inside out."""
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event
