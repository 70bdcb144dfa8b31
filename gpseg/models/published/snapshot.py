"""Network pickles of StyleGAN2-ADA (PyTorch) and of the StyleGAN3 repository, as far as they hold StyleGAN2.

Such a file is a dictionary with modules under G, D and G_ema. A module is pickled as source text, which is dropped here
unread, and its attributes: parameters, buffers, modules within it, and plain settings.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpseg.errors import InputError
from gpseg.models.published.torch_file import fits, read_torch_file
from gpseg.models.published.unpickling import (
    Budget,
    Inert,
    Make,
    Record,
    damaged,
    no_arguments,
    read_pickle,
    shown,
)
from gpseg.models.stylegan2 import (
    DiscriminatorBlock,
    NetworkConfig,
    SynthesisBlock,
    SynthesisLayer,
    channels,
)

_MAX_MODULES = 1000
_MAX_TENSORS = 5000
_MAX_PATH = 200
"""A module may hold itself, and hundreds of others the same one: what is walked is bounded apart from the file's size."""

_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")


@dataclass
class Module:
    """A pickled module.

    Args:
        class_name: its class, such as "Generator".
        state: its attributes.
    """

    class_name: str
    state: Mapping[str, Any]

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """The modules in it, by name."""
        for name, child in _entries(self.state, "_modules"):
            if child is not None:
                if not isinstance(child, Module):
                    raise InputError(f"{shown(name)} is no module of such a network")
                yield name, child

    def walk(self) -> dict[str, "Module"]:
        """This module and all within it, by path ("synthesis.b4.conv1"; "" for this one)."""
        found: dict[str, Module] = {}
        waiting = [("", self)]
        while waiting:
            path, module = waiting.pop()
            found[path] = module
            if len(found) > _MAX_MODULES or len(path) > _MAX_PATH:
                raise InputError("more modules than any such network has; don't use it")
            waiting += [(f"{path}.{name}".lstrip("."), child) for name, child in module.children()]
        return found

    def attribute(self, path: str, name: str, default: Any) -> Any:
        """A plain attribute of the module at a path; the default if there is no such module or attribute."""
        module = self.walk().get(path)
        return default if module is None else module.state.get(name, default)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of this module and all within it, by name."""
        found: dict[str, Tensor] = {}
        for path, module in self.walk().items():
            # Layers that were frozen in training have their weights among the buffers.
            for kind in ("_parameters", "_buffers"):
                for name, tensor in _entries(module.state, kind):
                    if tensor is None:
                        continue
                    if not isinstance(tensor, Tensor):
                        raise damaged(f"{shown(name)} is no tensor")
                    found[f"{path}.{name}".lstrip(".")] = tensor
                    if len(found) > _MAX_TENSORS:
                        raise InputError("more weights than any such network has; don't use it")
        return found

    def settings(self) -> dict[str, Any]:
        """The arguments it was made with, those for its parts included, by name."""
        positional = self.state.get("_init_args", ())
        if type(positional) is not tuple or positional:
            raise InputError(
                "its networks were made with arguments that have no names; such files are not supported"
            )
        found: dict[str, Any] = {}
        for name, value in _entries(self.state, "_init_kwargs"):
            if name in _PARTS and isinstance(value, dict):
                found |= {key: v for key, v in value.items() if isinstance(key, str)}
            else:
                found[name] = value
        return found


_PARTS = ("mapping_kwargs", "synthesis_kwargs", "block_kwargs", "epilogue_kwargs")


def _entries(state: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    entries = state.get(name, {})
    if not isinstance(entries, dict) or not all(
        isinstance(key, str) and len(key) <= _MAX_PATH for key in entries
    ):
        raise damaged(f"its {name} are no dictionary by name")
    yield from entries.items()


def read_snapshot(content: bytes) -> dict[str, Module]:
    """Read a network pickle.

    Args:
        content: the whole file.

    Returns:
        The modules that it holds: "G", "D", "G_ema" and others.

    Raises:
        InputError: if the file is damaged, is none, or has anything in it that such files don't.
    """
    budget = Budget(storage=len(content))
    names: dict[str, Make] = {
        "torch_utils.persistence _reconstruct_persistent_obj": _module,
        "torch._utils _rebuild_parameter": _parameter,
        "torch._utils _rebuild_tensor_v2": _tensor,
        "torch.storage _load_from_bytes": lambda arguments: _storage(arguments, budget),
        "collections OrderedDict": no_arguments(Record),
        "dnnlib.util EasyDict": no_arguments(Record),
        "numpy dtype": _dtype,
        "numpy._core.multiarray scalar": _scalar,
        "numpy.core.multiarray scalar": _scalar,
    }
    found = read_pickle(BytesIO(content), names, budget)
    if not isinstance(found, dict):
        raise InputError("no network snapshot; give a .pkl that holds G_ema and D")
    return {name: module for name, module in found.items() if isinstance(module, Module)}


def _module(arguments: tuple[Any, ...]) -> Inert | None:
    match arguments:
        case ({"type": "class", "class_name": str(class_name), "state": dict(state)},):
            return _Pickled(class_name, state)
    return None


class _Pickled(Module, Inert):
    """Settled by `_module` already: a state that comes later is dropped."""


def _storage(arguments: tuple[Any, ...], budget: Budget) -> torch.TypedStorage | None:
    match arguments:
        case (bytes(content),):
            storage = read_torch_file(content, budget)
            return storage if isinstance(storage, torch.TypedStorage) else None
    return None


def _tensor(arguments: tuple[Any, ...]) -> Tensor | None:
    match arguments:
        case (torch.TypedStorage() as storage, offset, size, stride, bool(), Record()):
            whole = torch.empty(0, dtype=storage.dtype).set_(storage)
            if fits(whole.numel(), offset, size, stride):
                return whole.as_strided(size, stride, offset)
    return None


def _parameter(arguments: tuple[Any, ...]) -> Tensor | None:
    match arguments:
        case (Tensor() as tensor, bool(), Record()):
            return tensor
    return None


@dataclass
class _Dtype(Inert):
    name: str

    def restore(self, state: object) -> None:
        match state:
            case (int(), "<" | "|", *_):
                return
        raise damaged("numbers of another byte order")


def _dtype(arguments: tuple[Any, ...]) -> _Dtype | None:
    match arguments:
        case (str(name), bool(), bool()) if name in _NUMBERS:
            return _Dtype(name)
    return None


def _scalar(arguments: tuple[Any, ...]) -> float | int | bool | None:
    match arguments:
        case (_Dtype(name=name), bytes(content)) if len(content) == int(name[1:]):
            value: float | int | bool = np.frombuffer(content, f"<{name}").item()
            return value
    return None


def check_supported(generator: Module, discriminator: Module) -> None:
    """Refuse what is no unconditional StyleGAN2, with a better reason than names and shapes that differ.

    Raises:
        InputError: saying what the networks are.
    """
    for module, expected in ((generator, "Generator"), (discriminator, "Discriminator")):
        if module.class_name != expected:
            raise InputError(f"a network of class {shown(module.class_name)}, {expected} is needed")
    for path, module in generator.walk().items():
        if path == "synthesis.input" or module.class_name == "SynthesisInput":
            raise InputError(
                "a StyleGAN3 generator (alias-free, -T or -R); only StyleGAN2 can be converted"
            )
    for module in (generator, discriminator):
        c_dim = module.state.get("c_dim", 0)
        if not _equal(c_dim, 0):
            raise InputError(
                f"class-conditional (c_dim {shown(c_dim)}); only unconditional networks can be converted"
            )
    for module, usual in ((generator, "skip"), (discriminator, "resnet")):
        for part in module.walk().values():
            architecture = part.state.get("architecture", usual)
            if not _equal(architecture, usual):
                raise InputError(
                    f"{module.class_name} of architecture {shown(architecture)}; only {usual} can be converted"
                )


def check_settings(module: Module, network: NetworkConfig) -> None:
    """Hold the arguments that a network was made with against the configuration its weights have.

    Raises:
        InputError: naming the first that contradicts it.
    """
    settings = module.settings()
    stated = {name: settings[name] for name in _SETTINGS if name in settings}
    for name, value in stated.items():
        found = {"c_dim": 0, "num_layers": network.mapping_layers}.get(name)
        if found is None:
            found = getattr(network, name)
        if not _equal(value, found):
            raise InputError(
                f"{module.class_name} says {name} {shown(value)}, its weights have {shown(found)}; take the original file"
            )
    base, most = (settings.get(name, default) for name, default in _CHANNELS.items())
    if type(base) is not int or type(most) is not int:
        raise InputError(
            f"{module.class_name} says channel_base {shown(base)}, channel_max {shown(most)}; give whole numbers"
        )
    resolution = 4
    while resolution <= network.img_resolution:
        found = channels(resolution, network.channel_base, network.channel_max)
        if channels(resolution, base, most) != found:
            raise InputError(
                f"{module.class_name} says channel_base {base}, channel_max {most}, its weights have {found} channels"
                f" at {resolution} px; take the original file"
            )
        resolution *= 2


_SETTINGS = (
    "z_dim",
    "c_dim",
    "w_dim",
    "img_resolution",
    "img_channels",
    "num_layers",
    "conv_clamp",
    "mbstd_group_size",
)
_CHANNELS = {"channel_base": 32768, "channel_max": 512}
"""What these networks take for arguments that were not given."""


def check_layers(module: Module, own: nn.Module) -> None:
    """Hold the plain attributes of a network and all its layers against ours, which have the same names.

    Args:
        module: the published network.
        own: ours, of the configuration that was found.

    Raises:
        InputError: naming the first that differs.
    """
    published = module.walk()
    for path, layer in own.named_modules():
        if path not in published:
            continue
        state = published[path].state
        for name, value in _attributes(layer):
            if name in state and not _equal(state[name], value):
                raise InputError(
                    f"{module.class_name}: {path or 'the network'} has {name} {shown(state[name])}, gpseg's has"
                    f" {shown(value)}; only networks that differ in size can be converted"
                )


_SHARED = (
    *(
        "activation",
        "act_gain",
        "bias_gain",
        "conv_clamp",
        "down",
        "group_size",
        "img_resolution",
        "num_channels",
    ),
    *(
        "num_conv",
        "num_layers",
        "num_ws",
        "padding",
        "resolution",
        "up",
        "w_dim",
        "weight_gain",
        "z_dim",
    ),
)
_IMPLIED: dict[type[nn.Module], dict[str, Any]] = {
    SynthesisLayer: {"activation": "lrelu", "act_gain": math.sqrt(2), "use_noise": True},
    SynthesisBlock: {"architecture": "skip"},
    DiscriminatorBlock: {"architecture": "resnet"},
}
"""Attributes that published networks have, and ours can have in one way alone."""


def _attributes(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    for name in _SHARED:
        if name in vars(layer):
            yield name, vars(layer)[name]
    if "clamp" in vars(layer):
        yield "conv_clamp", vars(layer)["clamp"]
    yield from _IMPLIED.get(type(layer), {}).items()


def _equal(found: Any, expected: Any) -> bool:
    if isinstance(found, int | float) and isinstance(expected, int | float):
        # Not every whole number can be made a float.
        close = abs(found) < 1e30 and math.isclose(found, expected, rel_tol=1e-5)
        return close or found == expected
    return type(found) is type(expected) and bool(found == expected)
