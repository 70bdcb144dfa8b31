"""The one list of named problems: operators with sizes, for tests, benchmarks and documentation alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gpseg import ops
from gpseg.training.ada import SYM6

BINOMIAL = (1.0, 3.0, 3.0, 1.0)
"""StyleGAN2's resampling filter."""

UNEVEN = (1.0, 4.0, 3.0)
"""An odd number of taps, not symmetric: shows a mirrored filter and padding on the wrong side."""


@dataclass(frozen=True)
class Problem:
    """One call of an operator of `gpseg.ops`, or of a part of one as in `gpseg.selftest.parts`.

    Args:
        name: as tests, tables and documentation call it.
        op: the function's name in `gpseg.ops`.
        sizes: the tensors that it is called with, by argument name; all of them take gradients.
        options: its other arguments.
        taps: the resampling filter, 1-D or 2-D; None for none.
        separable: keep a 1-D filter 1-D; None leaves it to `setup_filter`.
    """

    name: str
    op: str
    sizes: Mapping[str, Sequence[int]]
    options: Mapping[str, Any] = field(default_factory=dict)
    taps: Sequence[float] | Sequence[Sequence[float]] | None = None
    separable: bool | None = None

    def tensors(
        self,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> dict[str, Tensor]:
        """The tensors by argument name, drawn from a normal distribution, the same for every dtype but rounded.

        Weights are scaled so that the result is of order 1. They are drawn where they are wanted, which is much
        faster for large ones on a GPU; kinds of devices draw different numbers.
        """
        generator = torch.Generator(device).manual_seed(seed)
        drawn = {}
        for name, size in self.sizes.items():
            t = torch.randn(*size, generator=generator, dtype=torch.float64, device=device)
            if name in ("weight", "w"):
                t = t / t[0].numel() ** 0.5
            drawn[name] = t.to(dtype)
        return drawn

    def arguments(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The arguments that are not in `tensors`, the filter among them, which is put on the device."""
        filter_name = "resample_filter" if self.op.startswith("modulated") else "f"
        if self.op == "bias_act" or (self.taps is None and self.op != "upfirdn2d"):
            return dict(self.options)
        f = None if self.taps is None else ops.setup_filter(self.taps, separable=self.separable)
        return {**self.options, filter_name: None if f is None else f.to(device)}

    def call(self, module: Any, tensors: Mapping[str, Tensor]) -> Tensor:
        """Call the operator as `module` has it: `gpseg.ops` or something that follows its signatures."""
        arguments = self.arguments(tensors["x"].device)
        y: Tensor = getattr(module, self.op)(**tensors, **arguments)
        return y


def _layer(
    n: int, i: int, o: int, size: int, k: int, up: int = 1, **options: Any
) -> dict[str, Any]:
    """Sizes and options of a synthesis layer whose output is `size` pixels wide."""
    return {
        "op": "modulated_conv2d_act",
        "sizes": {
            "x": (n, i, size // up, size // up),
            "weight": (o, i, k, k),
            "styles": (n, i),
            "bias": (o,),
            "noise": (size, size),
        },
        "options": {"up": up, "padding": k // 2, "flip_weight": up == 1, **options},
        "taps": BINOMIAL if up > 1 else None,
    }


SMALL = (
    Problem(
        "fir-none",
        "upfirdn2d",
        {"x": (2, 3, 5, 6)},
        {"up": 2, "padding": (1, 0, -1, 2), "gain": 3.0},
    ),
    Problem("fir-1d", "upfirdn2d", {"x": (2, 3, 7, 6)}, {"padding": 1, "gain": 0.5}, UNEVEN, True),
    Problem(
        "fir-2d-uneven",
        "upfirdn2d",
        {"x": (2, 2, 7, 6)},
        {"up": (2, 3), "down": (3, 1), "padding": (2, -1, 3, 1), "flip_filter": True},
        ((1.0, 2.0, 0.5), (3.0, -1.0, 2.0)),
    ),
    Problem("filter2d", "filter2d", {"x": (2, 3, 8, 9)}, {"flip_filter": True}, UNEVEN),
    Problem("upsample2d", "upsample2d", {"x": (2, 3, 6, 5)}, {}, BINOMIAL),
    Problem("upsample2d-1d", "upsample2d", {"x": (2, 9, 6, 5)}, {}, BINOMIAL, True),
    Problem("downsample2d", "downsample2d", {"x": (2, 3, 8, 10)}, {}, BINOMIAL),
    Problem("upsample2d-12", "upsample2d", {"x": (1, 2, 9, 8)}, {}, SYM6),
    Problem("downsample2d-12", "downsample2d", {"x": (1, 2, 16, 18)}, {"padding": 1}, SYM6),
    Problem("linear-clamp", "bias_act", {"x": (2, 5, 4, 3), "b": (5,)}, {"clamp": 0.8}),
    Problem("lrelu", "bias_act", {"x": (2, 5, 4, 3), "b": (5,)}, {"act": "lrelu", "clamp": 0.9}),
    Problem("relu", "bias_act", {"x": (2, 9, 4, 4), "b": (4,)}, {"act": "relu", "dim": 3}),
    Problem("tanh", "bias_act", {"x": (2, 9, 4, 4), "b": (2,)}, {"act": "tanh", "dim": 0}),
    Problem("sigmoid", "bias_act", {"x": (2, 9, 4, 4)}, {"act": "sigmoid", "gain": 2.0}),
    Problem("elu", "bias_act", {"x": (2, 5, 3, 4), "b": (5,)}, {"act": "elu", "clamp": 0.7}),
    Problem("selu", "bias_act", {"x": (2, 5, 3, 4), "b": (3,)}, {"act": "selu", "dim": -2}),
    Problem("softplus", "bias_act", {"x": (2, 5, 3, 4), "b": (5,)}, {"act": "softplus"}),
    Problem("swish", "bias_act", {"x": (2, 5, 3, 4), "b": (5,)}, {"act": "swish", "gain": -0.6}),
    Problem(
        "conv",
        "conv2d_resample",
        {"x": (2, 4, 6, 5), "w": (6, 2, 3, 3)},
        {"padding": 1, "groups": 2},
    ),
    Problem(
        "conv-up",
        "conv2d_resample",
        {"x": (2, 3, 5, 4), "w": (4, 3, 3, 3)},
        {"up": 2, "padding": 1},
        BINOMIAL,
    ),
    Problem(
        "conv-down",
        "conv2d_resample",
        {"x": (2, 3, 8, 7), "w": (4, 3, 3, 3)},
        {"down": 2, "padding": 1, "flip_weight": False},
        BINOMIAL,
    ),
    Problem(
        "conv-1x1-up", "conv2d_resample", {"x": (2, 3, 4, 4), "w": (5, 3, 1, 1)}, {"up": 2}, UNEVEN
    ),
    Problem(
        "modulated",
        "modulated_conv2d",
        {"x": (2, 3, 6, 5), "weight": (4, 3, 3, 3), "styles": (2, 3), "noise": (2, 1, 6, 5)},
        {"padding": 1},
    ),
    Problem(
        "modulated-down",
        "modulated_conv2d",
        {"x": (2, 3, 8, 6), "weight": (4, 3, 3, 3), "styles": (2, 3)},
        {"down": 2, "padding": 1, "demodulate": False, "flip_weight": False},
        BINOMIAL,
    ),
    Problem("layer", **_layer(2, 3, 4, 6, 3, clamp=1.2)),
    Problem("layer-up", **_layer(2, 3, 9, 8, 3, up=2, clamp=1.2)),
    Problem("layer-swish", **_layer(2, 3, 4, 8, 3, up=2, act="swish")),
    Problem("to-rgb", **_layer(2, 5, 3, 6, 1, demodulate=False, act="linear", clamp=1.0)),
)
"""Every operator in the variants that matter, small enough to test in all combinations."""

NAMED = (
    Problem("upsample2d-256", "upsample2d", {"x": (1, 64, 256, 256)}, {}, BINOMIAL),
    Problem("downsample2d-256", "downsample2d", {"x": (1, 64, 256, 256)}, {}, BINOMIAL),
    Problem("filter2d-256", "filter2d", {"x": (1, 64, 256, 256)}, {}, BINOMIAL),
    Problem("upsample2d-12-256", "upsample2d", {"x": (1, 3, 256, 256)}, {}, SYM6),
    Problem("downsample2d-12-256", "downsample2d", {"x": (1, 3, 512, 512)}, {}, SYM6),
    Problem(
        "bias_act-lrelu-clamp-256",
        "bias_act",
        {"x": (1, 64, 256, 256), "b": (64,)},
        {"act": "lrelu", "clamp": 256.0},
    ),
    Problem(
        "bias_act-swish-256", "bias_act", {"x": (1, 64, 256, 256), "b": (64,)}, {"act": "swish"}
    ),
    Problem("layer-64", **_layer(4, 64, 64, 64, 3, clamp=256.0)),
    Problem("layer-up-64", **_layer(4, 128, 64, 64, 3, up=2, clamp=256.0)),
    Problem("to-rgb-64", **_layer(4, 64, 3, 64, 1, demodulate=False, act="linear", clamp=256.0)),
    Problem("layer-256", **_layer(1, 32, 32, 256, 3, clamp=256.0)),
    Problem("layer-up-256", **_layer(1, 64, 32, 256, 3, up=2, clamp=256.0)),
    Problem(
        "conv-down-64",
        "conv2d_resample",
        {"x": (4, 64, 64, 64), "w": (128, 64, 3, 3)},
        {"down": 2, "padding": 1},
        BINOMIAL,
    ),
)
"""What training and inference spend their time on, at their sizes."""


ODD = (
    Problem("upsample2d-odd", "upsample2d", {"x": (2, 12, 35, 37)}, {}, BINOMIAL),
    Problem("downsample2d-even", "downsample2d", {"x": (2, 24, 40, 64)}, {}, BINOMIAL),
    Problem("filter2d-even", "filter2d", {"x": (2, 16, 32, 80)}, {}, BINOMIAL),
    Problem("upsample2d-12-odd", "upsample2d", {"x": (1, 9, 29, 33)}, {}, SYM6),
    Problem("downsample2d-12-even", "downsample2d", {"x": (1, 8, 64, 48)}, {}, SYM6),
    Problem(
        "lrelu-even",
        "bias_act",
        {"x": (2, 64, 24, 32), "b": (64,)},
        {"act": "lrelu", "clamp": 1.5},
    ),
    Problem("swish-odd", "bias_act", {"x": (3, 41, 17, 19), "b": (41,)}, {"act": "swish"}),
    Problem("layer-8", **_layer(1, 8, 8, 9, 3, clamp=1.2)),
    Problem("layer-wide", **_layer(2, 40, 72, 20, 3, act="swish")),
    Problem("layer-deep", **_layer(1, 160, 64, 12, 3, act="swish")),
    Problem("layer-1x1", **_layer(2, 24, 16, 15, 1, act="swish")),
    Problem("layer-up-even", **_layer(2, 32, 48, 24, 3, up=2, act="swish")),
    Problem("layer-up-8", **_layer(1, 16, 8, 14, 3, up=2, clamp=1.2)),
    Problem("to-rgb-8", **_layer(2, 32, 8, 18, 1, demodulate=False, act="linear", clamp=1.0)),
    Problem(
        "modulated-down-even",
        "modulated_conv2d",
        {"x": (2, 16, 16, 20), "weight": (24, 16, 3, 3), "styles": (2, 16)},
        {"down": 2, "padding": 1},
        BINOMIAL,
    ),
)
"""Beside SMALL: rows of whole 16-byte vectors and rows that are not, several tiles with a rest, and channels in eights,
which the tensor-core convolution takes; activations without a kink where many elements would lie at it."""


LARGE = (
    Problem("filter2d-large", "filter2d", {"x": (33, 64, 1024, 1024)}, {}, BINOMIAL),
    Problem(
        "bias_act-large", "bias_act", {"x": (33, 64, 1024, 1024)}, {"act": "lrelu", "clamp": 1.0}
    ),
)
"""More than 2³¹ elements, the last sample lying beyond."""


def _synthesis(size: int, n: int) -> tuple[Problem, ...]:
    """The layers of StyleGAN2 (configuration F) whose output is `size` pixels wide, at batch n."""
    wide, narrow = (min(512, 32768 // s) for s in (size // 2, size))
    return (
        Problem(f"layer-{size}-batch-{n}", **_layer(n, narrow, narrow, size, 3, clamp=256.0)),
        Problem(f"layer-up-{size}-batch-{n}", **_layer(n, wide, narrow, size, 3, 2, clamp=256.0)),
        Problem(
            f"to-rgb-{size}-batch-{n}",
            **_layer(n, narrow, 3, size, 1, demodulate=False, act="linear", clamp=256.0),
        ),
    )


LAYERS = tuple(p for n in (8, 16) for size in (64, 256, 512, 1024) for p in _synthesis(size, n))
"""StyleGAN2's synthesis layers, from those ruled by arithmetic to those ruled by traffic."""


def _epilogue(n: int, o: int, size: int) -> dict[str, Any]:
    """Sizes and options of `fir_epilogue` as the synthesis layer with up = 2 that is `size` pixels wide has it."""
    return {
        "op": "fir_epilogue",
        "sizes": {
            "x": (n, o, size + 1, size + 1),
            "demodulation": (n, o),
            "bias": (o,),
            "noise": (size, size),
        },
        "options": {"clamp": 256.0},
        "taps": BINOMIAL,
    }


PARTS = (
    Problem("epilogue-up-64", **_epilogue(4, 64, 64)),
    Problem("epilogue-up-256", **_epilogue(1, 32, 256)),
)
"""What follows the convolution in `layer-up-64` and `layer-up-256`: there is no operator for it alone, and no gradient."""


def _family(name: str, size: int, n: int, **described: Any) -> Problem:
    return Problem(f"{name}, {size} px, batch {n}", **described)


FAMILIES: dict[str, Callable[[int, int], Problem]] = {
    "upsample2d": lambda size, n: _family(
        "upsample2d", size, n, op="upsample2d", sizes={"x": (n, 32, size, size)}, taps=BINOMIAL
    ),
    "downsample2d": lambda size, n: _family(
        "downsample2d", size, n, op="downsample2d", sizes={"x": (n, 32, size, size)}, taps=BINOMIAL
    ),
    "filter2d": lambda size, n: _family(
        "filter2d", size, n, op="filter2d", sizes={"x": (n, 32, size, size)}, taps=BINOMIAL
    ),
    "bias_act": lambda size, n: _family(
        "bias_act",
        size,
        n,
        op="bias_act",
        sizes={"x": (n, 32, size, size), "b": (32,)},
        options={"act": "lrelu", "clamp": 256.0},
    ),
    "layer": lambda size, n: _family("layer", size, n, **_layer(n, 32, 32, size, 3, clamp=256.0)),
    "layer-up": lambda size, n: _family(
        "layer-up", size, n, **_layer(n, 32, 32, size, 3, up=2, clamp=256.0)
    ),
    "to-rgb": lambda size, n: _family(
        "to-rgb", size, n, **_layer(n, 32, 3, size, 1, demodulate=False, act="linear", clamp=256.0)
    ),
}
"""By name, problems of 32 channels at any size in pixels (of the images that an operator takes, of those that a layer
gives) and batch: how time and memory grow."""


BY_NAME = {p.name: p for p in (*SMALL, *ODD, *NAMED, *PARTS, *LARGE, *LAYERS)}


def by_name(name: str) -> Problem:
    """The problem of that name.

    Raises:
        KeyError: there is none.
    """
    return BY_NAME[name]
