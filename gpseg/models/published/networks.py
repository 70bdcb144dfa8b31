"""From a published checkpoint to a generator and its discriminator."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpseg import ops
from gpseg.errors import InputError
from gpseg.models.published import renamed, snapshot
from gpseg.models.published.torch_file import is_torch_file, read_torch_file
from gpseg.models.published.unpickling import Budget, damaged, shown
from gpseg.models.stylegan2 import (
    MAX_RESOLUTION,
    MIN_RESOLUTION,
    Discriminator,
    Generator,
    MappingNetwork,
    NetworkConfig,
    channels,
)
from gpseg.nn.layers import RESAMPLE_FILTER

MAX_BYTES = 4 * 2**30
_MAX_WIDTH = 4096
_LATENTS_FOR_THE_MEAN = 10_000


@dataclass(frozen=True)
class Published:
    """What a published checkpoint holds.

    Args:
        generator: the generator, as a rule the running mean.
        discriminator: the discriminator it was trained against.
        network: what both are built from.
        origin: what the file was: name, SHA-256, format, which of its generators.
    """

    generator: Generator
    discriminator: Discriminator
    network: NetworkConfig
    origin: dict[str, Any]


def read_published(path: Path) -> Published:
    """Read a published checkpoint without running anything in it.

    Args:
        path: a network pickle of StyleGAN2-ADA (PyTorch) or of the StyleGAN3 repository that holds StyleGAN2, or a
            state-dict file (.pt) in the names of rosinality's implementation. The content tells which, not the name.

    Returns:
        The networks, on the CPU.

    Raises:
        InputError: if the file is missing, damaged, larger than 4 GiB, does what such files don't, or holds other
            networks than unconditional StyleGAN2.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a checkpoint (.pkl or .pt)")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(
            f"{path}: larger than {MAX_BYTES // 2**30} GiB, which no such checkpoint is; give another"
        )
    content = path.read_bytes()
    try:
        found = networks_in(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    found.origin.update(file=path.name, sha256=hashlib.sha256(content).hexdigest())
    return found


def networks_in(content: bytes) -> Published:
    """What `read_published` gives, of a file's content; messages don't name the file."""
    if is_torch_file(content):
        return _from_state_dicts(content)
    if content[:1] == b"\x80":
        return _from_snapshot(content)
    raise InputError("neither a pickle nor a file of torch.save; give a checkpoint (.pkl or .pt)")


def _from_snapshot(content: bytes) -> Published:
    modules = snapshot.read_snapshot(content)
    name = _choose(modules, "G_ema", "G", "D")
    generator, discriminator = modules[name], modules["D"]
    snapshot.check_supported(generator, discriminator)
    weights = {"generator": generator.tensors(), "discriminator": discriminator.tensors()}
    network = network_of(
        weights["generator"],
        conv_clamp=_conv_clamp(generator),
        mbstd_group_size=_group_size(discriminator),
    )
    for module, own in zip((generator, discriminator), _hollow(network), strict=True):
        snapshot.check_settings(module, network)
        snapshot.check_layers(module, own)
    origin = {"format": "StyleGAN2 network pickle", "generator": name}
    return _built(network, weights, origin, len(content))


def _conv_clamp(generator: snapshot.Module) -> float | None:
    """The first layer's; `check_layers` holds all the others against it."""
    clamp = generator.attribute("synthesis.b4.conv1", "conv_clamp", None)
    if clamp is None or (isinstance(clamp, int | float) and 0 < clamp < 1e9):
        return clamp
    raise InputError(f"conv_clamp {shown(clamp)}; a positive number or none is needed")


def _group_size(discriminator: snapshot.Module) -> int:
    size = discriminator.attribute("b4.mbstd", "group_size", 4)
    if type(size) is int and 0 < size < 1e9:
        return size
    raise InputError(
        f"minibatch standard deviation over groups of {shown(size)}; a number is needed"
    )


def _from_state_dicts(content: bytes) -> Published:
    found = read_torch_file(content, Budget(storage=len(content)))
    if not isinstance(found, dict):
        raise InputError("no dictionary of state dicts; give a .pt that holds g_ema and d")
    name = _choose(found, "g_ema", "g", "d")
    latent_avg = found.get("latent_avg")
    if not isinstance(latent_avg, Tensor | None):
        raise damaged("latent_avg is no tensor")
    generator = renamed.generator_weights(_state_dict(found, name), latent_avg)
    discriminator = renamed.discriminator_weights(_state_dict(found, "d"))
    if latent_avg is None:
        first = _shape(generator, "mapping.fc0.weight", 2)
        generator["mapping.w_avg"] = torch.zeros(first[0])
    network = network_of(generator, conv_clamp=None, mbstd_group_size=4)
    weights = {"generator": generator, "discriminator": discriminator}
    origin = {"format": "rosinality state dicts", "generator": name}
    built = _built(network, weights, origin, len(content))
    if latent_avg is None:
        _estimate_mean(built.generator.mapping)
        built.origin["w_avg"] = (
            f"mean of {_LATENTS_FOR_THE_MEAN} latents; the file has no latent_avg"
        )
    return built


def _choose(found: Mapping[str, Any], average: str, other: str, discriminator: str) -> str:
    name = average if average in found else other
    if name not in found:
        raise InputError(f"no generator in it ({average} or {other}); give a StyleGAN2 checkpoint")
    if discriminator not in found:
        raise InputError(
            f"a generator ({name}) without its discriminator ({discriminator}), which gpseg.train's encoder starts from;"
            " give the training snapshot, which holds both"
        )
    return name


def _state_dict(found: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    state = found[name]
    if isinstance(state, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        return state
    raise damaged(f"{name} is no state dict")


@torch.no_grad()
def _estimate_mean(mapping: MappingNetwork) -> None:
    random = torch.Generator().manual_seed(0)
    z = torch.randn(_LATENTS_FOR_THE_MEAN, mapping.z_dim, generator=random)
    mapping.w_avg.copy_(mapping(z)[:, 0].mean(dim=0))


def network_of(
    generator: Mapping[str, Tensor], *, conv_clamp: float | None, mbstd_group_size: int
) -> NetworkConfig:
    """The configuration that a generator's weights have.

    Args:
        generator: weights by our names.
        conv_clamp: as in `NetworkConfig`; weights don't show it.
        mbstd_group_size: as in `NetworkConfig`; weights don't show it.

    Returns:
        The configuration. Where channels don't tell `channel_base` (all are `channel_max`), the smallest that fits.

    Raises:
        InputError: if there is none that fits.
    """
    pattern = re.compile(r"synthesis\.b(\d{1,5})\.conv1\.weight")
    resolutions = sorted(int(m[1]) for m in map(pattern.fullmatch, generator) if m)
    expected = [
        r
        for r in (2**i for i in range(2, MAX_RESOLUTION.bit_length()))
        if r <= max(resolutions, default=0)
    ]
    if resolutions != expected or not resolutions or resolutions[-1] < MIN_RESOLUTION:
        raise InputError(
            f"synthesis blocks of {resolutions or 'no'} px; only StyleGAN2 for a power of two from {MIN_RESOLUTION} to"
            f" {MAX_RESOLUTION} px can be converted"
        )
    widths = {r: _shape(generator, f"synthesis.b{r}.conv1.weight", 4)[0] for r in resolutions}
    base, most = max(c * r for r, c in widths.items()), max(widths.values())
    if widths != {r: channels(r, base, most) for r in resolutions}:
        raise InputError(
            f"channels {widths} by resolution are not min(channel_base / resolution, channel_max); such networks can't"
            " be converted"
        )
    w_dim, z_dim = _shape(generator, "mapping.fc0.weight", 2)
    img_channels = _shape(generator, "synthesis.b4.torgb.weight", 4)[0]
    if img_channels != 3:
        raise InputError(
            f"images of {img_channels} channels; only networks for RGB can be converted"
        )
    if not 0 < min(w_dim, z_dim, *widths.values()) <= max(w_dim, z_dim, most) <= _MAX_WIDTH:
        raise InputError(
            f"layers of no width, or of more than {_MAX_WIDTH}; no such network has them"
        )
    layers = [name for name in generator if re.fullmatch(r"mapping\.fc\d+\.weight", name)]
    return NetworkConfig(
        img_resolution=resolutions[-1],
        img_channels=img_channels,
        z_dim=z_dim,
        w_dim=w_dim,
        channel_base=base,
        channel_max=most,
        mapping_layers=len(layers),
        conv_clamp=conv_clamp,
        mbstd_group_size=mbstd_group_size,
    )


def _shape(tensors: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    if name not in tensors or tensors[name].ndim != dims:
        raise InputError(f"no weight {name} with {dims} axes; only StyleGAN2 can be converted")
    return tuple(tensors[name].shape)


def _hollow(network: NetworkConfig) -> tuple[Generator, Discriminator]:
    """Both networks without memory for their weights: whether a file fits must show before anything is reserved."""
    with torch.device("meta"):
        return network.generator(), network.discriminator()


def _built(
    network: NetworkConfig,
    weights: Mapping[str, Mapping[str, Tensor]],
    origin: dict[str, Any],
    size: int,
) -> Published:
    """Networks with these weights, of a file of `size` bytes."""
    # Any number of weights may lie in one storage; in an honest file each has its own.
    if sum(t.numel() * t.element_size() for ts in weights.values() for t in ts.values()) > size:
        raise InputError("it unpacks to more than its own size; no checkpoint does, don't use it")
    fitting = [
        _fitting(role, tensors, own)
        for (role, tensors), own in zip(weights.items(), _hollow(network), strict=True)
    ]
    generator, discriminator = network.generator(), network.discriminator()
    generator.load_state_dict(fitting[0])
    discriminator.load_state_dict(fitting[1])
    return Published(generator, discriminator, network, origin)


def _fitting(role: str, tensors: Mapping[str, Tensor], own: nn.Module) -> dict[str, Tensor]:
    """The weights that a network takes, checked; filters are held against the one that it has."""
    expected = own.state_dict()
    usual = ops.setup_filter(RESAMPLE_FILTER)
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise InputError(f"{role}: {shown(name)} is not finite; give another snapshot")
        if name.split(".")[-1] == "resample_filter":
            if tensor.shape != usual.shape or not torch.allclose(tensor.float(), usual, atol=1e-6):
                raise InputError(
                    f"{role}: {shown(name)} is not [1, 3, 3, 1]; such networks can't be converted"
                )
        elif name not in expected:
            raise InputError(
                f"{role}: a weight {shown(name)}, which StyleGAN2 of this size doesn't have; give plain StyleGAN2"
            )
        elif tensor.shape != expected[name].shape:
            raise InputError(
                f"{role}: {name} is {list(tensor.shape)}, {list(expected[name].shape)} is needed for {own.img_resolution} px;"
                " give plain StyleGAN2"
            )
        else:
            found[name] = tensor.float()
    for name in expected:
        if name not in found:
            raise InputError(f"{role}: no weight {name}; give plain StyleGAN2")
    return found
