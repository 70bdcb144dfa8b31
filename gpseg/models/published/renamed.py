"""The state dicts of the PyTorch re-implementation known as rosinality's, and of its many descendants, in our names.

Both describe the same functions. Convolutions that take a style have a leading axis of length 1; they are multiplied by
1/sqrt(fan_in) before demodulation, which demodulation cancels up to its epsilon; blur kernels that follow
zero insertion contain its gain of 4.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from gpseg.errors import InputError
from gpseg.models.published.unpickling import shown

_Convert = Callable[[Tensor], Tensor]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _one_less(tensor: Tensor) -> Tensor:
    """Drop a leading axis of length 1."""
    return tensor.squeeze(0)


_MODULATED: dict[str, tuple[str, _Convert]] = {
    "conv.weight": ("weight", _one_less),
    "conv.modulation.weight": ("affine.weight", _same),
    "conv.modulation.bias": ("affine.bias", _same),
}
_STYLED = _MODULATED | {
    "noise.weight": ("noise_strength", _one_less),
    "activate.bias": ("bias", Tensor.flatten),
    "conv.blur.kernel": ("resample_filter", lambda kernel: kernel / 4),
}
_TO_RGB = _MODULATED | {
    "bias": ("bias", Tensor.flatten),
    "upsample.kernel": ("resample_filter", lambda kernel: kernel / 4),
}
_RESIDUAL: dict[str, tuple[str, _Convert]] = {
    "conv1.0.weight": ("conv0.weight", _same),
    "conv1.1.bias": ("conv0.bias", Tensor.flatten),
    "conv2.0.kernel": ("conv1.resample_filter", _same),
    "conv2.1.weight": ("conv1.weight", _same),
    "conv2.2.bias": ("conv1.bias", Tensor.flatten),
    "skip.0.kernel": ("skip.resample_filter", _same),
    "skip.1.weight": ("skip.weight", _same),
}
_DISCRIMINATOR_ENDS: dict[str, tuple[str, _Convert]] = {
    "final_conv.0.weight": ("b4.conv.weight", _same),
    "final_conv.1.bias": ("b4.conv.bias", Tensor.flatten),
    "final_linear.0.weight": ("b4.fc.weight", _same),
    "final_linear.0.bias": ("b4.fc.bias", _same),
    "final_linear.1.weight": ("b4.out.weight", _same),
    "final_linear.1.bias": ("b4.out.bias", _same),
}


def _block(index: int) -> str:
    """The generator's layers from 8 px on come in pairs."""
    return f"synthesis.b{8 << index // 2}.conv{index % 2}"


def generator_weights(state: Mapping[str, Tensor], latent_avg: Tensor | None) -> dict[str, Tensor]:
    """Bring a generator's weights to the names and shapes of `stylegan2.Generator`.

    Args:
        state: the weights as they stand in the file under "g_ema" or "g".
        latent_avg: mean of w, if the file has it.

    Returns:
        Weights by our names, resampling filters among them.

    Raises:
        InputError: if there is one that such a network does not have.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"style\.([1-9]\d?)\.(weight|bias)", name):
            found[f"mapping.fc{int(match[1]) - 1}.{match[2]}"] = tensor
        elif name == "input.input":
            found["synthesis.b4.const"] = _one_less(tensor)
        elif match := re.fullmatch(r"noises\.noise_(\d\d?)", name):
            index = int(match[1])
            layer = _block(index - 1) if index else "synthesis.b4.conv1"
            found[f"{layer}.noise_const"] = _one_less(_one_less(tensor))
        elif match := re.fullmatch(r"(conv1|convs\.(\d\d?))\.(.+)", name):
            layer = _block(int(match[2])) if match[2] else "synthesis.b4.conv1"
            _put(found, layer, _STYLED, match[3], name, tensor)
        elif match := re.fullmatch(r"(to_rgb1|to_rgbs\.(\d\d?))\.(.+)", name):
            layer = f"synthesis.b{8 << int(match[2]) if match[2] else 4}.torgb"
            _put(found, layer, _TO_RGB, match[3], name, tensor)
        else:
            raise _unknown(name)
    if latent_avg is not None:
        found["mapping.w_avg"] = latent_avg.flatten()
    return found


def discriminator_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring a discriminator's weights to the names and shapes of `stylegan2.Discriminator`.

    Args:
        state: the weights as they stand in the file under "d".

    Returns:
        Weights by our names, resampling filters among them.

    Raises:
        InputError: if there is one that such a network does not have.
    """
    found: dict[str, Tensor] = {}
    blocks = _blocks(state)
    for name, tensor in state.items():
        if name in _DISCRIMINATOR_ENDS:
            own, convert = _DISCRIMINATOR_ENDS[name]
            found[own] = convert(tensor)
        elif name == "convs.0.0.weight":
            found[f"b{4 << blocks}.fromrgb.weight"] = tensor
        elif name == "convs.0.1.bias":
            found[f"b{4 << blocks}.fromrgb.bias"] = tensor.flatten()
        elif match := re.fullmatch(r"convs\.([1-9]\d?)\.(.+)", name):
            _put(found, f"b{8 << blocks - int(match[1])}", _RESIDUAL, match[2], name, tensor)
        else:
            raise _unknown(name)
    return found


def _blocks(names: Iterable[str]) -> int:
    """How many residual blocks there are, the first of them at the images' own resolution."""
    matches = (re.match(r"convs\.(\d\d?)\.", name) for name in names)
    return max((int(match[1]) for match in matches if match), default=0)


def _put(
    found: dict[str, Tensor],
    layer: str,
    table: Mapping[str, tuple[str, _Convert]],
    part: str,
    name: str,
    tensor: Tensor,
) -> None:
    if part not in table:
        raise _unknown(name)
    own, convert = table[part]
    found[f"{layer}.{own}"] = convert(tensor)


def _unknown(name: str) -> InputError:
    return InputError(
        f"a weight {shown(name)}, which StyleGAN2 does not have; only plain StyleGAN2 can be converted"
    )
