"""One place where an op gets its schema, its kernel, its fake kernel and its gradient."""

import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    """Register `gpseg::<schema>` and return what to call.

    That calls the op, unless nobody but autograd stands between the call and the kernel: then the kernel, or its node of
    the graph. On its way through the dispatcher a call from Python is packed and unpacked twice, a tenth of the host's time
    for a small layer.

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
    function = _function(name, op, kernel, setup_context, backward)
    _library.impl(name, _autograd(name, op, function), "Autograd", with_keyset=True)
    _kernels[op] = kernel
    for device_type, key in _AUTOCAST_KEYS.items():
        _library.impl(name, _autocast(op, device_type, lowered), key)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling() or not nothing_between(args):
            return op(*args)
        return function.apply(*args, None) if _wants_graph(args) else kernel(*args)

    return call


_kernels: dict[Any, Callable[..., Any]] = {}


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Every op as plain PyTorch, as the eager backend composes it.

    For `torch.export.ExportedProgram.run_decompositions`, and with it for ONNX: the program then runs where gpseg
    is not installed.

    Returns:
        A function for each overload, with its arguments.
    """
    return {op: backends.use_backend("eager")(kernel) for op, kernel in _kernels.items()}


def _function(
    name: str,
    op: Any,
    kernel: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Any:
    """The op's node of a graph, as torch.library.register_autograd has it, in two ways different.

    That one fills arguments in that have defaults, at every call and in more time than all else takes here; ours have
    none. And it loses the tangents of forward mode without a word, which kernels below don't see any more, and what
    calls an op within vmap doesn't yet.

    The last argument is what is dispatched on, or None to call the kernel itself.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        *given, keyset = args
        output = kernel(*given) if keyset is None else _below_autograd(op, keyset, given)
        setup_context(ctx, tuple(given), output)
        return output

    def differentiate(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        ctx.needs_input_grad = ctx.needs_input_grad[: len(op._schema.arguments)]
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return *backward(ctx, *gradients), None

    functions = {"forward": staticmethod(forward), "backward": staticmethod(differentiate)}
    return type(name, (torch.autograd.Function,), functions)


def _autograd(name: str, op: Any, function: Any) -> Callable[..., Any]:
    """The autograd kernel, for calls that are dispatched."""

    def kernel(keyset: Any, *args: Any) -> Any:
        if forward_ad._current_level >= 0 and any(
            forward_ad.unpack_dual(a).tangent is not None for a in args if isinstance(a, Tensor)
        ):
            raise NotImplementedError(
                f"gpseg.{name} has no forward-mode derivative; use reverse mode"
            )
        if _wants_graph(args):
            return function.apply(*args, keyset)
        return _below_autograd(op, keyset, args)

    return kernel


def _below_autograd(op: Any, keyset: Any, args: Sequence[Any]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _wants_graph(args: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(a.requires_grad for a in args if isinstance(a, Tensor))


def _keys(names: Iterable[str]) -> int:
    """A set of dispatch keys as a number."""
    keys = [getattr(torch._C.DispatchKey, name) for name in names]
    return functools.reduce(
        lambda found, key: found.add(key), keys[1:], torch._C.DispatchKeySet(keys[0])
    ).raw_repr()


def _keys_in_force() -> tuple[int, int]:
    """What this thread adds to, and takes from, the keys of tensors: modes, transforms, tracers, autocast."""
    included = torch._C._dispatch_tls_local_include_set()
    return included.raw_repr(), torch._C._dispatch_tls_local_exclude_set().raw_repr()


with ThreadPoolExecutor(1) as _fresh:
    _NOTHING_IN_FORCE = _fresh.submit(_keys_in_force).result()
"""In a thread that has only begun; the one that imports this may be in the middle of something."""

_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter})
_PLAIN_KEYS = {
    _keys((device, "ADInplaceOrView", f"Autograd{device}", f"Autocast{device}"))
    for device in ("CPU", "CUDA")
}


def nothing_between(args: Sequence[Any]) -> bool:
    """Whether an op called with these arguments would go through autograd to its kernel and nowhere else.

    Not so in torch's modes and transforms, under autocast, forward mode, tracers and the profiler, which wants to see
    the op, nor for tensors of other classes or devices, in inference mode, or with a sign that is yet to be applied.
    """
    return (
        _keys_in_force() == _NOTHING_IN_FORCE
        and forward_ad._current_level < 0
        and not torch._C._len_torch_function_stack()
        and not torch.autograd._profiler_enabled()
        and all(
            type(a) in _PLAIN_TYPES and torch._C._dispatch_keys(a).raw_repr() in _PLAIN_KEYS
            for a in args
            if isinstance(a, Tensor)
        )
    )


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
