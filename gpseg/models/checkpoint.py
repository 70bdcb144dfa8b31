"""Weights on disk: safetensors files that say what they are.

The header's metadata holds `stage` (what kind of training wrote the file), `config` (JSON) and `gpseg` (its version). A
generator's configuration is what the networks are built from and how they were trained; a segmenter's also names the
classes, the palette and the read-out.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

import gpseg
from gpseg.atomic import replacing
from gpseg.errors import InputError
from gpseg.models.stylegan2 import Discriminator, Generator, NetworkConfig

GENERATOR_STAGE = "generator-pretraining"
SHIPPED_GENERATOR = Path(__file__).with_name("drawn-64.safetensors")
"""A generator of drawn faces, 64 px, that is part of the package; docs/pretraining.md says how it was made."""
SEGMENTER_STAGE = "segmenter"

_WRITTEN_BY = {
    GENERATOR_STAGE: "gpseg.pretrain",
    SEGMENTER_STAGE: "gpseg.train",
}


def save_checkpoint(
    path: Path, tensors: Mapping[str, Tensor], stage: str, config: Mapping[str, Any]
) -> None:
    """Write a checkpoint; the file is whole or not there, and an older one stays until then.

    Args:
        path: the file, in an existing folder.
        tensors: weights by name.
        stage: what kind of training made the weights, such as `GENERATOR_STAGE`.
        config: what it takes to build the networks, and whatever else is worth knowing; JSON values.

    Raises:
        RunError: if the disk is full.
    """
    metadata = {"stage": stage, "config": json.dumps(config), "gpseg": gpseg.__version__}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        # Not save_file, whose files only their owner may read.
        temporary.write_bytes(save(contiguous, metadata))


def load_checkpoint(path: Path, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint.

    Args:
        path: the file.
        stage: the stage that is needed.

    Returns:
        Weights by name, on the CPU, and the configuration.

    Raises:
        InputError: if the file is missing, isn't a gpseg checkpoint, is damaged (a weight that isn't finite included), or
            is of another stage.
    """
    with _opened(path, stage) as (file, metadata):
        config = json.loads(metadata["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        # Or else all that comes of it is wrong and nothing says so: masks would be background everywhere.
        if not bool(tensor.isfinite().all()):
            raise InputError(
                f"{path} is damaged: {name} is not finite; copy it again or train anew"
            )
    return tensors, config


def stage_of(path: Path, *stages: str) -> str:
    """The stage of a checkpoint, read off its header.

    Args:
        path: the file.
        stages: those that are of use.

    Raises:
        InputError: if the file is missing, isn't a gpseg checkpoint, is damaged, or is of none of the stages.
    """
    with _opened(path, *stages) as (_, metadata):
        return metadata["stage"]


@contextmanager
def _opened(path: Path, *stages: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a checkpoint of one of the stages: the safetensors file and its header's metadata."""
    wanted = " or ".join(
        f"python -m {_WRITTEN_BY[s]}" if s in _WRITTEN_BY else f'stage "{s}"' for s in stages
    )
    if path.is_dir():
        raise InputError(f"{path}: a folder; give a checkpoint in it that {wanted} wrote")
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a checkpoint that {wanted} wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = metadata.get("stage")
            if found is None:
                raise InputError(
                    f"{path}: no gpseg checkpoint (it names no stage); give one that {wanted} wrote"
                )
            if found not in stages:
                needed = " or ".join(f'"{stage}"' for stage in stages)
                raise InputError(
                    f'{path}: a checkpoint of stage "{found}"{_of_version(metadata)}, {needed} is needed; '
                    f"give one that {wanted} wrote"
                )
            yield file, metadata
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path}: damaged or no checkpoint ({error}); copy it again or train anew"
        ) from error


def unreadable(path: Path, reason: str) -> InputError:
    """What to raise for a checkpoint that is whole, but not what this version of gpseg builds networks from.

    Args:
        path: a file that `load_checkpoint` has read.
        reason: what is wrong with it.
    """
    with safe_open(path, framework="pt") as file:
        version = _of_version(file.metadata())
    remedy = (
        "install that version, or train anew with this one"
        if version
        else "train anew with this version"
    )
    return InputError(f"{path}: {' '.join(reason.split())}{version}; {remedy}")


def _of_version(metadata: Mapping[str, str]) -> str:
    """Who wrote a checkpoint, for a message; nothing if it was this version."""
    version = metadata.get("gpseg")
    if version == gpseg.__version__:
        return ""
    return f", written by gpseg {version or 'of an unknown version'} (this is {gpseg.__version__})"


def save_generator(
    path: Path,
    generator: Generator,
    discriminator: Discriminator,
    network: NetworkConfig,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a pre-trained generator and its discriminator to one file.

    Args:
        path: the file, in an existing folder.
        generator: the generator, as a rule the running mean.
        discriminator: the discriminator it was trained against.
        network: what both are built from.
        extra: further entries of the configuration (training options, images seen).

    Raises:
        RunError: if the disk is full.
    """
    tensors = {f"generator.{name}": tensor for name, tensor in generator.state_dict().items()}
    tensors |= {
        f"discriminator.{name}": tensor for name, tensor in discriminator.state_dict().items()
    }
    save_checkpoint(path, tensors, GENERATOR_STAGE, {"network": asdict(network), **(extra or {})})


def load_generator(
    path: Path, dtype: torch.dtype = torch.float32
) -> tuple[Generator, Discriminator, NetworkConfig, dict[str, Any]]:
    """Read a pre-trained generator and its discriminator.

    Args:
        path: a file that `save_generator` wrote.
        dtype: dtype of the networks' features.

    Returns:
        Generator and discriminator on the CPU, what they were built from, and the whole configuration.

    Raises:
        InputError: if the file is missing, damaged, or of another stage.
    """
    tensors, config = load_checkpoint(path, GENERATOR_STAGE)
    try:
        network = NetworkConfig(**config["network"])
    except (KeyError, TypeError) as error:
        raise unreadable(path, f"its configuration can't be read ({error})") from error
    generator = network.generator(dtype)
    discriminator = network.discriminator(dtype)
    load_weights(generator, tensors, "generator.", path)
    load_weights(discriminator, tensors, "discriminator.", path)
    return generator, discriminator, network, config


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    """Copy the weights under a prefix into a module, all of them.

    Args:
        module: the module.
        tensors: weights by name.
        prefix: start of the names that belong to the module.
        path: where the weights come from, for the message.

    Raises:
        InputError: if names or shapes don't fit.
    """
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    try:
        module.load_state_dict(own)
    except RuntimeError as error:
        raise unreadable(path, f"its weights don't fit its configuration ({error})") from error
