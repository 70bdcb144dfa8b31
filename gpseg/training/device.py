"""Which device and which precision a run uses."""

from typing import Literal

import torch

from gpseg.errors import InputError
from gpseg.training.distributed import local_rank

Precision = Literal["auto", "fp32", "bf16"]
AnyPrecision = Literal["auto", "fp32", "bf16", "fp16"]


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is a GPU if there is one, else the CPU.

    Where torchrun started several processes on a machine, "auto" and "cuda" give each its own GPU.

    Args:
        name: "auto" or what `torch.device` takes ("cpu", "cuda", "cuda:1").

    Returns:
        The device.

    Raises:
        InputError: if there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank() is not None:
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        if device.index is not None and device.type == "cuda":
            torch.cuda.set_device(device)  # collectives and kernels go to the current one
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f'device "{name}": not usable here ({str(error).splitlines()[0]}); give cpu or auto'
        ) from error
    return device


def choose_dtype(precision: AnyPrecision, device: torch.device) -> torch.dtype:
    """The dtype of feature maps; "auto" is bfloat16 where the device computes in it, else float32.

    Args:
        precision: "auto", "fp32", "bf16", or "fp16" on a GPU.
        device: the device.

    Returns:
        torch.float32, torch.bfloat16 or torch.float16.

    Raises:
        InputError: "fp16" on a CPU.
    """
    if precision == "fp16":
        if device.type == "cpu":
            raise InputError(
                "--precision fp16: for a GPU only; give bf16, which needs no clamp, or auto"
            )
        return torch.float16
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
        precision = "bf16" if fast else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32
