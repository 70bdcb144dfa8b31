"""Checkpoints as others publish them, built from our networks or from the layout's description."""

import collections
import contextlib
import io
import math
import pickle
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from gpseg import ops
from gpseg.models import stylegan2
from gpseg.models.stylegan2 import Discriminator, Generator, NetworkConfig
from gpseg.nn import layers

CLASS_NAMES = {
    **{c: c.__name__ for c in (Generator, Discriminator)},
    **{c: c.__name__ for c in (stylegan2.MappingNetwork, stylegan2.SynthesisNetwork)},
    **{c: c.__name__ for c in (stylegan2.SynthesisBlock, stylegan2.SynthesisLayer)},
    **{c: c.__name__ for c in (stylegan2.DiscriminatorBlock, stylegan2.DiscriminatorEpilogue)},
    stylegan2.ToRGB: "ToRGBLayer",
    layers.FullyConnected: "FullyConnectedLayer",
    layers.Conv2d: "Conv2dLayer",
    layers.MinibatchStd: "MinibatchStdLayer",
}

SMALL = NetworkConfig(16, z_dim=6, w_dim=8, channel_base=64, channel_max=8, mapping_layers=2)


class Part:
    """A module that is pickled as it is told to be: its class and its attributes."""

    def __init__(self, class_name: str, **state: Any) -> None:
        self.class_name = class_name
        self.state = state


def networks(network: NetworkConfig = SMALL, seed: int = 0) -> tuple[Generator, Discriminator]:
    """Networks in which every weight counts: noise, biases and the mean of w are not zero."""
    torch.manual_seed(seed)
    generator, discriminator = network.generator(), network.discriminator()
    with torch.no_grad():
        for name, tensor in [*generator.named_parameters(), *discriminator.named_parameters()]:
            if name.endswith(("bias", "noise_strength")):
                tensor += 0.3 * torch.randn_like(tensor)
        generator.mapping.w_avg.copy_(torch.randn(network.w_dim))
    return generator, discriminator


def part(module: nn.Module) -> Part:
    """One of our modules as the published class of the same function would be pickled."""
    plain = {k: v for k, v in vars(module).items() if isinstance(v, int | float | str)}
    plain |= {k: np.float64(v) for k, v in plain.items() if isinstance(v, float)}
    plain["conv_clamp"] = plain.pop("clamp", getattr(module, "conv_clamp", None))
    buffers = collections.OrderedDict(module._buffers)
    if buffers.get("resample_filter", None) is not None or isinstance(module, layers.Conv2d):
        buffers["resample_filter"] = ops.setup_filter([1, 3, 3, 1])
    state = Part(
        CLASS_NAMES[type(module)],
        **plain,
        _parameters=collections.OrderedDict(module._parameters),
        _buffers=buffers,
        _non_persistent_buffers_set=set(),
        _backward_hooks=collections.OrderedDict(),
        _is_full_backward_hook=None,
        _modules=collections.OrderedDict((n, part(m)) for n, m in module._modules.items()),
        _init_args=(),
        _init_kwargs={},
    )
    implied = {
        stylegan2.SynthesisLayer: {
            "activation": "lrelu",
            "act_gain": np.sqrt(2),
            "use_noise": True,
        },
        stylegan2.SynthesisBlock: {"architecture": "skip", "use_fp16": True},
        stylegan2.DiscriminatorBlock: {"architecture": "resnet"},
        stylegan2.DiscriminatorEpilogue: {"architecture": "resnet"},
    }
    state.state |= implied.get(type(module), {})
    return state


