"""The kernels that csrc/ops.cpp binds, as a backend: tensors made dense, results allocated."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gpseg.backends import convolution
from gpseg.backends.contract import Epilogue, Pair
from gpseg.backends.demodulation import EPSILON
from gpseg.backends.devices import capability_of
from gpseg.backends.layout import (
    accumulate_dtype,
    empty_in_layout_of,
    flattened,
    for_sums,
    in_layout_of,
    memory_format_of,
)
from gpseg.backends.resampling import Convolution, Padding, filter_taps, filtered_size

_CHANNEL_MULTIPLE = 8
_MOST_STYLES = 8192
_ALIGNMENT = 16
"""csrc/cuda/kernels.h: what the tensor-core kernel needs of channels, and of where tensors start, in bytes."""


class CompiledBackend:
    """A library of kernels; functions as in `gpseg.backends.contract.Backend`.

    Args:
        name: as in `gpseg.backends.NAMES`; csrc/ops.cpp registers the kernels under gpseg_<name>.
        devices: types of the devices they serve.
        load: loads the library; returns None, or one line saying why it is off on this device, or on any.
        empty: gives an uninitialised result of the given size, of x's type and in its layout.
        on_gpu: they are the CUDA kernels, wherever they run: filters stay where they are, in the type of the
            sums, and there is a tensor-core convolution.
    """

    DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})

    def __init__(
        self,
        name: str,
        devices: tuple[str, ...],
        load: Callable[[torch.device | None], str | None],
        empty: Callable[[Tensor, Sequence[int]], Tensor] = empty_in_layout_of,
        on_gpu: bool = False,
    ) -> None:
        self.NAME = name
        self.DEVICES = devices
        self._kernels: Any = getattr(torch.ops, f"gpseg_{name}")
        self._load = load
        self._empty = empty
        self._on_gpu = on_gpu

    def available(self, device: torch.device | None = None) -> str | None:
        """None if the kernels can be used on this device, or on any, else one line that says why not."""
        return self._load(device)

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
        x, y = in_layout_of(x, x), self._empty(x, x.shape)
        flat = flattened(x, dim)
        self._kernels.bias_act.default(x, for_sums(b, x), *flat, act, alpha, gain, clamp, y)
        return y

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
        dy, x = in_layout_of(dy, x), in_layout_of(x, x)
        dx, db = self._empty(x, x.shape), _sums_for(b, x)
        self._kernels.bias_act_backward.default(
            dy, x, for_sums(b, x), *flattened(x, dim), act, alpha, gain, clamp, dx, db
        )
        return dx, _as_gradient(db, b)

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
        dy, x = in_layout_of(dy, x), in_layout_of(x, x)
        ddy, d2x = self._empty(x, x.shape), self._empty(x, x.shape)
        d2b = _sums_for(b, x)
        self._kernels.bias_act_double_backward.default(
            None if ddx is None else in_layout_of(ddx, x),
            for_sums(ddb, x),
            dy,
            x,
            for_sums(b, x),
            *flattened(x, dim),
            act,
            alpha,
            gain,
            clamp,
            ddy,
            d2x,
            d2b,
        )
        return ddy, d2x, _as_gradient(d2b, b)

    def scale_channels(self, x: Tensor, s: Tensor) -> Tensor:
        """x · s for `x [N, C, H, W]`, `s [N, C]`."""
        return self.demod_act(x, Epilogue(d=s))

    def scale_channels_backward(self, x: Tensor, s: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients (dx, ds) of `scale_channels`, in one pass."""
        dx, ds, _, _ = self.demod_act_backward(dy, x, Epilogue(d=s))
        assert ds is not None
        return dx, ds

    def demod_act(self, c: Tensor, epilogue: Epilogue, overwrites: bool = False) -> Tensor:
        """The epilogue of `c [N, O, H, W]`, on the CPU in its place if it may be."""
        c = in_layout_of(c, c)
        # CUDA's kernels read through a cache that does not see what they write
        y = c if overwrites and not self._on_gpu else self._empty(c, c.shape)
        self._kernels.demod_act.default(c, *flat(epilogue, c), y)
        return y

    def demod_act_backward(
        self,
        dy: Tensor,
        c: Tensor,
        epilogue: Epilogue,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Gradients (dc, dd, dnoise, db) of `demod_act`; None where the input is None."""
        dc = self._empty(c, c.shape)
        d, noise, b, *_ = epilogue
        dd, dnoise, db = _sums_for(d, c), _sums_for(noise, c), _sums_for(b, c)
        self._kernels.demod_act_backward.default(
            in_layout_of(dy, c),
            in_layout_of(c, c),
            *flat(epilogue, c),
            dc,
            dd,
            dnoise,
            db,
        )
        return dc, _as_gradient(dd, d), _as_gradient(dnoise, noise), _as_gradient(db, b)

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
        """Upsample, pad, filter and downsample `x [N, C, H, W]` in one polyphase pass."""
        y = self._filtered_like(x, f, up, down, padding)
        self._kernels.upfirdn2d.default(
            in_layout_of(x, x), self._taps(f, x), up, down, padding, flip_filter, gain, y
        )
        return y

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
        y = self._filtered_like(x, f, up, down, padding)
        c = self._empty(x, y.shape) if keep else None
        self._kernels.upfirdn2d_demod_act.default(
            in_layout_of(x, x),
            self._taps(f, x),
            up,
            down,
            padding,
            flip_filter,
            fir_gain,
            *flat(epilogue, x),
            y,
            c,
        )
        return y, c

    def demodulation(self, weight: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """W2 and d, in one kernel."""
        w2 = torch.empty(weight.shape[:2], dtype=s.dtype, device=s.device)
        d = torch.empty((s.shape[0], weight.shape[0]), dtype=s.dtype, device=s.device)
        self._kernels.demodulation.default(
            in_layout_of(weight, weight), s.contiguous(), EPSILON, w2, d
        )
        return w2, d

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
        """Add what d's gradient gives to those of s and weight, in one kernel."""
        self._kernels.demodulation_backward.default(
            in_layout_of(weight, weight), s.contiguous(), w2, d, dd, ds, dweight
        )

    conv2d = staticmethod(convolution.conv2d)
    conv2d_weight_grad = staticmethod(convolution.conv2d_weight_grad)

    def fuses(self, x: Tensor, w: Tensor, conv: Convolution, direction: str) -> bool:
        """Whether there is a fused kernel: channels_last half types, channels in eights, at most 3×3; not for weights.

        One that scales x keeps the styles in shared memory, which bounds their channels.
        """
        return (
            self._on_gpu
            and direction != "weight_grad"
            and x.dtype in (torch.float16, torch.bfloat16)
            and memory_format_of(x) == torch.channels_last
            and x.data_ptr() % _ALIGNMENT == 0
            and w.shape[0] % _CHANNEL_MULTIPLE == w.shape[1] % _CHANNEL_MULTIPLE == 0
            and (direction != "forward" or x.shape[1] <= _MOST_STYLES)
            and max(w.shape[2:]) <= 3
            and conv.stride <= 2
            and (x.device.type != "cuda" or capability_of(x.device) >= (8, 0))
        )

    def fuses_gradients(self, x: Tensor, w: Tensor, conv: Convolution) -> bool:
        """There is no such kernel."""
        return False

    def fused_conv_gradients(
        self, dc: Tensor, w: Tensor, conv: Convolution, x: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """There is none."""
        raise NotImplementedError

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
        """The epilogue of c = conv2d(s · x, w) in one kernel, and c too if `keep`."""
        y = self._empty(x, size)
        c = self._empty(x, y.shape) if keep else None
        self._kernels.fused_conv.default(
            in_layout_of(x, x),
            _aligned(convolution.outputs_first(w, conv.transposed)),
            for_sums(s, x),
            conv.stride,
            conv.padding,
            conv.transposed,
            *flat(epilogue, x),
            y,
            c,
            None,
            None,
        )
        return y, c

    def fused_conv_input_grad(
        self, dc: Tensor, w: Tensor, conv: Convolution, x: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients (dx, ds) of c = conv2d(s · x, w), in one kernel; conv and w are the forward's."""
        dx, ds = self._empty(x, x.shape), _sums_for(s, x)
        self._kernels.fused_conv.default(
            in_layout_of(dc, x),
            _aligned(convolution.outputs_first(w, not conv.transposed)),
            None,
            conv.stride,
            conv.padding,
            not conv.transposed,
            *flat(Epilogue(d=s), x),
            dx,
            None,
            in_layout_of(x, x),
            ds,
        )
        assert ds is not None
        return dx, ds

    def fused_conv_weight_grad(
        self, dc: Tensor, w_size: Sequence[int], conv: Convolution, x: Tensor, s: Tensor
    ) -> Tensor:
        """There is none."""
        raise NotImplementedError

    def _filtered_like(
        self, x: Tensor, f: Tensor | None, up: Pair, down: Pair, padding: Padding
    ) -> Tensor:
        """An uninitialised tensor for what upfirdn2d makes of x."""
        return self._empty(x, filtered_size(x.shape, filter_taps(f), up, down, padding))

    def _taps(self, f: Tensor | None, x: Tensor) -> Tensor | None:
        if f is None:
            return None
        return f.to(accumulate_dtype(x.dtype) if self._on_gpu else torch.float64).contiguous()


def flat(epilogue: Epilogue, x: Tensor) -> tuple[Any, ...]:
    """An epilogue as arguments of a kernel on x."""
    d, noise, b, *activation = epilogue
    return for_sums(d, x), for_sums(noise, x), for_sums(b, x), *activation


def _aligned(t: Tensor) -> Tensor:
    """t, copied if it starts where the tensor-core kernel can't read it, as a view into a larger tensor may."""
    return t if t.data_ptr() % _ALIGNMENT == 0 else t.clone()


def _sums_for(t: Tensor | None, x: Tensor) -> Tensor | None:
    """Where a kernel on x puts the gradient of the side input t; None if there is none."""
    if t is None:
        return None
    return torch.empty(t.shape, dtype=accumulate_dtype(x.dtype), device=t.device)


def _as_gradient(sums: Tensor | None, t: Tensor | None) -> Tensor | None:
    """What `_sums_for(t, …)` holds, as a gradient of t."""
    return None if sums is None or t is None else sums.to(t.dtype)
