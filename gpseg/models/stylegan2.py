"""StyleGAN2: mapping network, synthesis network with RGB skips, residual discriminator.

Karras et al., *Analyzing and Improving the Image Quality of StyleGAN*, CVPR 2020 (config E/F), unconditional.
Parameter names and shapes are those of the published checkpoints, so that these load by name.

Parameters, styles and the RGB sum are float32; feature maps have the dtype asked for, in channels_last, where
convolutions are fastest on the CPU and on tensor cores alike.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpseg import ops
from gpseg.errors import InputError
from gpseg.nn import Conv2d, FullyConnected, MinibatchStd
from gpseg.nn.layers import RESAMPLE_FILTER, kernel_parameter

NoiseMode = Literal["random", "const", "none"]
Model = TypeVar("Model", bound=nn.Module)

MIN_RESOLUTION = 16
MAX_RESOLUTION = 1024


def channels(resolution: int, channel_base: int, channel_max: int) -> int:
    """Channels of the feature maps at a resolution: `channel_base / resolution`, at most `channel_max`."""
    return min(channel_base // resolution, channel_max)


def block_resolutions(img_resolution: int) -> list[int]:
    """Resolutions of a network's blocks, from 4 to `img_resolution`.

    Args:
        img_resolution: side of the images, a power of two from 16 to 1024.

    Returns:
        [4, 8, …, img_resolution].

    Raises:
        InputError: if the resolution is not such a power of two.
    """
    if not MIN_RESOLUTION <= img_resolution <= MAX_RESOLUTION or img_resolution & (
        img_resolution - 1
    ):
        raise InputError(
            f"resolution {img_resolution}: give a power of two from {MIN_RESOLUTION} to {MAX_RESOLUTION}"
        )
    return [2**i for i in range(2, img_resolution.bit_length())]


def _require_unconditional(c_dim: int) -> None:
    if c_dim != 0:
        raise InputError(
            f"c_dim={c_dim}: class-conditional networks are not supported; use an unconditional one"
        )


class MappingNetwork(nn.Module):
    """Map latents z to styles w, one copy a layer.

    Args:
        z_dim: width of z.
        c_dim: width of the class label; only 0.
        w_dim: width of w.
        num_ws: copies of w, one for each layer that takes a style.
        num_layers: fully connected layers.
        lr_multiplier: learning rate of these layers, relative to the others.
        w_avg_beta: decay of the running mean of w.
    """

    w_avg: Tensor

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int,
        num_layers: int = 8,
        lr_multiplier: float = 0.01,
        w_avg_beta: float = 0.998,
    ) -> None:
        super().__init__()
        _require_unconditional(c_dim)
        self.z_dim = z_dim
        self.w_dim = w_dim
        self.num_ws = num_ws
        self.num_layers = num_layers
        self.w_avg_beta = w_avg_beta
        for i in range(num_layers):
            layer = FullyConnected(
                z_dim if i == 0 else w_dim, w_dim, activation="lrelu", lr_multiplier=lr_multiplier
            )
            self.add_module(f"fc{i}", layer)
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self,
        z: Tensor,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        update_w_avg: bool = False,
    ) -> Tensor:
        """Map latents to styles.

        Args:
            z: [N, z_dim], drawn from N(0, 1).
            truncation_psi: 1 leaves w as it is, 0 gives the mean w.
            truncation_cutoff: only this many layers, from the coarsest, are truncated; None means all.
            update_w_avg: move the running mean of w by this batch (in training).

        Returns:
            ws [N, num_ws, w_dim], float32.
        """
        x = z.float()
        x = x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for i in range(self.num_layers):
            x = self.get_submodule(f"fc{i}")(x)
        if update_w_avg:
            with torch.no_grad():
                self.w_avg.lerp_(x.detach().mean(dim=0), 1 - self.w_avg_beta)
        ws = x.unsqueeze(1).expand(-1, self.num_ws, -1)
        if truncation_psi == 1:
            return ws
        truncated = self.w_avg.lerp(ws, truncation_psi)
        if truncation_cutoff is None:
            return truncated
        return torch.cat([truncated[:, :truncation_cutoff], ws[:, truncation_cutoff:]], dim=1)


class SynthesisLayer(nn.Module):
    """One modulated convolution with noise, bias and leaky ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        w_dim: width of the style.
        resolution: side of the output.
        up: 2 to double the resolution, else 1.
        conv_clamp: bound on the absolute value of the output; needed for float16.
    """

    noise_const: Tensor
    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        *,
        kernel_size: int = 3,
        up: int = 1,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.up = up
        self.padding = kernel_size // 2
        self.conv_clamp = conv_clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = kernel_parameter(out_channels, in_channels, kernel_size, up)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.register_buffer(
            "resample_filter",
            ops.setup_filter(RESAMPLE_FILTER, separable=True) if up > 1 else None,
            persistent=False,
        )

    def forward(
        self,
        x: Tensor,
        w: Tensor,
        *,
        noise_mode: NoiseMode = "random",
        noise: Tensor | None = None,
        gain: float = 1.0,
    ) -> Tensor:
        """Apply the layer.

        Args:
            x: [N, in_channels, H, W].
            w: [N, w_dim], float32.
            noise_mode: "random" draws new noise, "const" takes the layer's own, "none" adds none.
            noise: the noise itself, [N, 1, resolution, resolution], in place of what `noise_mode` says.
            gain: factor on the result, applied to the clamp as well.

        Returns:
            [N, out_channels, resolution, resolution] in x's dtype.
        """
        if noise is None:
            noise = self._noise(x, noise_mode)
        return ops.modulated_conv2d_act(
            x,
            self.weight.to(x.dtype),
            self.affine(w),
            self.bias,  # it and the noise in float32: they are added before the result is rounded
            noise=None if noise is None else noise * self.noise_strength,
            up=self.up,
            padding=self.padding,
            resample_filter=self.resample_filter,
            # Upsampling layers keep the kernel as the transposed convolution takes it, as published weights do.
            flip_weight=self.up == 1,
            act="lrelu",
            gain=math.sqrt(2) * gain,
            clamp=None if self.conv_clamp is None else self.conv_clamp * gain,
        )

    def _noise(self, x: Tensor, mode: NoiseMode) -> Tensor | None:
        if mode == "random":
            return torch.randn(x.shape[0], 1, self.resolution, self.resolution, device=x.device)
        if mode == "const":
            return self.noise_const
        if mode != "none":
            raise InputError(f'noise_mode "{mode}": give "random", "const" or "none"')
        return None


class ToRGB(nn.Module):
    """A modulated 1×1 convolution from feature maps to colours, without demodulation."""

    def __init__(
        self, in_channels: int, img_channels: int, w_dim: int, *, conv_clamp: float | None = None
    ) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(img_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(img_channels))
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map `x` [N, in_channels, H, W] and `w` [N, w_dim] to [N, img_channels, H, W] in x's dtype."""
        return ops.modulated_conv2d_act(
            x,
            self.weight.to(x.dtype),
            self.affine(w) * self.weight_gain,
            self.bias,
            demodulate=False,
            act="linear",
            clamp=self.conv_clamp,
        )