def snapshot_parts(
    generator: Generator, discriminator: Discriminator, network: NetworkConfig
) -> dict[str, Any]:
    """What a training snapshot holds, with the networks' arguments as StyleGAN2-ADA gives them."""
    shared = {
        "c_dim": 0,
        "img_resolution": network.img_resolution,
        "img_channels": network.img_channels,
    }
    sizes = {
        "channel_base": network.channel_base,
        "channel_max": network.channel_max,
        "num_fp16_res": 4,
        "conv_clamp": network.conv_clamp,
    }
    g, d = part(generator), part(discriminator)
    g.state["c_dim"] = d.state["c_dim"] = 0
    g.state["_init_kwargs"] = easy_dict(
        z_dim=network.z_dim,
        w_dim=network.w_dim,
        **shared,
        mapping_kwargs=easy_dict(num_layers=network.mapping_layers),
        synthesis_kwargs=easy_dict(**sizes),
    )
    d.state["_init_kwargs"] = easy_dict(
        **shared,
        **sizes,
        block_kwargs=easy_dict(),
        mapping_kwargs=easy_dict(),
        epilogue_kwargs=easy_dict(mbstd_group_size=network.mbstd_group_size),
    )
    augment = Part("AugmentPipe", xflip=1.0, _buffers={"Hz_fbank": torch.randn(4, 12)})
    data = {"class_name": "training.dataset.ImageFolderDataset", "max_size": 5, "xflip": False}
    return {
        "training_set_kwargs": data,
        "G": g,
        "D": d,
        "G_ema": g,
        "augment_pipe": augment,
    }


def network_pickle(
    network: NetworkConfig = SMALL, *, module_src: str = "raise SystemExit", **changes: Any
) -> bytes:
    """A network pickle of `networks(network)`; changes replace or (None) remove entries."""
    parts = snapshot_parts(*networks(network), network) | changes
    return pickled({k: v for k, v in parts.items() if v is not None}, module_src=module_src)


def easy_dict(**items: Any) -> Any:
    return _EasyDict(**items)


class _EasyDict(dict[str, Any]):
    pass


_EasyDict.__module__, _EasyDict.__qualname__, _EasyDict.__name__ = "dnnlib.util", *["EasyDict"] * 2


def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
    raise AssertionError("only its name is pickled")


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


def _scalar(dtype: np.dtype, content: bytes) -> None:
    raise AssertionError("only its name is pickled")


_scalar.__module__, _scalar.__qualname__, _scalar.__name__ = (
    "numpy.core.multiarray",
    *["scalar"] * 2,
)


@contextlib.contextmanager
def _their_modules(old_numpy: bool) -> Iterator[None]:
    """The modules that the pickled names belong to, as far as pickling looks at them."""
    found = {name: types.ModuleType(name) for name in ("torch_utils.persistence", "dnnlib.util")}
    vars(found["torch_utils.persistence"])["_reconstruct_persistent_obj"] = (
        _reconstruct_persistent_obj
    )
    vars(found["dnnlib.util"])["EasyDict"] = _EasyDict
    if old_numpy:
        found["numpy.core.multiarray"] = types.ModuleType("numpy.core.multiarray")
        vars(found["numpy.core.multiarray"])["scalar"] = _scalar
    found |= {name: types.ModuleType(name) for name in ("torch_utils", "dnnlib")}
    with mock.patch.dict(sys.modules, found):
        yield


def pickled(
    data: Any,
    *,
    module_src: str = "raise SystemExit",
    old_numpy: bool = False,
) -> bytes:
    """Pickle `data`, with `Part` for persistent objects."""

    class Pickler(pickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, Part):
                meta = {
                    "type": "class",
                    "version": 6,
                    "module_src": module_src,
                    "class_name": obj.class_name,
                    "state": obj.state,
                }
                return _reconstruct_persistent_obj, (meta,)
            if old_numpy and isinstance(obj, np.generic):
                return _scalar, obj.__reduce__()[1]
            return NotImplemented

    stream = io.BytesIO()
    with _their_modules(old_numpy):
        Pickler(stream, protocol=4).dump(data)
    return stream.getvalue()


