"""One place where an op gets its schema, its kernel, its fake kernel and its gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gpseg import backends

_library = torch.library.Library("gpseg", "DEF")


def register(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    lowered: int = 0,
) -> Any:
    """Register `gpseg::<schema>` and return the overload to call.

    Args:
        schema: name, arguments and results in torch's schema language, without defaults.
        kernel: serves real tensors of any device; it chooses the backend.
        fake: gives results of the right size, type and strides without computing.
        setup_context: keeps for the gradient what it needs.
        backward: the gradient, made of registered ops; it runs in the types of its forward, whatever autocast is
            in force by then.
        lowered: how many of the first arguments autocast brings to its type, as it does with a convolution's;
            the others, and the ops where it is 0, keep theirs.
    """
    assert "=" not in schema, "the autograd kernel fills no defaults in"
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gpseg::{name}", fake, lib=_library)
    op = getattr(torch.ops.gpseg, name).default
    _library.impl(name, _autograd(name, op, setup_context, backward), "Autograd", with_keyset=True)
    _kernels[op] = kernel
    for device_type, key in _AUTOCAST_KEYS.items():
        _library.impl(name, _autocast(op, device_type, lowered), key)
    return op


_kernels: dict[Any, Callable[..., Any]] = {}


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Every op as plain PyTorch, as the eager backend composes it.

    For `torch.export.ExportedProgram.run_decompositions`, and with it for ONNX: the program then runs where gpseg
    is not installed.

    Returns:
        A function for each overload, with its arguments.
    """
    return {op: backends.use_backend("eager")(kernel) for op, kernel in _kernels.items()}


def _autograd(
    name: str, op: Any, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """The autograd kernel: as torch.library.register_autograd has it, in two ways different.

    That one fills arguments in that have defaults, at every call and in more time than all else takes here; ours have
    none. And it loses the tangents of forward mode without a word, which kernels below don't see any more, and what
    calls an op within vmap doesn't yet.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        *given, keyset = args
        with torch._C._AutoDispatchBelowAutograd():
            output = op.redispatch(keyset & torch._C._after_autograd_keyset, *given)
            setup_context(ctx, tuple(given), output)
        return output

    def differentiate(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        ctx.needs_input_grad = ctx.needs_input_grad[: len(op._schema.arguments)]
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return *backward(ctx, *gradients), None

    functions = {"forward": staticmethod(forward), "backward": staticmethod(differentiate)}
    function: Any = type(name, (torch.autograd.Function,), functions)

    def kernel(keyset: Any, *args: Any) -> Any:
        if forward_ad._current_level >= 0 and any(
            forward_ad.unpack_dual(a).tangent is not None for a in args if isinstance(a, Tensor)
        ):
            raise NotImplementedError(
                f"gpseg.{name} has no forward-mode derivative; use reverse mode"
            )
        if torch.is_grad_enabled() and any(a.requires_grad for a in args if isinstance(a, Tensor)):
            return function.apply(*args, keyset)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    return kernel


_AUTOCAST_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}

_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU).add(
    torch._C.DispatchKey.AutocastCUDA
)


def _autocast(op: Any, device_type: str, lowered: int) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        first = in_autocast_dtype(device_type, *args[:lowered])
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):  # nor is anything inside the op cast
            return op(*first, *args[lowered:])

    return kernel


def in_autocast_dtype(device_type: str, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the type that autocast asks for; as they are if it is off or one of them is float64."""
    on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    if not on or torch.float64 in [t.dtype for t in tensors]:
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(t.to(dtype) for t in tensors)