class SynthesisBlock(nn.Module):
    """The layers of one resolution: two convolutions (one in the first block) and ToRGB.

    Args:
        in_channels: channels of the block below; 0 for the first block, which starts from a learned constant.
        out_channels: channels of this block.
        w_dim: width of the styles.
        resolution: side of the output.
        img_channels: colour channels.
        conv_clamp: bound on the absolute value of every layer's output.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,
        img_channels: int,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.resolution = resolution
        self.register_buffer(
            "resample_filter", ops.setup_filter(RESAMPLE_FILTER, separable=True), persistent=False
        )
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(
                in_channels, out_channels, w_dim, resolution, up=2, conv_clamp=conv_clamp
            )
        self.conv1 = SynthesisLayer(
            out_channels, out_channels, w_dim, resolution, conv_clamp=conv_clamp
        )
        self.torgb = ToRGB(out_channels, img_channels, w_dim, conv_clamp=conv_clamp)
        self.num_conv = 1 if in_channels == 0 else 2

    def forward(
        self,
        x: Tensor | None,
        img: Tensor | None,
        ws: Tensor,
        *,
        noise_mode: NoiseMode = "random",
        noise: Sequence[Tensor] | None = None,
        inject: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tensor, Tensor]:
        """Double the resolution of features and image.

        Args:
            x: features of the block below [N, in_channels, r/2, r/2]; None in the first block.
            img: image so far [N, img_channels, r/2, r/2], float32; None in the first block.
            ws: this block's styles [N, num_conv + 1, w_dim]; the last is ToRGB's.
            noise_mode: see `SynthesisLayer`.
            noise: see `SynthesisLayer`, one for each convolution.
            inject: added to the features [N, out_channels, r, r] that the block's last convolution takes.
            dtype: dtype of the features.

        Returns:
            Features [N, out_channels, r, r] and image [N, img_channels, r, r] (float32).
        """
        styles = iter(ws.unbind(dim=1))
        nothing: Sequence[Tensor | None] = (None,) * self.num_conv
        given = iter(noise or nothing)
        if x is None:
            x = self.const.to(dtype).unsqueeze(0).expand(ws.shape[0], -1, -1, -1)
            x = x.contiguous(memory_format=torch.channels_last)
        else:
            x = self.conv0(x.to(dtype), next(styles), noise_mode=noise_mode, noise=next(given))
        if inject is not None:
            x = x + inject.to(x.dtype)
        x = self.conv1(x, next(styles), noise_mode=noise_mode, noise=next(given))
        rgb = self.torgb(x, next(styles)).float()
        img = rgb if img is None else ops.upsample2d(img, self.resample_filter) + rgb
        return x, img


def _run_block(block: nn.Module, *args: Any, recompute: bool, **kwargs: Any) -> Any:
    """A block's results; with `recompute`, what it keeps for the backward pass is computed anew there.

    Noise that the block draws is then drawn again, the same.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *args, use_reentrant=False, **kwargs)
    return block(*args, **kwargs)