class Calls:
    """Pickled as a call of a function with arguments, the way malicious files are made."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def torch_file(data: Any, *, legacy: bool = False) -> bytes:
    """What torch.save writes, in today's format or the one before torch 1.6."""
    stream = io.BytesIO()
    torch.save(data, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def state_dicts(network: NetworkConfig = SMALL, seed: int = 0) -> dict[str, Any]:
    """Random weights in the layout of rosinality's implementation, z as wide as w."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    width = {
        2**i: stylegan2.channels(2**i, network.channel_base, network.channel_max)
        for i in range(2, network.img_resolution.bit_length())
    }
    kernel = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = kernel.outer(kernel) / 64
    w = network.w_dim
    g: dict[str, Tensor] = collections.OrderedDict()
    for i in range(1, network.mapping_layers + 1):
        g[f"style.{i}.weight"], g[f"style.{i}.bias"] = draw(w, w) * 100, draw(w) * 30
    g["input.input"] = draw(1, width[4], 4, 4)

    def modulated(name: str, below: int, above: int, k: int) -> None:
        g[f"{name}.conv.weight"] = draw(1, above, below, k, k)
        g[f"{name}.conv.modulation.weight"] = draw(below, w)
        g[f"{name}.conv.modulation.bias"] = 1 + 0.3 * draw(below)

    def styled(name: str, below: int, above: int, up: bool) -> None:
        modulated(name, below, above, 3)
        if up:
            g[f"{name}.conv.blur.kernel"] = kernel * 4
        g[f"{name}.noise.weight"] = draw(1)
        g[f"{name}.activate.bias"] = draw(above)

    def to_rgb(name: str, below: int, up: bool) -> None:
        modulated(name, below, 3, 1)
        if up:
            g[f"{name}.upsample.kernel"] = kernel * 4
        g[f"{name}.bias"] = draw(1, 3, 1, 1)

    styled("conv1", width[4], width[4], False)
    to_rgb("to_rgb1", width[4], False)
    sides = [r for r in width if r > 4]
    for i, r in enumerate(sides):
        styled(f"convs.{2 * i}", width[r // 2], width[r], True)
        styled(f"convs.{2 * i + 1}", width[r], width[r], False)
        to_rgb(f"to_rgbs.{i}", width[r], True)
    for i, r in enumerate([4, *(r for side in sides for r in (side, side))]):
        g[f"noises.noise_{i}"] = draw(1, 1, r, r)

    d: dict[str, Tensor] = collections.OrderedDict()
    d["convs.0.0.weight"] = draw(width[network.img_resolution], 3, 1, 1)
    d["convs.0.1.bias"] = draw(width[network.img_resolution])
    for i, r in enumerate(reversed(sides), start=1):
        d[f"convs.{i}.conv1.0.weight"] = draw(width[r], width[r], 3, 3)
        d[f"convs.{i}.conv1.1.bias"] = draw(width[r])
        d[f"convs.{i}.conv2.0.kernel"] = kernel.clone()
        d[f"convs.{i}.conv2.1.weight"] = draw(width[r // 2], width[r], 3, 3)
        d[f"convs.{i}.conv2.2.bias"] = draw(width[r // 2])
        d[f"convs.{i}.skip.0.kernel"] = kernel.clone()
        d[f"convs.{i}.skip.1.weight"] = draw(width[r // 2], width[r], 1, 1)
    c = width[4]
    d["final_conv.0.weight"], d["final_conv.1.bias"] = draw(c, c + 1, 3, 3), draw(c)
    d["final_linear.0.weight"], d["final_linear.0.bias"] = draw(c, c * 16), draw(c)
    d["final_linear.1.weight"], d["final_linear.1.bias"] = draw(1, c), draw(1)
    return {"g_ema": g, "g": g, "d": d, "latent_avg": draw(w)}


def act(x: Tensor, bias: Tensor) -> Tensor:
    """Leaky ReLU that keeps the variance."""
    return math.sqrt(2) * nn.functional.leaky_relu(x + bias, 0.2)
