"""A step of pre-training: StyleGAN2's losses, lazily regularised, on a batch that may be taken in parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpseg import data
from gpseg.models.segmenter import to_float
from gpseg.models.stylegan2 import NetworkConfig, ema_copy, ema_update, mix_styles
from gpseg.training.ada import SignController
from gpseg.training.ada import augment as ada_augment
from gpseg.training.device import choose_dtype
from gpseg.training.distributed import ALONE, Ranks
from gpseg.training.losses import discriminator_loss, generator_loss, path_lengths, r1_penalty
from gpseg.training.pretrain_config import FP16_RESOLUTIONS, PretrainConfig
from gpseg.training.steps import restore_optimizer

BETAS = (0.0, 0.99)
ADA_INTERVAL = 4
"""Steps from one adjustment of the probability of augmentation to the next, as published."""
GRID = 8
PATH_LENGTH_DECAY = 0.01
PATH_LENGTH_SHARE = 2  # one image in so many is taken for the path-length penalty


@dataclass(frozen=True)
class Batch:
    """What a step draws from the images, and how its styles are mixed.

    Args:
        images: this process's share of the batch, uint8 [n, 3, r, r].
        mirrored: which of them to mirror, [n].
        mixed_from: first layer that takes its style from a second latent; None for no mixing.
        seed: of the step's augmentation.
        sampling: state of the random stream that all this was drawn from, afterwards.
    """

    images: Tensor
    mirrored: Tensor
    mixed_from: int | None
    seed: int
    sampling: Tensor


@dataclass(frozen=True)
class Drawn:
    """Latents [n, z_dim] of some images, those their styles are mixed with, and each layer's noise [n, 1, r, r]."""

    latents: Tensor
    others: Tensor | None
    noise: tuple[Tensor, ...]


