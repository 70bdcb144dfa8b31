"""The one table of launch configurations, by kernel, element type, shape class and target."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

Target = tuple[str, int]
"""What is compiled for: ("cuda", 90) for compute capability 9.0, ("hip", 0) for AMD's GPUs."""


@dataclass(frozen=True)
class Configuration:
    """How a kernel is cut and compiled.

    Args:
        tile: sizes that the kernel's module knows by name: constexpr arguments, or the budget it makes them of.
        warps: of a program.
        stages: of the software pipeline of loops.
        registers: the most of a thread; None: the compiler's choice, which may be to spill a few for occupancy. NVIDIA
            only.
    """

    tile: Mapping[str, int] = field(default_factory=dict)
    warps: int = 4
    stages: int = 1
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told."""
        limit = {} if self.registers is None else {"maxnreg": self.registers}
        return {"num_warps": self.warps, "num_stages": self.stages, **limit}


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        kernel: name, as the module's function has it.
        configuration: taken where the line holds.
        dtypes: element types it holds for; none: all.
        shape: shape class it holds for, as the kernel's module names it; "": all.
        platform: "cuda" or "hip"; "": both.
        since: the least compute capability, times ten.
    """

    kernel: str
    configuration: Configuration
    dtypes: frozenset[torch.dtype] = frozenset()
    shape: str = ""
    platform: str = ""
    since: int = 0

    def holds(self, dtype: torch.dtype, shape: str, target: Target) -> bool:
        """Whether it holds for this type, shape class and target."""
        platform, capability = target
        return (
            (not self.dtypes or dtype in self.dtypes)
            and self.shape in ("", shape)
            and self.platform in ("", platform)
            and self.since <= capability
        )


HALF = frozenset({torch.float16, torch.bfloat16})
DOUBLE = frozenset({torch.float64})

_WALK = {"walk": 32, "programs": 2048}
"""A program takes at most so many tiles, if that leaves so many programs."""

