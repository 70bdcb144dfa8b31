"""One place where an op gets its schema, its kernel, its fake kernel and its gradient."""

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("gpseg", "DEF")


def register(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Any:
    """Register `gpseg::<schema>` and return the overload to call.

    Args:
        schema: name, arguments and results in torch's schema language.
        kernel: serves real tensors of any device; it chooses the backend.
        fake: gives results of the right size, type and strides without computing.
        setup_context: keeps for the gradient what it needs.
        backward: the gradient, made of registered ops.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gpseg::{name}", fake, lib=_library)
    torch.library.register_autograd(
        f"gpseg::{name}", backward, setup_context=setup_context, lib=_library
    )
    return getattr(torch.ops.gpseg, name).default
