"""The one table of launch configurations, by kernel, element type, shape class and target."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

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
    """

    tile: Mapping[str, int] = field(default_factory=dict)
    warps: int = 4
    stages: int = 1

    @property
    def options(self) -> dict[str, int]:
        """What the compiler is told."""
        return {"num_warps": self.warps, "num_stages": self.stages}


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

_WALK = {"walk": 32, "programs": 2048}
"""A program takes at most so many tiles, if that leaves so many programs."""

_POINTWISE: tuple[Row, ...] = (
    # A tile is one row for each warp, 16 bytes for each lane: more would spill, and warps enough hide the latency.
    Row("bias_act_fwd_kernel", Configuration({"elements": 1024, "columns": 128}, warps=8)),
    Row("bias_act_fwd_kernel", Configuration({"elements": 2048, "columns": 256}, warps=8), HALF),
    Row("bias_act_bwd_kernel", Configuration({"elements": 512, "columns": 128, **_WALK})),
    Row("bias_act_bwd_kernel", Configuration({"elements": 1024, "columns": 256, **_WALK}), HALF),
    Row("bias_act_double_bwd_kernel", Configuration({"elements": 512, "columns": 128, **_WALK})),
    Row(
        "bias_act_double_bwd_kernel",
        Configuration({"elements": 1024, "columns": 256, **_WALK}),
        HALF,
    ),
)

_STRIP = {"rows": 32, "least_rows": 4, "programs": 512}

_UPFIRDN2D: tuple[Row, ...] = (
    # In planes the L1 cache serves each tap to each thread by itself, 128 bytes a cycle: lanes lie side by side.
    Row(
        "upfirdn2d_fwd_kernel",
        Configuration({**_STRIP, "elements": 256, "neighbours": 64, "vector_bytes": 4}),
        shape="planes",
    ),
    Row(
        "upfirdn2d_fwd_kernel",
        Configuration({**_STRIP, "elements": 512, "neighbours": 32, "vector_bytes": 16}),
        shape="channels_last",
    ),
    Row(
        "upfirdn2d_fwd_kernel",
        Configuration({**_STRIP, "elements": 1024, "neighbours": 32, "vector_bytes": 16}),
        HALF,
        shape="channels_last",
    ),
    Row(
        "upfirdn2d_generic_kernel",
        Configuration({"elements": 256, "neighbours": 64, "vector_bytes": 1}),
        shape="planes",
    ),
    Row(
        "upfirdn2d_generic_kernel",
        Configuration({"elements": 1024, "neighbours": 32, "vector_bytes": 16}),
        shape="channels_last",
    ),
)

_CONVOLUTION: tuple[Row, ...] = tuple(
    Row(kernel, configuration, dtypes, shape, platform, since)
    for kernel in ("modulated_conv_fwd_kernel", "modulated_conv_bwd_kernel", "modulated_conv_wgrad_kernel")
    for configuration, dtypes, shape, platform, since in (
        (Configuration({"BM": 128, "BN": 128, "BK": 32}, 8, 3), HALF, "", "", 0),
        (Configuration({"BM": 64, "BN": 64, "BK": 32}, 4, 3), frozenset(), "", "", 0),
    )
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