_POINTWISE: tuple[Row, ...] = (
    # A tile is one row for each warp, 16 bytes for each lane: more would spill, and warps enough hide the latency.
    Row("bias_act_fwd_kernel", Configuration({"elements": 1024, "columns": 128, **_WALK}, warps=8)),
    Row(
        "bias_act_fwd_kernel",
        Configuration({"elements": 2048, "columns": 256, **_WALK}, warps=8),
        HALF,
    ),
    Row("bias_act_bwd_kernel", Configuration({"elements": 512, "columns": 128, **_WALK})),
    Row("bias_act_bwd_kernel", Configuration({"elements": 1024, "columns": 256, **_WALK}), HALF),
    Row("bias_act_bwd_kernel", Configuration({"elements": 256, "columns": 128, **_WALK}), DOUBLE),
    Row("bias_act_double_bwd_kernel", Configuration({"elements": 512, "columns": 128, **_WALK})),
    Row(
        "bias_act_double_bwd_kernel",
        Configuration({"elements": 1024, "columns": 256, **_WALK}),
        HALF,
    ),
    Row(
        "bias_act_double_bwd_kernel",
        Configuration({"elements": 2048, "columns": 256, **_WALK}, warps=8),
        HALF,
        platform="cuda",
        since=120,
    ),
    # AMD's warps have 64 lanes
    *(
        Row(
            kernel,
            Configuration(
                {"elements": warps * 16 * 64 // size, "columns": 16 * 64 // size, **_WALK}, warps
            ),
            dtypes,
            platform="hip",
        )
        for kernel, warps in (
            ("bias_act_fwd_kernel", 8),
            ("bias_act_bwd_kernel", 4),
            ("bias_act_double_bwd_kernel", 4),
        )
        for dtypes, size in ((frozenset({torch.float32}), 4), (HALF, 2))
    ),
)

_STRIP = {"rows": 32, "least_rows": 4, "programs": 512}
"""Rows of a strip, and the fewest to have so many programs."""

_LINE = {"neighbours": 64, "vector_bytes": 4}
"""Planes: the L1 cache gives a warp 128 bytes at once, and each thread reads each tap's column by itself. So the lanes'
columns are side by side, and a warp stores whole lines too; wider stores would have it read from several lines."""

_PIXEL = {"neighbours": 32, "vector_bytes": 16}
"""channels_last: whole sectors of channels, and many columns of pixels, whose taps overlap."""

_UPFIRDN2D: tuple[Row, ...] = (
    Row(
        "upfirdn2d_fwd_kernel",
        Configuration({**_STRIP, **_LINE, "elements": 128}, warps=2),
        shape="planes",
    ),
    Row(
        "upfirdn2d_fwd_kernel",
        Configuration({**_STRIP, **_LINE, "elements": 256}),
        HALF,
        "planes",
    ),
    Row(
        "upfirdn2d_fwd_kernel",
        Configuration({**_STRIP, **_LINE, "elements": 128}),
        DOUBLE,
        "planes",
    ),
    Row(
        "upfirdn2d_fwd_kernel",
        Configuration({**_STRIP, **_PIXEL, "elements": 1024}, warps=8),
        shape="channels_last",
    ),
    Row(
        "upfirdn2d_fwd_kernel",
        Configuration({**_STRIP, **_PIXEL, "elements": 1024}),
        HALF,
        "channels_last",
    ),
    Row(
        "upfirdn2d_fwd_kernel",
        Configuration({**_STRIP, **_PIXEL, "elements": 256}),
        DOUBLE,
        "channels_last",
    ),
    # a warp of AMD's has 64 lanes: half the warps, and each thread still moves 16 bytes
    Row(
        "upfirdn2d_fwd_kernel",
        Configuration({**_STRIP, **_PIXEL, "elements": 1024}),
        shape="channels_last",
        platform="hip",
    ),
    Row(
        "upfirdn2d_fwd_kernel",
        Configuration({**_STRIP, **_PIXEL, "elements": 1024}, warps=2),
        HALF,
        "channels_last",
        "hip",
    ),
    Row(
        "upfirdn2d_fwd_kernel",
        Configuration({**_STRIP, **_PIXEL, "elements": 256}, warps=2),
        DOUBLE,
        "channels_last",
        "hip",
    ),
    Row("upfirdn2d_generic_kernel", Configuration({**_LINE, "elements": 512, "vector_bytes": 1})),
    Row(
        "upfirdn2d_generic_kernel",
        Configuration({**_PIXEL, "elements": 512}),
        shape="channels_last",
    ),
    Row(
        "upfirdn2d_generic_kernel",
        Configuration({**_PIXEL, "elements": 1024}),
        DOUBLE,
        "channels_last",
    ),
    Row(
        "upfirdn2d_generic_kernel",
        Configuration({**_PIXEL, "elements": 512, "vector_bytes": 8}),
        HALF,
        "channels_last",
    ),
)

_PRODUCTS = (
    "modulated_conv_fwd_kernel",
    "modulated_conv_bwd_kernel",
    "modulated_conv_wgrad_kernel",
)

_PRODUCT_TILES = {
    "large": (128, 128, 8),
    "64 columns": (128, 64, 4),
    "32 columns": (128, 32, 4),
    "few columns": (128, 16, 4),
    "few rows": (64, 64, 4),
}
"""Rows and columns of a program's tile, and its warps, by shape class of a product of matrices."""


def _products(depth: int, stages: int, least_warps: int = 1, **where: Any) -> Iterator[Row]:
    """Lines for the products of matrices, so deep at each step of the sum."""
    for kernel, (shape, (m, n, warps)) in product(_PRODUCTS, _PRODUCT_TILES.items()):
        registers = None if where.get("platform") == "hip" else 255
        configuration = Configuration(
            {"BM": m, "BN": n, "BK": depth}, max(warps, least_warps), stages, registers
        )
        yield Row(kernel, configuration, shape=shape, **where)


_CONVOLUTION: tuple[Row, ...] = (
    *_products(
        16, 3, 8
    ),  # without tensor cores, where float32 must be exact, registers hold no more
    *(  # nor, with the addresses of both images, sums for larger tiles
        Row(
            "modulated_conv_wgrad_kernel",
            Configuration({"BM": 64, "BN": columns, "BK": 16}, 8, 3, 255),
            frozenset({torch.float32}),
            shape,
            "cuda",
        )
        for shape, columns in (("large", 128), ("64 columns", 64))
    ),
    *_products(32, 4, dtypes=HALF),
    *_products(64, 3, dtypes=HALF, platform="cuda", since=90),  # operands in shared memory
    *_products(32, 4, dtypes=HALF, platform="cuda", since=120),  # in registers again
    *_products(16, 2, platform="hip"),
    *_products(32, 2, dtypes=HALF, platform="hip"),
)

TABLE = (*_POINTWISE, *_UPFIRDN2D, *_CONVOLUTION)
"""Later lines go before earlier ones."""


@functools.lru_cache(maxsize=1024)  # every launch asks
def configuration(kernel: str, dtype: torch.dtype, shape: str, target: Target) -> Configuration:
    """The configuration of the last line of the table that holds.

    Raises:
        LookupError: there is none.
    """
    for row in reversed(TABLE):
        if row.kernel == kernel and row.holds(dtype, shape, target):
            return row.configuration
    raise LookupError(f"no configuration for {kernel}, {dtype}, {shape!r}, {target}")