class SynthesisNetwork(nn.Module):
    """Turn styles into images.

    Args:
        w_dim: width of the styles.
        img_resolution: side of the images, a power of two from 16 to 1024.
        img_channels: colour channels.
        channel_base: see `channels`.
        channel_max: see `channels`.
        conv_clamp: bound on the absolute value of every layer's output; None for no bound.
        dtype: dtype of the features where `forward` is not told another.
        checkpointing: keep no block's activations for the backward pass, but compute them anew there.
        float32_below: blocks of lower resolutions compute in float32 whatever the dtype (as wanted for float16).
    """

    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int = 3,
        channel_base: int = 32768,
        channel_max: int = 512,
        conv_clamp: float | None = None,
        dtype: torch.dtype = torch.float32,
        checkpointing: bool = False,
        float32_below: int = 0,
    ) -> None:
        super().__init__()
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.resolutions = block_resolutions(img_resolution)
        self.channels = {r: channels(r, channel_base, channel_max) for r in self.resolutions}
        self.num_ws = 2 * len(self.resolutions)
        self.noise_resolutions = [4, *(r for r in self.resolutions[1:] for _ in range(2))]
        self.dtype = dtype
        self.checkpointing = checkpointing
        self.float32_below = float32_below
        below = 0
        for r in self.resolutions:
            block = SynthesisBlock(below, self.channels[r], w_dim, r, img_channels, conv_clamp)
            self.add_module(f"b{r}", block)
            below = self.channels[r]

    def block(self, resolution: int) -> SynthesisBlock:
        """The block of a resolution."""
        block = self.get_submodule(f"b{resolution}")
        assert isinstance(block, SynthesisBlock)
        return block

    def forward(
        self,
        ws: Tensor,
        *,
        inject: Mapping[int, Tensor] | None = None,
        noise_mode: NoiseMode = "random",
        noise: Sequence[Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Make images.

        Args:
            ws: styles [N, num_ws, w_dim].
            inject: see `features_and_image`.
            noise_mode: "random", "const" or "none".
            noise: see `features_and_image`.
            dtype: dtype of the features; None for the network's own.

        Returns:
            Images [N, img_channels, img_resolution, img_resolution], float32, about −1 … 1.
        """
        return self.features_and_image(
            ws, inject=inject, noise_mode=noise_mode, noise=noise, dtype=dtype
        )[1]

    def features_and_image(
        self,
        ws: Tensor,
        *,
        inject: Mapping[int, Tensor] | None = None,
        noise_mode: NoiseMode = "random",
        noise: Sequence[Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Make images, and keep the features of every resolution.

        Args:
            ws: styles [N, num_ws, w_dim].
            inject: by resolution r, a tensor [N, channels[r], r, r] that is added to what the last convolution
                of that resolution takes; resolutions may be missing.
            noise_mode: "random", "const" or "none".
            noise: in place of that, one tensor [N, 1, r, r] for each r of `noise_resolutions`.
            dtype: dtype of the features; None for the network's own.

        Returns:
            Features by resolution (each block's output), and images as `forward` gives them.
        """
        dtype = dtype or self.dtype
        inject = inject or {}
        features: dict[int, Tensor] = {}
        x: Tensor | None = None
        img: Tensor | None = None
        first = 0
        for r in self.resolutions:
            block = self.block(r)
            span = slice(first, first + block.num_conv)
            # ToRGB shares its style with the next block's first convolution.
            x, img = _run_block(
                block,
                x,
                img,
                ws[:, first : first + block.num_conv + 1],
                recompute=self.checkpointing,
                noise_mode=noise_mode,
                noise=None if noise is None else noise[span],
                inject=inject.get(r),
                dtype=torch.float32 if r < self.float32_below else dtype,
            )
            features[r] = x
            first += block.num_conv
        assert img is not None
        return features, img


class Generator(nn.Module):
    """Mapping and synthesis network.

    Args:
        z_dim: width of the latents.
        c_dim: width of the class label; only 0.
        w_dim: width of the styles.
        img_resolution: side of the images, a power of two from 16 to 1024.
        img_channels: colour channels.
        channel_base: channels at resolution r are `channel_base / r` …
        channel_max: … and at most this many.
        mapping_layers: layers of the mapping network.
        conv_clamp: bound on the absolute value of every layer's output (256 for float16); None for no bound.
        dtype: dtype of the features where `forward` is not told another.
        checkpointing: keep no block's activations for the backward pass, but compute them anew there.
        float32_below: see `SynthesisNetwork`.
    """

    def __init__(
        self,
        z_dim: int = 512,
        c_dim: int = 0,
        w_dim: int = 512,
        img_resolution: int = 256,
        img_channels: int = 3,
        channel_base: int = 32768,
        channel_max: int = 512,
        mapping_layers: int = 8,
        conv_clamp: float | None = None,
        dtype: torch.dtype = torch.float32,
        checkpointing: bool = False,
        float32_below: int = 0,
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.synthesis = SynthesisNetwork(
            w_dim,
            img_resolution,
            img_channels,
            channel_base,
            channel_max,
            conv_clamp,
            dtype,
            checkpointing,
            float32_below,
        )
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, self.num_ws, mapping_layers)

    def forward(
        self,
        z: Tensor,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: NoiseMode = "random",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Make images [N, img_channels, img_resolution, img_resolution] (float32) from `z` [N, z_dim].

        Args:
            z: latents, drawn from N(0, 1).
            truncation_psi: see `MappingNetwork.forward`.
            truncation_cutoff: see `MappingNetwork.forward`.
            noise_mode: "random", "const" or "none".
            dtype: dtype of the features; None for the network's own.

        Returns:
            The images, about −1 … 1.
        """
        ws = self.mapping(z, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        images: Tensor = self.synthesis(ws, noise_mode=noise_mode, dtype=dtype)
        return images


def mix_styles(ws: Tensor, other: Tensor, first: int) -> Tensor:
    """Take the styles of `ws` for the layers below `first` and those of `other` from there on.

    Args:
        ws: [N, num_ws, w_dim].
        other: [N, num_ws, w_dim].
        first: first layer that takes its style from `other`.

    Returns:
        [N, num_ws, w_dim].
    """
    return torch.cat([ws[:, :first], other[:, first:]], dim=1)


class DiscriminatorBlock(nn.Module):
    """A residual block that halves the resolution; the block of the full resolution starts from colours.

    Args:
        in_channels: channels at the block's resolution.
        out_channels: channels at half of it.
        img_channels: colour channels, or 0 if the block takes features.
        conv_clamp: bound on the absolute value of every layer's output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        img_channels: int = 0,
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        if img_channels:
            self.fromrgb = Conv2d(
                img_channels, in_channels, 1, activation="lrelu", clamp=conv_clamp
            )
        self.conv0 = Conv2d(in_channels, in_channels, 3, activation="lrelu", clamp=conv_clamp)
        self.conv1 = Conv2d(
            in_channels, out_channels, 3, activation="lrelu", down=2, clamp=conv_clamp
        )
        self.skip = Conv2d(in_channels, out_channels, 1, bias=False, down=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the first convolution makes of features [N, in_channels, r, r], of the same size, and what the block does,
        [N, out_channels, r/2, r/2]."""
        skip: Tensor = self.skip(x, gain=math.sqrt(0.5))
        convolved: Tensor = self.conv0(x)
        residual: Tensor = self.conv1(convolved, gain=math.sqrt(0.5))
        return convolved, skip.add_(residual)  # nothing else reads skip


class DiscriminatorEpilogue(nn.Module):
    """From 4×4 features to one number an image."""

    def __init__(
        self, in_channels: int, mbstd_group_size: int, conv_clamp: float | None = None
    ) -> None:
        super().__init__()
        self.mbstd = MinibatchStd(mbstd_group_size)
        self.conv = Conv2d(in_channels + 1, in_channels, 3, activation="lrelu", clamp=conv_clamp)
        self.fc = FullyConnected(in_channels * 16, in_channels, activation="lrelu")
        self.out = FullyConnected(in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map features [N, in_channels, 4, 4] to logits [N, 1], in float32."""
        x = self.conv(self.mbstd(x.float()))
        logits: Tensor = self.out(self.fc(x.flatten(1)))
        return logits


class Discriminator(nn.Module):
    """Tell real images from generated ones.

    Args:
        c_dim: width of the class label; only 0.
        img_resolution: side of the images, a power of two from 16 to 1024.
        img_channels: colour channels.
        channel_base: channels at resolution r are `channel_base / r` …
        channel_max: … and at most this many.
        mbstd_group_size: see `MinibatchStd`.
        conv_clamp: bound on the absolute value of every layer's output (256 for float16); None for no bound.
        dtype: dtype of the features where the methods are not told another.
        checkpointing: keep no block's activations for the backward pass, but compute them anew there.
        float32_below: see `SynthesisNetwork`.
    """

    def __init__(
        self,
        c_dim: int = 0,
        img_resolution: int = 256,
        img_channels: int = 3,
        channel_base: int = 32768,
        channel_max: int = 512,
        mbstd_group_size: int = 4,
        conv_clamp: float | None = None,
        dtype: torch.dtype = torch.float32,
        checkpointing: bool = False,
        float32_below: int = 0,
    ) -> None:
        super().__init__()
        _require_unconditional(c_dim)
        self.img_resolution = img_resolution
        self.resolutions = block_resolutions(img_resolution)[::-1]
        self.channels = {r: channels(r, channel_base, channel_max) for r in self.resolutions}
        self.dtype = dtype
        self.checkpointing = checkpointing
        self.float32_below = float32_below
        for r in self.resolutions[:-1]:
            block = DiscriminatorBlock(
                self.channels[r],
                self.channels[r // 2],
                img_channels if r == img_resolution else 0,
                conv_clamp,
            )
            self.add_module(f"b{r}", block)
        self.b4 = DiscriminatorEpilogue(self.channels[4], mbstd_group_size, conv_clamp)

    def block(self, resolution: int) -> DiscriminatorBlock:
        """The residual block of a resolution above 4."""
        block = self.get_submodule(f"b{resolution}")
        assert isinstance(block, DiscriminatorBlock)
        return block

    def features(
        self, img: Tensor, *, convolved: bool = False, dtype: torch.dtype | None = None
    ) -> dict[int, Tensor]:
        """Feature maps of every resolution, from the images' own down to 4.

        Args:
            img: [N, img_channels, img_resolution, img_resolution], −1 … 1.
            convolved: give of each residual block what its first convolution makes, in place of what it takes.
            dtype: dtype of the features; None for the network's own.

        Returns:
            By resolution r, a tensor [N, channels[r], r, r]: the output of fromRGB at the full resolution, of the
            residual block above it at the others.
        """
        if img.shape[2] != self.img_resolution or img.shape[3] != self.img_resolution:
            raise InputError(
                f"images of {img.shape[3]}x{img.shape[2]} in a network for {self.img_resolution}x{self.img_resolution}"
            )
        x = img.to(dtype or self.dtype, memory_format=torch.channels_last)
        features: dict[int, Tensor] = {}
        for r in self.resolutions[:-1]:
            block = self.block(r)
            if r == self.img_resolution:
                x = block.fromrgb(x)
                features[r] = x
            if r < self.float32_below:
                x = x.float()
            fine, x = _run_block(block, x, recompute=self.checkpointing)
            if convolved:
                features[r] = fine
            features[r // 2] = x
        return features

    def forward(self, img: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Logits [N, 1] (float32) of images [N, img_channels, r, r]; larger means more real."""
        logits: Tensor = self.b4(self.features(img, dtype=dtype)[4])
        return logits


def frozen(model: Model) -> Model:
    """`model` in eval mode and without gradients: a module of its own, whose parameters are the model's in memory."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, dict[int, Any](shared)).eval()


def ema_copy(model: Model) -> Model:
    """A copy of `model` that `ema_update` keeps, in eval mode and without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def ema_update(ema: nn.Module, model: nn.Module, beta: float) -> None:
    """Move the running mean of a model's parameters; buffers are copied.

    Args:
        ema: the running mean, of the same structure as `model`.
        model: the model in training.
        beta: share of the old mean, 0 … 1.
    """
    averages: list[Tensor] = list(ema.parameters())
    torch._foreach_lerp_(averages, list(model.parameters()), 1 - beta)
    for average, buffer in zip(ema.buffers(), model.buffers(), strict=True):
        average.copy_(buffer)


@dataclass(frozen=True)
class NetworkConfig:
    """What it takes to build a generator and its discriminator; a checkpoint carries it.

    Args:
        img_resolution: side of the images, a power of two from 16 to 1024.
        img_channels: colour channels.
        z_dim: width of the latents.
        w_dim: width of the styles.
        channel_base: channels at resolution r are `channel_base / r` …
        channel_max: … and at most this many.
        mapping_layers: layers of the mapping network.
        conv_clamp: bound on the absolute value of every layer's output (256 for float16); None for no bound.
        mbstd_group_size: see `MinibatchStd`.
    """

    img_resolution: int
    img_channels: int = 3
    z_dim: int = 512
    w_dim: int = 512
    channel_base: int = 32768
    channel_max: int = 512
    mapping_layers: int = 8
    conv_clamp: float | None = None
    mbstd_group_size: int = 4

    def generator(
        self,
        dtype: torch.dtype = torch.float32,
        checkpointing: bool = False,
        float32_below: int = 0,
    ) -> Generator:
        """A generator with random weights; the arguments are those of `Generator`."""
        return Generator(
            z_dim=self.z_dim,
            w_dim=self.w_dim,
            img_resolution=self.img_resolution,
            img_channels=self.img_channels,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            mapping_layers=self.mapping_layers,
            conv_clamp=self.conv_clamp,
            dtype=dtype,
            checkpointing=checkpointing,
            float32_below=float32_below,
        )

    def discriminator(
        self,
        dtype: torch.dtype = torch.float32,
        checkpointing: bool = False,
        float32_below: int = 0,
    ) -> Discriminator:
        """A discriminator with random weights; the arguments are those of `Discriminator`."""
        return Discriminator(
            img_resolution=self.img_resolution,
            img_channels=self.img_channels,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            mbstd_group_size=self.mbstd_group_size,
            conv_clamp=self.conv_clamp,
            dtype=dtype,
            checkpointing=checkpointing,
            float32_below=float32_below,
        )
