"""Layers against their formulas, written out with plain torch."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from gpseg.nn import Conv2d, FullyConnected, MinibatchStd


def test_fully_connected_scales_weight_and_bias():
    torch.manual_seed(0)
    layer = FullyConnected(6, 4, activation="lrelu", lr_multiplier=0.1, bias_init=0.5)
    x = torch.randn(3, 6)
    expected = F.linear(x, layer.weight * (0.1 / math.sqrt(6)), torch.full((4,), 0.5))
    expected = F.leaky_relu(expected, 0.2) * math.sqrt(2)
    torch.testing.assert_close(layer(x), expected)


def test_lr_multiplier_changes_the_gradient_and_not_the_function():
    x = torch.randn(256, 64)
    outputs, gradients = [], []
    for multiplier in (1.0, 0.01):
        torch.manual_seed(0)
        layer = FullyConnected(64, 8, lr_multiplier=multiplier, bias_init=1)
        y = layer(x)
        y.square().mean().backward()
        outputs.append(y.detach())
        gradients.append(layer.weight.grad)
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0] * 0.01)


def test_conv_is_the_scaled_convolution():
    torch.manual_seed(0)
    layer = Conv2d(5, 4, 3, activation="lrelu", clamp=0.3)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 8, 8)
    expected = F.conv2d(x, layer.weight / math.sqrt(5 * 9), layer.bias, padding=1)
    expected = F.leaky_relu(expected, 0.2) * math.sqrt(2)
    torch.testing.assert_close(layer(x), expected.clamp(-0.3, 0.3))
    torch.testing.assert_close(layer(x, gain=0.5), (expected * 0.5).clamp(-0.15, 0.15))


def test_down_filters_before_it_drops_pixels():
    # The alternating image is what a stride alone would turn into a constant.
    layer = Conv2d(1, 1, 3, bias=False, down=2)
    layer.weight.data = torch.tensor([[[[0.0, 0, 0], [0, 3, 0], [0, 0, 0]]]])
    checkerboard = torch.ones(1, 1, 16, 16)
    checkerboard[:, :, :, ::2] = -1
    y = layer(checkerboard)
    assert y.shape == (1, 1, 8, 8)
    torch.testing.assert_close(y[:, :, 2:-2, 2:-2], torch.zeros(1, 1, 4, 4))
    torch.testing.assert_close(
        layer(torch.ones(1, 1, 16, 16))[:, :, 2:-2, 2:-2], torch.ones(1, 1, 4, 4)
    )


def test_up_keeps_the_mean():
    layer = Conv2d(1, 1, 3, bias=False, up=2)
    layer.weight.data = torch.tensor([[[[0.0, 0, 0], [0, 3, 0], [0, 0, 0]]]])
    y = layer(torch.ones(1, 1, 8, 8))
    assert y.shape == (1, 1, 16, 16)
    torch.testing.assert_close(y[:, :, 3:-3, 3:-3], torch.ones(1, 1, 10, 10))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_keep_their_dtype_and_layout(dtype):
    layer = Conv2d(4, 8, 3, activation="lrelu", clamp=256)
    x = torch.randn(2, 4, 8, 8).to(dtype, memory_format=torch.channels_last)
    y = layer(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_minibatch_std_is_the_deviation_within_a_group():
    x = torch.randn(8, 3, 4, 4)
    y = MinibatchStd(group_size=4)(x)
    assert y.shape == (8, 4, 4, 4)
    torch.testing.assert_close(y[:, :3], x)
    for group in (slice(0, 4), slice(4, 8)):
        expected = (x[group].var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[group, 3], expected.expand(4, 4, 4))


def test_minibatch_std_of_joined_batches_is_that_of_the_batches():
    a, b = torch.randn(4, 2, 4, 4), 3 * torch.randn(4, 2, 4, 4)
    layer = MinibatchStd(group_size=4)
    torch.testing.assert_close(layer(torch.cat([a, b])), torch.cat([layer(a), layer(b)]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_minibatch_std_keeps_the_layout(layout, num_channels):
    x = torch.randn(4, 2, 4, 4).contiguous(memory_format=layout)
    y = MinibatchStd(num_channels=num_channels)(x)
    assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("n", [0, 1, 3, 6])
def test_minibatch_std_takes_any_batch(n):
    y = MinibatchStd(group_size=4)(torch.randn(n, 2, 4, 4))
    assert y.shape == (n, 3, 4, 4)
    assert y.isfinite().all()


def lies_as_convolved(weight: torch.Tensor, up: int) -> bool:
    """Whether a convolution, transposed where it upsamples, reads the weight without a copy."""
    read = weight.transpose(0, 1) if up > 1 else weight
    return read.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", [{}, {"up": 2}, {"down": 2}])
def test_weights_lie_as_convolved_and_stay_so(options):
    up = options.get("up", 1)
    torch.manual_seed(0)
    layer = Conv2d(5, 4, 3, **options)
    torch.manual_seed(0)
    assert torch.equal(layer.weight, torch.randn(4, 5, 3, 3))
    other = Conv2d(5, 4, 3, **options)
    other.load_state_dict({name: t.contiguous() for name, t in layer.state_dict().items()})
    assert torch.equal(other.weight, layer.weight)
    layer(torch.randn(2, 5, 8, 8).to(memory_format=torch.channels_last)).sum().backward()
    for weight in (layer.weight, layer.weight.grad, other.weight, copy.deepcopy(layer).weight):
        assert lies_as_convolved(weight, up)
    assert lies_as_convolved(layer.double().weight, up)


def test_a_layer_that_only_scales_keeps_nothing_but_what_it_convolves():
    layer = Conv2d(5, 4, 1, bias=False)
    x = torch.randn(2, 5, 8, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        y = layer(x, gain=0.5)
    torch.testing.assert_close(y, F.conv2d(x, layer.weight * (0.5 / math.sqrt(5))))
    assert (2, 4, 8, 8) not in kept
