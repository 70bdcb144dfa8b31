"""`python -m gpseg.convert`: published checkpoints to gpseg's own."""

import logging
from dataclasses import dataclass
from pathlib import Path

import tyro

from gpseg.commandline import run
from gpseg.errors import InputError
from gpseg.models.checkpoint import save_generator
from gpseg.models.published.networks import read_published

log = logging.getLogger(__name__)

DESCRIPTION = """Convert a published StyleGAN2 checkpoint to generator.safetensors, what gpseg.train takes as --generator.

Read are network pickles (.pkl) of StyleGAN2-ADA for PyTorch and of the StyleGAN3 repository, as far as they hold
StyleGAN2, and state dicts (.pt) in the names of rosinality's implementation; unconditional ones, with their
discriminator. Such files are programs; nothing in them is run."""


@dataclass(frozen=True)
class ConvertConfig:
    """What to convert."""

    source: tyro.conf.Positional[Path]
    """the published checkpoint: .pkl or .pt"""
    target: tyro.conf.Positional[Path]
    """the file to write: .safetensors; its folder is made if need be"""


def convert(config: ConvertConfig) -> None:
    """Write the target from the source.

    Raises:
        InputError: if the source can't be used, or the target is of a kind that is not written.
    """
    if config.target.suffix != ".safetensors":
        raise InputError(f"{config.target}: give a name that ends in .safetensors")
    published = read_published(config.source)
    config.target.parent.mkdir(parents=True, exist_ok=True)
    save_generator(
        config.target,
        published.generator,
        published.discriminator,
        published.network,
        {"converted_from": published.origin},
    )
    log.info("%s: %s", config.target, published.network)


if __name__ == "__main__":
    run("gpseg.convert", ConvertConfig, convert, DESCRIPTION)
