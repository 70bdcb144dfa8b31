"""Starting from the weights of another checkpoint, as far as they fit."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gpseg.errors import InputError
from gpseg.models.checkpoint import load_generator
from gpseg.training.trainer import Trainer

_NAMED = 4


def transfer(path: Path, trainer: Trainer) -> str:
    """Take the weights of a checkpoint into a trainer's networks, all that fit by name and shape.

    The generator starts from the checkpoint's running mean, as its own running mean does.

    Args:
        path: a generator with its discriminator.
        trainer: at its first step.

    Returns:
        How much was taken and what wasn't, in one line.

    Raises:
        InputError: the file can't be used, or nothing in it fits.
    """
    generator, discriminator, network, _ = load_generator(path)
    own = trainer.generator, trainer.discriminator
    taken = total = 0
    left: list[str] = []
    for kind, source, target in zip("GD", (generator, discriminator), own, strict=True):
        tensors = target.state_dict()
        missed = _copy_what_fits(source.state_dict(), tensors)
        total += len(tensors)
        taken += len(tensors) - len(missed)
        left += [f"{kind} {name}" for name in missed]
    if not taken:
        raise InputError(
            f"--transfer {path}: nothing in it fits by name and shape (channels {network.channel_base} / r, at most"
            f" {network.channel_max}, z-dim {network.z_dim}); give the same widths"
        )
    trainer.generator_ema.load_state_dict(trainer.generator.state_dict())
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    rest = f"; new: {', '.join(left[:_NAMED])}{more}" if left else ""
    return f"{path}: {taken} of {total} tensors taken{rest}"


@torch.no_grad()
def _copy_what_fits(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """Copy by name where shapes agree; returns the names in `target` that weren't."""
    missed = []
    for name, tensor in target.items():
        if name in source and source[name].shape == tensor.shape:
            tensor.copy_(source[name])
        else:
            missed.append(name)
    return missed
