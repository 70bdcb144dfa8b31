"""What a step of pre-training computes: no convolution that nobody reads. And what surrounds the steps."""

import copy
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from gpseg.training.pretrain_config import PretrainConfig
from gpseg.training.steps import Means, restore_optimizer, short_collections
from gpseg.training.trainer import Trainer


def trainer(resolution: int = 32) -> Trainer:
    torch.manual_seed(0)
    config = PretrainConfig(
        Path(), resolution=resolution, batch=4, channel_base=128, channel_max=8, z_dim=8
    )
    config.precision, config.device = "fp32", "cpu"
    return Trainer(config, config.network(), torch.device("cpu"))


FORWARD = ("aten::convolution", "gpseg_cpp::winograd_conv")
WEIGHT_GRAD = ("aten::convolution_backward", "gpseg_cpp::winograd_weight_grad")
"""What carries out a convolution on the CPU: torch, or the compiled library."""


def convolutions(call: Callable[[], object]) -> tuple[int, ...]:
    """How many convolutions, input gradients among them, and how many weight gradients are computed."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    names = [event.name for event in profiled.events()]
    return tuple(sum(names.count(name) for name in kind) for kind in (FORWARD, WEIGHT_GRAD))


@pytest.mark.parametrize("resolution", [16, 32])
def test_convolutions_of_each_step(resolution: int) -> None:
    t = trainer(resolution)
    blocks = resolution.bit_length() - 2
    layers = 3 * blocks - 1  # of generator and discriminator alike
    reals, fakes = torch.randn(2, 4, 3, resolution, resolution)
    t._generator_step(), t._discriminator_step(fakes, reals), t._r1_step(reals)
    # generator and discriminator forward, then back; weight gradients of the generator alone
    assert convolutions(t._generator_step) == (4 * layers, layers)
    # forward, and back but for the gradient to the images
    assert convolutions(lambda: t._discriminator_step(fakes, reals)) == (2 * layers - 1, layers)
    # forward, back to the images without weight gradients, and back through both
    assert convolutions(lambda: t._r1_step(reals)) == (4 * layers, 2 * layers)


def test_r1_leaves_no_gradient_on_the_images() -> None:
    t = trainer()
    reals = torch.randn(4, 3, 32, 32)
    seen = []
    accumulate = torch.Tensor.detach

    def spy(x: torch.Tensor) -> torch.Tensor:
        leaf = accumulate(x)
        seen.append(leaf)
        return leaf

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "detach", spy)
        t._r1_step(reals)
    images = [leaf for leaf in seen if leaf.shape == reals.shape and leaf.requires_grad]
    assert images and all(leaf.grad is None for leaf in images)


def test_an_optimizers_state_follows_its_weights_layout() -> None:
    """As of a run that an earlier version saved, whose weights lay otherwise in memory."""
    weight = torch.randn(4, 5, 3, 3)
    gradient = torch.randn(4, 5, 3, 3)
    before = nn.Parameter(weight.clone())
    now = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    optimizers = [torch.optim.Adam([p], lr=0.1, fused=True) for p in (before, now)]
    before.grad = gradient.clone()
    optimizers[0].step()
    with torch.no_grad():
        now.copy_(before)
    restore_optimizer(optimizers[1], copy.deepcopy(optimizers[0].state_dict()))
    for p, optimizer in zip((before, now), optimizers, strict=True):
        p.grad = torch.empty_like(p).copy_(gradient)
        optimizer.step()
    torch.testing.assert_close(now.contiguous(), before.detach())


def test_means() -> None:
    means = Means()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(5.0)})
    means.add({"a": torch.tensor(2.0)})
    assert means.take() == {"a": 1.5, "b": 5.0}
    assert means.take() == {}


def test_collections_leave_out_what_was_alive_before() -> None:
    gc.unfreeze()
    with pytest.raises(KeyError), short_collections():
        assert gc.get_freeze_count() > 1000
        raise KeyError
    assert gc.get_freeze_count() == 0
