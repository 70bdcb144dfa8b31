"""The layers StyleGAN2 is made of.

Parameters are float32 and drawn from N(0, 1); the He constant is a factor at run time ("equalised learning rate",
Karras et al., *Progressive Growing of GANs*, ICLR 2018), so that Adam moves every layer at the same relative speed.
Weights are cast to the dtype of the activations where they are used.
"""

import math

import torch
from torch import Tensor, nn

from gpseg import ops

RESAMPLE_FILTER = (1.0, 3.0, 3.0, 1.0)


def kernel_parameter(
    out_channels: int, in_channels: int, kernel_size: int, up: int = 1
) -> nn.Parameter:
    """A convolution's weight from N(0, 1), laid out in memory as the convolution reads it.

    That is channels_last, and where a transposed convolution upsamples, which takes a weight [in, out, k, k],
    channels_last of that: neither forward nor backward copies a float32 weight, and its gradient comes out the same way.

    Args:
        out_channels: channels of the output.
        in_channels: channels of the input.
        kernel_size: side of the square kernel.
        up: factor of upsampling.

    Returns:
        [out_channels, in_channels, kernel_size, kernel_size].
    """
    weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size)
    if up > 1:
        weight = weight.transpose(0, 1).contiguous(memory_format=torch.channels_last)
        return nn.Parameter(weight.transpose(0, 1))
    return nn.Parameter(weight.contiguous(memory_format=torch.channels_last))


class FullyConnected(nn.Module):
    """A linear layer with bias and activation.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        activation: one of `bias_act`'s activations.
        lr_multiplier: the layer learns this many times as fast as the others; the initial function is the same.
        bias_init: initial value of the bias as it acts.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `x` [N, in_features]; returns [N, out_features] in x's dtype."""
        # The gain multiplies x, which is small beside the weight.
        x, weight = x * self.weight_gain, self.weight.to(x.dtype)
        bias = (
            (self.bias * self.bias_gain).to(x.dtype)
            if self.bias_gain != 1
            else self.bias.to(x.dtype)
        )
        if self.activation == "linear":
            return torch.addmm(bias, x, weight.t())
        return ops.bias_act(x @ weight.t(), bias, act=self.activation)


class Conv2d(nn.Module):
    """A convolution with optional FIR resampling, then bias and activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the square kernel, odd; the spatial size is kept but for `up` and `down`.
        bias: whether there is a bias.
        activation: one of `bias_act`'s activations.
        up: integer factor by which the result is larger.
        down: integer factor by which the result is smaller.
        clamp: bound on the absolute value of the result at gain 1; needed for float16.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.up = up
        self.down = down
        self.clamp = clamp
        self.padding = kernel_size // 2
        self.weight = kernel_parameter(out_channels, in_channels, kernel_size, up)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.act_gain = math.sqrt(2) if activation in ("relu", "lrelu", "swish") else 1.0
        resamples = up > 1 or down > 1
        self.register_buffer(
            "resample_filter",
            ops.setup_filter(RESAMPLE_FILTER, separable=True) if resamples else None,
            persistent=False,
        )

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """Apply the layer.

        Args:
            x: [N, in_channels, H, W].
            gain: factor on the result, applied to the clamp as well.

        Returns:
            [N, out_channels, H·up/down, W·up/down] in x's dtype.
        """
        scales_only = self.bias is None and self.activation == "linear" and self.clamp is None
        weight_gain = self.weight_gain * gain if scales_only else self.weight_gain
        x = ops.conv2d_resample(
            x,
            (self.weight * weight_gain).to(x.dtype),
            self.resample_filter,
            up=self.up,
            down=self.down,
            padding=self.padding,
            # Upsampling layers keep the kernel as the transposed convolution takes it, as published weights do.
            flip_weight=self.up == 1,
        )
        if scales_only:
            return x
        return ops.bias_act(
            x,
            self.bias,
            act=self.activation,
            gain=self.act_gain * gain,
            clamp=None if self.clamp is None else self.clamp * gain,
        )


class MinibatchStd(nn.Module):
    """Append the standard deviation over a group of samples as channels (Karras et al., ICLR 2018).

    A group is `group_size` *consecutive* samples, so a batch put together from several batches, each divisible by the
    group size, gives what the batches give alone.

    Args:
        group_size: samples a group; the largest divisor of the batch that is no larger is taken.
        num_channels: channels appended.
    """

    def __init__(self, group_size: int = 4, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size = group_size
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [N, C, H, W] to [N, C + num_channels, H, W]."""
        n, c, h, w = x.shape
        group = next((g for g in range(min(self.group_size, n), 0, -1) if n % g == 0), 1)
        # [groups, members, statistics, everything that goes into one statistic]
        y = x.float().reshape(n // group, group, self.num_channels, c * h * w // self.num_channels)
        variance = (y - y.mean(dim=1, keepdim=True)).square().mean(dim=1)
        y = (variance + 1e-8).sqrt().mean(dim=2)
        y = y.repeat_interleave(group, dim=0)[:, :, None, None].expand(n, self.num_channels, h, w)
        # Dense, since cat makes channels_last of what is channels_last throughout.
        y = y.to(x.dtype).contiguous(memory_format=torch.channels_last)
        return torch.cat([x, y], dim=1)


class ZeroProjection(nn.Module):
    """A 1×1 convolution that starts as zero: what it adds to a trained network changes nothing at first.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, 1, 1))
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` [N, in_channels, H, W] to [N, out_channels, H, W] in x's dtype."""
        return ops.conv2d_resample(x, (self.weight * self.weight_gain).to(x.dtype))
