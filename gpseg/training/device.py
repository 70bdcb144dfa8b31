"""Which device and which precision a run uses."""

from typing import Literal

import torch

from gpseg.errors import InputError

Precision = Literal["auto", "fp32", "bf16"]


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is a GPU if there is one, else the CPU.

    Args:
        name: "auto" or what `torch.device` takes ("cpu", "cuda", "cuda:1").

    Returns:
        The device.

    Raises:
        InputError: if there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f'device "{name}": not usable here ({str(error).splitlines()[0]}); give cpu or auto'
        ) from error
    return device


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of feature maps; "auto" is bfloat16 where the device computes in it, else float32.

    Args:
        precision: "auto", "fp32" or "bf16".
        device: the device.

    Returns:
        torch.float32 or torch.bfloat16.
    """
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        precision = "bf16" if fast else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32
