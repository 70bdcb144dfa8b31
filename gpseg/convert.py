"""`python -m gpseg.convert`: weights and networks from one kind of file to another."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from gpseg.commandline import run
from gpseg.errors import InputError
from gpseg.models.checkpoint import (
    GENERATOR_STAGE,
    SEGMENTER_STAGE,
    load_checkpoint,
    load_generator,
    save_checkpoint,
    save_generator,
    stage_of,
)
from gpseg.models.export import Graph, export_generator, export_segmenter
from gpseg.models.published.networks import read_published
from gpseg.models.segmenter import Readout, Segmenter

log = logging.getLogger(__name__)

DESCRIPTION = """Convert a file; its suffix and that of the result say from what to what.

  .pkl, .pt to .safetensors      a published StyleGAN2 checkpoint as what gpseg.train takes as --generator
  .safetensors to .safetensors   the same checkpoint with its weights in float16: half the size
  .safetensors to .onnx          a segmenter or generator as an ONNX model, for any runtime
  .safetensors to .pt2           the same as a program of torch.export, which needs torch alone

Read are network pickles (.pkl) of StyleGAN2-ADA for PyTorch and of the StyleGAN3 repository, as far as they hold
StyleGAN2, and state dicts (.pt) in the names of rosinality's implementation; unconditional ones, with their
discriminator. Such files are programs; nothing in them is run.

A generator takes z [N, z_dim] and gives images [N, 3, r, r], about -1 to 1. A segmenter takes square
images [N, 3, r, r], uint8, and gives class probabilities [N, K, r, r], the mean with those of the mirrored images
as gpseg.predict takes it."""


@dataclass
class ConvertConfig:
    """Options of conversion."""

    source: tyro.conf.Positional[Path]
    """The file to read."""
    target: tyro.conf.Positional[Path]
    """The file to write; one that is there is replaced."""
    truncation_psi: float = 1.0
    """Of an exported generator: 1 for all the variety it has, towards 0 for images nearer to its mean."""
    readout: Readout | None = None
    """How an exported segmenter reads classes off; default: what was better in validation,
    fusion where there was none."""
    keep_ops: bool = False
    """Keep gpseg's operators in a .pt2: as fast as gpseg itself, but no gradients, and whoever loads it
    has to import gpseg.ops first."""


def convert(config: ConvertConfig) -> None:
    """Convert a file.

    Raises:
        InputError: there is no such conversion, source or target can't be used, or a package is missing.
        RunError: the disk is full.
    """
    kinds = config.source.suffix, config.target.suffix
    if kinds not in _CONVERSIONS:
        known = ", ".join(f"{source} to {target}" for source, target in _CONVERSIONS)
        raise InputError(
            f"{config.source} to {config.target}: no such conversion; there are {known}"
        )
    of_graphs = config.readout is not None or config.truncation_psi != 1 or config.keep_ops
    if of_graphs and config.target.suffix == ".safetensors":
        raise InputError(
            "--readout, --truncation-psi and --keep-ops are for .pt2 and .onnx; leave them out"
        )
    if config.target.is_dir():
        raise InputError(f"{config.target}: is a folder; give a file")
    if config.target.exists() and config.source.exists() and config.target.samefile(config.source):
        raise InputError(f"{config.target}: that is the source; give another target")
    _CONVERSIONS[kinds](config)
    log.info("%s, %.1f MB", config.target, config.target.stat().st_size / 1e6)


def _from_published(config: ConvertConfig) -> None:
    published = read_published(config.source)
    save_generator(
        _in_a_folder(config.target),
        published.generator,
        published.discriminator,
        published.network,
        {"converted_from": published.origin},
    )
    log.info("%s: %s", config.source, published.network)


def _to_half(config: ConvertConfig) -> None:
    stage = stage_of(config.source, GENERATOR_STAGE, SEGMENTER_STAGE)
    tensors, about = load_checkpoint(config.source, stage)
    halved = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    beyond = [name for name, t in halved.items() if not bool(t.isfinite().all())]
    if beyond:
        raise InputError(f"{config.source}: {beyond[0]} has values that float16 can't hold")
    save_checkpoint(_in_a_folder(config.target), halved, stage, about)


def _to_pt2(config: ConvertConfig) -> None:
    graph = _graph(config)
    (graph if config.keep_ops else graph.without_gpseg()).save_pt2(_in_a_folder(config.target))


def _to_onnx(config: ConvertConfig) -> None:
    if config.keep_ops:
        raise InputError("--keep-ops: ONNX has no such operators; leave it out, or write a .pt2")
    # At their usual levels they warn of every library that is not installed, and say what they do to every constant.
    for name in ("torch.onnx", "onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _graph(config).save_onnx(_in_a_folder(config.target))


_CONVERSIONS: dict[tuple[str, str], Callable[[ConvertConfig], None]] = {
    (".pkl", ".safetensors"): _from_published,
    (".pt", ".safetensors"): _from_published,
    (".safetensors", ".safetensors"): _to_half,
    (".safetensors", ".pt2"): _to_pt2,
    (".safetensors", ".onnx"): _to_onnx,
}
"""By the suffixes of source and target."""


def _graph(config: ConvertConfig) -> Graph:
    if stage_of(config.source, GENERATOR_STAGE, SEGMENTER_STAGE) == SEGMENTER_STAGE:
        if config.truncation_psi != 1:
            raise InputError("--truncation-psi: a segmenter has none; leave it out")
        return export_segmenter(Segmenter.load(config.source), config.readout)
    if config.readout is not None:
        raise InputError("--readout: a generator has none; leave it out")
    if not math.isfinite(config.truncation_psi):
        raise InputError(f"--truncation-psi {config.truncation_psi}: give a number such as 0.7")
    generator, *_ = load_generator(config.source)
    return export_generator(generator, config.truncation_psi)


def _in_a_folder(path: Path) -> Path:
    """The path, its folder made if it was not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent} can't be made a folder ({error.strerror})") from error
    return path


if __name__ == "__main__":
    run("gpseg.convert", ConvertConfig, convert, DESCRIPTION)
