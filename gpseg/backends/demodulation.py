"""d = rsqrt(styles² @ W2ᵀ + ε) of a modulated convolution, W2[o, i] = Σ weight² over the taps, and its gradient."""

import torch
from torch import Tensor

from gpseg.backends.layout import accumulate_dtype

EPSILON = 1e-8
"""Under the root, as published."""


def squared_norms(weight: Tensor) -> Tensor:
    """W2 `[O, I]` of `weight [O, I, kh, kw]`, in the accumulation type."""
    return weight.to(accumulate_dtype(weight.dtype)).square().sum([2, 3])


def inverse_norms(w2: Tensor, s: Tensor) -> Tensor:
    """d `[N, O]` for W2 `[O, I]` and styles `[N, I]`."""
    return (s.square() @ w2.t() + EPSILON).rsqrt()


def demodulation(weight: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """W2 `[O, I]` and d `[N, O]` for styles `[N, I]` in the accumulation type."""
    # In a reduction that leaves no squares in memory; not to be differentiated, being flat at 0.
    norms = torch.linalg.vector_norm(weight, dim=(2, 3), dtype=accumulate_dtype(weight.dtype))
    w2 = norms.square_().contiguous()
    return w2, inverse_norms(w2, s)


def demodulation_backward(
    weight: Tensor,
    s: Tensor,
    w2: Tensor,
    d: Tensor,
    dd: Tensor,
    ds: Tensor | None,
    dweight: Tensor | None,
) -> None:
    """Add what d's gradient dd gives to those of s and weight, in their place."""
    g = d.pow(3).mul_(dd)  # -2 times the gradient of what is under the root
    if ds is not None:
        ds.addcmul_(s, g @ w2, value=-1)
    if dweight is not None:
        dweight.addcmul_(weight, (g.t() @ s.square())[:, :, None, None], value=-1)
