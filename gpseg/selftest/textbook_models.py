"""The networks and their training as they are usually written: the textbook's operators in NCHW, and plain steps."""

import contextlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gpseg import data, ops
from gpseg.models import stylegan2
from gpseg.models.stylegan2 import NetworkConfig, ema_copy, ema_update, mix_styles
from gpseg.nn import layers
from gpseg.selftest import grouped, textbook
from gpseg.training import losses
from gpseg.training.losses import discriminator_loss, generator_loss, r1_penalty
from gpseg.training.pretrain_config import PretrainConfig

_USERS: tuple[Any, ...] = (stylegan2, layers, losses)
"""The modules that call operators, each as `ops.…`."""


def _in_nchw(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        given = [a.contiguous() if isinstance(a, Tensor) else a for a in arguments]
        return function(x.contiguous(), *given, **options)

    return call


def _namespace(name: str, *modules: ModuleType) -> ModuleType:
    """What stands for `gpseg.ops`; functions of later modules take the place of earlier ones'."""
    namespace = ModuleType(name)
    for module in modules:
        for op in textbook.__all__:
            if hasattr(module, op):
                setattr(namespace, op, _in_nchw(getattr(module, op)))
    # Plain PyTorch has no way to leave weight gradients out.
    vars(namespace).update(setup_filter=ops.setup_filter, no_weight_grad=contextlib.nullcontext)
    return namespace


TEXTBOOK = _namespace("textbook_in_nchw", textbook)
GROUPED = _namespace("grouped_in_nchw", textbook, grouped)


@contextlib.contextmanager
def using(operators: ModuleType) -> Iterator[None]:
    """Have the networks call these operators; they are one for the whole process."""
    before = [module.ops for module in _USERS]
    for module in _USERS:
        module.ops = operators
    try:
        yield
    finally:
        for module, own in zip(_USERS, before, strict=True):
            module.ops = own


class PlainTraining:
    """Pre-training as it is usually written: the defaults of Adam, and fakes made anew for the discriminator.

    What is learned, and from what, is `gpseg.training.trainer.Trainer`'s.

    Args:
        config: options; of these the batch, style mixing, augmentation, R1 and the running mean count.
        network: what the networks are built from.
        dtype: of the features.
        device: where.
        compiled: through torch.compile, but for R1, whose second derivative that does not have.
    """

    def __init__(
        self,
        config: PretrainConfig,
        network: NetworkConfig,
        dtype: torch.dtype,
        device: torch.device,
        compiled: bool = False,
    ) -> None:
        self.config = config
        self.recipe = config.recipe()
        self.generator = network.generator(dtype).to(device)
        self.discriminator = network.discriminator(dtype).to(device)
        self.generator_ema = ema_copy(self.generator)
        self.optimizer_g = torch.optim.Adam(self.generator.parameters())
        self.optimizer_d = torch.optim.Adam(self.discriminator.parameters())
        self.device = device
        self.sampling = torch.Generator().manual_seed(config.seed)
        self.random = torch.Generator(device).manual_seed(config.seed)
        self.own_random = torch.Generator(device)
        if compiled:
            self.generator.synthesis.compile(dynamic=False)
            self.discriminator.compile(dynamic=False)

    def _latents(self) -> Tensor:
        size = (self.recipe.batch, self.recipe.z_dim)
        return torch.randn(size, generator=self.random, device=self.device)

    def _fakes(self, update_w_avg: bool = False) -> Tensor:
        ws = self.generator.mapping(self._latents(), update_w_avg=update_w_avg)
        if torch.rand((), generator=self.sampling) < self.config.style_mixing:
            first = int(torch.randint(1, self.generator.num_ws, (), generator=self.sampling))
            ws = mix_styles(ws, self.generator.mapping(self._latents()), first)
        images: Tensor = self.generator.synthesis(ws, noise=self._noise())
        return images

    def _noise(self) -> list[Tensor]:
        batch = self.recipe.batch
        return [
            torch.randn(batch, 1, r, r, generator=self.random, device=self.device)
            for r in self.generator.synthesis.noise_resolutions
        ]

    def _judged(self, images: Tensor) -> Tensor:
        if self.config.augment != "none":
            images = data.diff_augment(images, self.own_random)
        logits: Tensor = self.discriminator(images)
        return logits

    def generator_step(self) -> Tensor:
        """One step of the generator; returns its loss."""
        self.discriminator.requires_grad_(False)
        self.optimizer_g.zero_grad()
        loss = generator_loss(self._judged(self._fakes(update_w_avg=True)))
        loss.backward()
        self.optimizer_g.step()
        self.discriminator.requires_grad_(True)
        return loss.detach()

    def discriminator_step(self, reals: Tensor, fakes: Tensor | None = None) -> Tensor:
        """One step of the discriminator on images [N, 3, r, r]; returns its loss. No fakes: new ones are made."""
        if fakes is None:
            with torch.no_grad():
                fakes = self._fakes()
        self.optimizer_d.zero_grad()
        loss = discriminator_loss(self._judged(fakes), self._judged(reals))
        loss.backward()
        self.optimizer_d.step()
        return loss.detach()

    def r1_step(self, reals: Tensor) -> Tensor:
        """One step of the discriminator on the R1 penalty of images [N, 3, r, r], which it returns."""
        reals = reals.detach().requires_grad_(True)
        images = reals
        if self.config.augment != "none":
            images = data.diff_augment(images, self.own_random)
        self.optimizer_d.zero_grad()
        penalty = r1_penalty(self.discriminator.forward(images), reals)
        (penalty * (self.recipe.r1_gamma / 2 * self.config.r1_interval)).backward()
        self.optimizer_d.step()
        return penalty.detach()

    def average(self) -> None:
        """Move the running mean of the generator."""
        ema_update(self.generator_ema, self.generator, 0.998)
