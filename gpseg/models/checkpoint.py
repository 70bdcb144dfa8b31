"""Weights on disk: safetensors files that say what they are.

The header's metadata holds the stage (what kind of training wrote the file), the configuration as JSON, and gpseg's
version.
"""

import json
from collections.abc import Mapping
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

_WRITTEN_BY = {
    GENERATOR_STAGE: "gpseg.pretrain",
    "segmenter": "gpseg.train",
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
        InputError: if the file is missing, isn't a gpseg checkpoint, is damaged, or is of another stage.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a checkpoint that {_writer(stage)} wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = metadata.get("stage")
            if found is None:
                raise InputError(
                    f"{path}: no gpseg checkpoint (it names no stage); give one that {_writer(stage)} wrote"
                )
            if found != stage:
                raise InputError(
                    f'{path}: a checkpoint of stage "{found}", "{stage}" is needed; give one that {_writer(stage)} wrote'
                )
            config = json.loads(metadata["config"])
            return {name: file.get_tensor(name) for name in file.keys()}, config  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path}: damaged or no checkpoint ({error}); copy it again or train anew"
        ) from error


def _writer(stage: str) -> str:
    return f"python -m {_WRITTEN_BY[stage]}" if stage in _WRITTEN_BY else f'stage "{stage}"'


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
        raise InputError(
            f"{path}: its configuration can't be read ({error}); train anew with this version"
        ) from error
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
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: its weights don't fit its configuration ({reason})") from error
