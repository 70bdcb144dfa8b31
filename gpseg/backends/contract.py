"""What a backend is: its declarations, and the passes that every operator is composed of.

`gpseg.backends.eager` is the reference. Activations and their parameters are filled in; a negative clamp means none.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gpseg.backends.resampling import Convolution, Padding

Pair = tuple[int, int]
"""(x, y)."""

DIRECTIONS = ("forward", "input_grad", "weight_grad")
"""What a convolution is computed for: its result, its gradient with respect to its input, and to its weight."""


class Epilogue(NamedTuple):
    """clamp(gain · act(d · c + noise + b)), what follows a convolution or a filter whose result is `c [N, O, H, W]`.

    Args:
        d: `[N, O]` or None.
        noise: `[N|1, 1, H, W]`, `[H, W]` or None.
        b: `[O]` or None.
        act, alpha, gain, clamp: activation with its parameters, filled in; a negative clamp means none.
    """

    d: Tensor | None = None
    noise: Tensor | None = None
    b: Tensor | None = None
    act: str = "linear"
    alpha: float = 0.0
    gain: float = 1.0
    clamp: float = -1.0

    @property
    def does_nothing(self) -> bool:
        """The result is c itself."""
        sides = self.d is self.noise is self.b is None
        return sides and self.act == "linear" and self.gain == 1 and self.clamp < 0


class Backend(Protocol):
    """One implementation of the passes; results are new tensors in the layout of the first input."""

    @property
    def NAME(self) -> str:
        """As in `gpseg.backends.NAMES`."""

    @property
    def DEVICES(self) -> tuple[str, ...] | None:
        """Types of the devices it serves; None: any."""

    @property
    def DTYPES(self) -> frozenset[torch.dtype]:
        """Element types it serves."""

    def available(self, device: torch.device | None = None) -> str | None:
        """None if it can be used on this device, of a type it serves, or on any; else one line that says why not."""

    def upfirdn2d(
        self,
        x: Tensor,
        f: Tensor | None,
        up: Pair,
        down: Pair,
        padding: Padding,
        flip_filter: bool,
        gain: float,
    ) -> Tensor:
        """Upsample, pad, filter and downsample `x [N, C, H, W]`."""

    def bias_act(
        self,
        x: Tensor,
        b: Tensor | None,
        dim: int,
        act: str,
        alpha: float,
        gain: float,
        clamp: float,
    ) -> Tensor:
        """y = clamp(gain · act(x + b))."""

    def bias_act_backward(
        self,
        dy: Tensor,
        x: Tensor,
        b: Tensor | None,
        dim: int,
        act: str,
        alpha: float,
        gain: float,
        clamp: float,
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients (dx, db) of `bias_act`; db is None without a bias."""

    def bias_act_double_backward(
        self,
        ddx: Tensor | None,
        ddb: Tensor | None,
        dy: Tensor,
        x: Tensor,
        b: Tensor | None,
        dim: int,
        act: str,
        alpha: float,
        gain: float,
        clamp: float,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients with respect to (dy, x, b) of <dx, ddx> + <db, ddb>, the outputs of the backward."""

    def scale_channels(self, x: Tensor, s: Tensor) -> Tensor:
        """x · s for `x [N, C, H, W]`, `s [N, C]`."""

    def scale_channels_backward(self, x: Tensor, s: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients (dx, ds) of `scale_channels`, in one pass."""

    def demod_act(self, c: Tensor, epilogue: Epilogue, overwrites: bool = False) -> Tensor:
        """The epilogue of `c [N, O, H, W]`; `overwrites`: nobody wants c any more, so the result may take its place."""

    def demod_act_backward(
        self,
        dy: Tensor,
        c: Tensor,
        epilogue: Epilogue,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Gradients (dc, dd, dnoise, db) of `demod_act`; None where the input is None."""

    def upfirdn2d_demod_act(
        self,
        x: Tensor,
        f: Tensor | None,
        up: Pair,
        down: Pair,
        padding: Padding,
        flip_filter: bool,
        fir_gain: float,
        epilogue: Epilogue,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """`demod_act(upfirdn2d(x, …), …)` in one pass over memory, and the filter's result c too if `keep`."""

    def demodulation(self, weight: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """W2 `[O, I]` of `weight [O, I, kh, kw]` and d `[N, O]` for `s [N, I]`, as in `gpseg.backends.demodulation`.

        s and both results are in the accumulation type, and both results contiguous.
        """

    def demodulation_backward(
        self,
        weight: Tensor,
        s: Tensor,
        w2: Tensor,
        d: Tensor,
        dd: Tensor,
        ds: Tensor | None,
        dweight: Tensor | None,
    ) -> None:
        """Add what d's gradient dd gives to those of s and weight, in their place."""

    def conv2d(
        self,
        x: Tensor,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> Tensor:
        """As `gpseg.backends.convolution.conv2d`, which is torch's: that, or something faster."""

    def conv2d_weight_grad(
        self,
        x: Tensor,
        dy: Tensor,
        size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        groups: int,
    ) -> Tensor:
        """As `gpseg.backends.convolution.conv2d_weight_grad`."""

    def fuses(self, x: Tensor, w: Tensor, conv: Convolution, direction: str) -> bool:
        """Whether there is a fused kernel for this convolution c = conv2d(s · x, w), in a direction of `DIRECTIONS`."""

    def fused_conv(
        self,
        x: Tensor,
        w: Tensor,
        conv: Convolution,
        size: Sequence[int],
        s: Tensor | None,
        epilogue: Epilogue,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """The epilogue of c = conv2d(s · x, w) in one kernel, and c too if `keep`.

        `w` is as torch's (transposed) convolution wants it; `size [N, O, outH, outW]` settles what a strided
        convolution's gradient can't tell from its input.
        """

    def fused_conv_input_grad(
        self, dc: Tensor, w: Tensor, conv: Convolution, x: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients (dx, ds) of c = conv2d(s · x, w), in one kernel; conv and w are the forward's."""

    def fused_conv_weight_grad(
        self, dc: Tensor, w_size: Sequence[int], conv: Convolution, x: Tensor, s: Tensor
    ) -> Tensor:
        """Gradient of c = conv2d(s · x, w) with respect to w, of the given size, in one kernel; conv is the forward's."""

    def fuses_gradients(self, x: Tensor, w: Tensor, conv: Convolution) -> bool:
        """Whether one kernel has all gradients of this convolution c = conv2d(s · x, w)."""

    def fused_conv_gradients(
        self, dc: Tensor, w: Tensor, conv: Convolution, x: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients (dx, ds, dw) of c = conv2d(s · x, w), all in one kernel; conv and w are the forward's."""