class Trainer:
    """Networks, optimisers and random streams of a run, and the step that moves them.

    A step draws for the whole batch, from streams that are the same in all processes, and takes this process's share,
    in micro-batches: neither their size nor the number of processes changes what is learned, but for rounding and for
    the augmentation, which every process draws for itself. A group of the minibatch deviation, four consecutive images,
    never straddles two of them.

    Args:
        config: the options.
        network: what the networks are built from.
        device: where they live.
        ranks: the processes among which a batch is shared.
    """

    def __init__(
        self,
        config: PretrainConfig,
        network: NetworkConfig,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config = config
        self.recipe = config.recipe()
        self.network = network
        self.device = device
        self.ranks = ranks
        self.share = self.recipe.batch // ranks.count
        self.micro_batch = config.micro_batch or self.share
        self.dtype = choose_dtype(config.precision, device)
        self.seen = 0
        self.steps = 0
        below = 0
        if self.dtype == torch.float16:
            below = max(network.img_resolution >> (FP16_RESOLUTIONS - 1), 8)
        build = (self.dtype, config.checkpointing, below)
        self.generator = network.generator(*build).to(device)
        self.discriminator = network.discriminator(*build).to(device)
        self.generator_ema = ema_copy(self.generator)
        for r in self.discriminator.resolutions[: config.freeze_d]:
            self.discriminator.block(r).requires_grad_(False)
        self._learning_d = [p for p in self.discriminator.parameters() if p.requires_grad]
        lazy_g = self.recipe.path_length_weight > 0
        self.optimizer_g = _adam(
            [*self.generator.parameters()],
            self.recipe.lr_generator,
            config.path_length_interval if lazy_g else None,
        )
        self.optimizer_d = _adam(self._learning_d, self.recipe.lr_discriminator, config.r1_interval)
        self.path_length_mean = torch.zeros((), device=device)
        self.ada: SignController | None = None
        if config.augment == "ada":
            start = config.augment_p or 0.0
            self.ada = SignController(
                config.ada_target, config.ada_kimg, start, device, self.ranks.total
            )
        self.sampling = torch.Generator().manual_seed(config.seed)
        self.random = torch.Generator(device).manual_seed(config.seed)
        self.own_random = torch.Generator(device)

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on, whatever the number of processes."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"seen": self.seen, "steps": self.steps}
        state |= {
            "path_length_mean": self.path_length_mean,
            "sampling": self.sampling.get_state(),
            "random": self.random.get_state(),
        }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for name, part in self._parts().items():
            if isinstance(part, torch.optim.Optimizer):
                restore_optimizer(part, state[name])
            else:
                part.load_state_dict(state[name])
        self.seen, self.steps = state["seen"], state["steps"]
        self.path_length_mean.copy_(state["path_length_mean"])
        self.sampling.set_state(state["sampling"])
        self.random.set_state(state["random"])

    def _parts(self) -> dict[str, Any]:
        names = ("generator", "discriminator", "generator_ema", "optimizer_g", "optimizer_d")
        parts = {name: getattr(self, name) for name in names}
        return parts if self.ada is None else {**parts, "ada": self.ada}

    def networks(self) -> list[Tensor]:
        """Parameters and buffers of all networks; in all processes the same."""
        models = (self.generator, self.discriminator, self.generator_ema)
        return [tensor for model in models for tensor in model.state_dict().values()]

    def batches(self, images: Tensor | data.UnlabelledImages) -> Iterator[Batch]:
        """Draw batches without end, from where the last step left the random stream.

        They may be drawn ahead, in another thread: the stream moves on when `step` takes one.

        Args:
            images: uint8 [N, 3, r, r].
        """
        sampling = torch.Generator()
        sampling.set_state(self.sampling.get_state())
        batch, share = self.recipe.batch, self.ranks.share(self.recipe.batch)
        while True:
            index = torch.randint(len(images), (batch,), generator=sampling)
            mirrored = torch.rand(batch, generator=sampling) < 0.5
            mixed_from = None
            if torch.rand((), generator=sampling) < self.config.style_mixing:
                num_ws = self.generator.num_ws
                mixed_from = int(torch.randint(1, num_ws, (), generator=sampling))
            seed = int(torch.randint(2**62, (), generator=sampling))
            state = sampling.get_state()
            yield Batch(images[index[share]], mirrored[share], mixed_from, seed, state)

    def step(self, images: Tensor | data.UnlabelledImages | Batch) -> dict[str, Tensor]:
        """Train on one batch of real images.

        Args:
            images: a batch, or uint8 [N, 3, r, r] to draw it from.

        Returns:
            Scalars by name, on the device, of this process's share: losses, and the mean sign of the discriminator's
            logits.
        """
        batch = images if isinstance(images, Batch) else next(self.batches(images))
        self.sampling.set_state(batch.sampling)
        self.own_random.manual_seed(batch.seed + self.ranks.rank)
        reals = self._reals(batch)
        fakes, loss_g = self._generator_step(batch.mixed_from)
        values = {"loss_g": loss_g}
        lazy_g = self.recipe.path_length_weight > 0
        if lazy_g and self.steps % self.config.path_length_interval == 0:
            values["path_length"] = self._path_length_step(batch.mixed_from)
        # The discriminator learns from the images of the generator step: one forward pass of the generator less.
        values |= self._discriminator_step(fakes, reals)
        if self.steps % self.config.r1_interval == 0:
            values["r1"] = self._r1_step(reals)
        self.seen += self.recipe.batch
        self.steps += 1
        if self.ada is not None:
            values["augment_p"] = torch.full((), self.ada.p, device=self.device)
            if self.config.augment_p is None and self.steps % ADA_INTERVAL == 0:
                self.ada.adjust()
        half_life = min(self.recipe.ema_kimg * 1000, 0.05 * self.seen)
        ema_update(
            self.generator_ema, self.generator, 0.5 ** (self.recipe.batch / max(half_life, 1e-8))
        )
        return values

    def _reals(self, batch: Batch) -> Tensor:
        images = to_float(batch.images.to(self.device))
        if not self.config.mirror:
            return images
        mirrored = batch.mirrored.to(self.device)[:, None, None, None]
        return torch.where(mirrored, images.flip(3), images)

    def _augment(self, images: Tensor) -> Tensor:
        if self.config.augment == "none":
            return images
        if self.ada is not None:
            return ada_augment(images, self.ada.p, self.own_random)
        return data.diff_augment(images, self.own_random)

    def _normal(self, *size: int) -> Tensor:
        """This process's share of numbers from N(0, 1) that are drawn for all of them."""
        whole = torch.randn(size, generator=self.random, device=self.device)
        return whole[self.ranks.share(size[0])]

    def _draw(self, count: int, mixed: bool) -> list[Drawn]:
        """Latents and noise of `count` images of the whole batch: this process's share, in micro-batches."""
        latents = self._normal(count, self.recipe.z_dim)
        others = self._normal(count, self.recipe.z_dim) if mixed else None
        resolutions = self.generator.synthesis.noise_resolutions
        noise = [self._normal(count, 1, r, r) for r in resolutions]
        parts = range(0, self.share, self.micro_batch)
        size = self.micro_batch * count // self.recipe.batch
        spans = [slice(i * size, (i + 1) * size) for i in range(len(parts))]
        return [
            Drawn(
                latents[span],
                None if others is None else others[span],
                tuple(layer[span] for layer in noise),
            )
            for span in spans
        ]

    def _styles(self, drawn: Drawn, mixed_from: int | None) -> tuple[Tensor, Tensor]:
        """Styles [n, num_ws, w_dim], and the mean w [w_dim] before they are mixed."""
        ws: Tensor = self.generator.mapping(drawn.latents)
        mean = ws.detach()[:, 0].mean(dim=0)
        if drawn.others is not None and mixed_from is not None:
            ws = mix_styles(ws, self.generator.mapping(drawn.others), mixed_from)
        return ws, mean

    def _generator_step(self, mixed_from: int | None = None) -> tuple[Tensor, Tensor]:
        fakes: list[Tensor] = []
        means: list[Tensor] = []

        def losses() -> Iterator[Tensor]:
            for drawn in self._draw(self.recipe.batch, mixed_from is not None):
                ws, mean = self._styles(drawn, mixed_from)
                images = self.generator.synthesis(ws, noise=drawn.noise)
                fakes.append(images.detach())
                means.append(mean)
                yield generator_loss(self.discriminator(self._augment(images)))

        for p in self._learning_d:
            p.requires_grad_(False)
        loss = self._descend(self.optimizer_g, losses())
        for p in self._learning_d:
            p.requires_grad_(True)
        mapping = self.generator.mapping
        mapping.w_avg.lerp_(self.ranks.mean(torch.stack(means).mean(dim=0)), 1 - mapping.w_avg_beta)
        return _joined(fakes), loss

    def _path_length_step(self, mixed_from: int | None = None) -> Tensor:
        lengths: list[Tensor] = []
        count = self.recipe.batch // PATH_LENGTH_SHARE
        directions = self._normal(count, *self._image_size())

        def losses() -> Iterator[Tensor]:
            drawn = self._draw(count, mixed_from is not None)
            for part, direction in zip(drawn, directions.chunk(len(drawn)), strict=True):
                ws, _ = self._styles(part, mixed_from)
                images = self.generator.synthesis(ws, noise=part.noise)
                found = path_lengths(images, ws, direction)
                lengths.append(found.detach())
                yield (found - self.path_length_mean).square().mean()

        weight = self.recipe.path_length_weight * self.config.path_length_interval
        self._descend(self.optimizer_g, losses(), weight)
        length = self.ranks.mean(torch.cat(lengths).mean())
        self.path_length_mean.lerp_(length, PATH_LENGTH_DECAY)
        return length

    def _image_size(self) -> tuple[int, int, int]:
        r = self.network.img_resolution
        return self.network.img_channels, r, r

    def _discriminator_step(self, fakes: Tensor, reals: Tensor) -> dict[str, Tensor]:
        signs: list[Tensor] = []

        def losses() -> Iterator[Tensor]:
            parts = fakes.split(self.micro_batch), reals.split(self.micro_batch)
            for pair in zip(*parts, strict=True):
                # One pass for both: the minibatch-deviation groups don't straddle the two halves.
                logits = self.discriminator(self._augment(torch.cat(pair)))
                fake_logits, real_logits = logits.chunk(2)
                if self.ada is not None:
                    self.ada.add(real_logits)
                signs.append(logits.detach().sign().view(2, -1).mean(dim=1))
                yield discriminator_loss(fake_logits, real_logits)

        loss = self._descend(self.optimizer_d, losses())
        sign_fake, sign_real = torch.stack(signs).mean(dim=0)
        return {"loss_d": loss, "sign_fake": sign_fake, "sign_real": sign_real}

    def _r1_step(self, reals: Tensor) -> Tensor:
        def losses() -> Iterator[Tensor]:
            for part in reals.split(self.micro_batch):
                images = part.detach().requires_grad_(True)
                yield r1_penalty(self.discriminator(self._augment(images)), images)

        weight = self.recipe.r1_gamma / 2 * self.config.r1_interval
        return self._descend(self.optimizer_d, losses(), weight)

    def _descend(
        self, optimizer: torch.optim.Optimizer, losses: Iterator[Tensor], weight: float = 1.0
    ) -> Tensor:
        """Go one step down the mean of the micro-batches' losses in all processes; returns this one's mean."""
        optimizer.zero_grad(set_to_none=True)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        weight *= self.micro_batch / self.share
        values = []
        for loss in losses:
            # To these alone: R1's images take a gradient too.
            (loss * weight).backward(inputs=parameters)
            values.append(loss.detach())
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.ranks.mean_(gradients)
        if self.dtype == torch.float16:
            for gradient in gradients:
                gradient.nan_to_num_(nan=0.0, posinf=1e5, neginf=-1e5)
        optimizer.step()
        return torch.stack(values).mean()

    @torch.no_grad()
    def samples(self, truncation_psi: float) -> Tensor:
        """Images [GRID², 3, r, r] of the running mean, for the same latents and noise every time."""
        latents = torch.randn(
            GRID**2, self.recipe.z_dim, generator=torch.Generator().manual_seed(self.config.seed)
        )
        return torch.cat(
            [
                self.generator_ema(
                    z.to(self.device), truncation_psi=truncation_psi, noise_mode="const"
                )
                for z in latents.split(self.micro_batch)
            ]
        )


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _adam(
    parameters: list[torch.nn.Parameter], lr: float, interval: int | None
) -> torch.optim.Adam:
    """Adam; the steps of a penalty, one every `interval`, are extra: the pace is kept as if there were none."""
    share = 1.0 if interval is None else interval / (interval + 1)
    betas = (BETAS[0] ** share, BETAS[1] ** share)
    return torch.optim.Adam(parameters, lr=lr * share, betas=betas, eps=1e-8, fused=True)
