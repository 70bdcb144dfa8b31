"""Pre-training: StyleGAN2 on unlabelled images of one class."""

import dataclasses
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from gpseg import data
from gpseg.errors import InputError
from gpseg.models.checkpoint import save_generator
from gpseg.models.segmenter import to_float, to_uint8
from gpseg.models.stylegan2 import NetworkConfig, ema_copy, ema_update, mix_styles
from gpseg.training.device import Precision, choose_device, choose_dtype
from gpseg.training.losses import discriminator_loss, generator_loss, r1_penalty
from gpseg.training.quality import (
    FEWEST_IMAGES,
    MOST_IMAGES,
    Quality,
    generated_images,
    real_images,
)
from gpseg.training.run_folder import Interrupted, RunFolder, stop_requests
from gpseg.training.steps import Means, check_finite, restore_optimizer, short_collections

log = logging.getLogger(__name__)

BETAS = (0.0, 0.99)
MBSTD_GROUP = 4
GRID = 8

_NAN_REMEDY = "--precision fp32, a larger --r1-gamma or smaller learning rates"
_MAY_CHANGE = (
    "out",
    "resume",
    "kimg",
    "device",
    "checkpointing",
    "cache_gib",
    "log_kimg",
    "snapshot_kimg",
    "metric_images",
)


@dataclass
class PretrainConfig:
    """Options of pre-training."""

    data: Path
    """Folder of images, or a data-set folder, of which unlabelled/ and images/ are used (no masks; to leave out the
    images you will test on, give its unlabelled/). They are kept in memory at the training resolution, 3 bytes a
    pixel, as far as --cache-gib allows."""
    out: Path | None = None
    """Run folder; new or empty, unless --resume. Default: runs/pretrain-<date>-<time>."""
    resume: bool = False
    """Continue the run in --out from its last state, with the same options."""
    resolution: int = 64
    """Side of the images, a power of two from 16 to 1024."""
    kimg: float = 400.0
    """Length: thousands of real images shown."""
    batch: int = 16
    """Images a step, a multiple of 4."""
    channel_base: int | None = None
    """Channels at resolution r are channel_base / r, at most channel_max. Default: 32 x resolution, right for a CPU;
    16384 or 32768 (the published size) on a GPU."""
    channel_max: int = 96
    """Channels at the coarse resolutions; 512 (the published size) on a GPU."""
    z_dim: int = 128
    """Width of the latents and of the styles."""
    mapping_layers: int = 4
    """Layers of the mapping network."""
    lr_generator: float = 0.0025
    """Learning rate of the generator (Adam)."""
    lr_discriminator: float = 0.0025
    """Learning rate of the discriminator (Adam), before the correction for lazy R1."""
    r1_gamma: float | None = None
    """Weight of the R1 penalty. Default: 0.002 x resolution² / batch."""
    r1_interval: int = 16
    """Steps from one R1 penalty to the next."""
    ema_kimg: float = 10.0
    """Half-life of the running mean of the generator's weights, in thousands of images; shorter at the start."""
    style_mixing: float = 0.9
    """Probability that two latents share the layers of a batch."""
    mirror: bool = True
    """Mirror every other image."""
    augment: Literal["diffaug", "none"] = "diffaug"
    """Augmentation of what the discriminator sees: colour, translation, cutout (DiffAugment), or none. Wanted below
    some ten thousand images or in long runs."""
    precision: Precision = "auto"
    """Dtype of the feature maps; auto is bf16 where the device computes in it, else fp32."""
    checkpointing: bool = False
    """Compute activations anew in the backward pass instead of keeping them: less memory, about a third more time."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto is a GPU if there is one."""
    seed: int = 0
    """Seed of everything random; the same seed on the same machine gives the same run."""
    cache_gib: float = 2.0
    """Memory that the images may take; if they need more, each batch is decoded anew, in the background."""
    log_kimg: float = 1.0
    """Thousands of images from one log entry to the next."""
    snapshot_kimg: float = 10.0
    """Thousands of images from one snapshot (sample grids, generator.safetensors, state) to the next."""
    metric_images: int = 2000
    """Real and generated images compared at each snapshot (swd, frechet_8, coverage, nearest: docs/pretraining.md), at most 10000;
    0: don't."""

    def network(self) -> NetworkConfig:
        """What the networks are built from."""
        return NetworkConfig(
            img_resolution=self.resolution,
            z_dim=self.z_dim,
            w_dim=self.z_dim,
            channel_base=self.channel_base or 32 * self.resolution,
            channel_max=self.channel_max,
            mapping_layers=self.mapping_layers,
        )

    def check(self) -> None:
        """Raise InputError for values that can't work."""
        if self.batch < 1 or self.batch % MBSTD_GROUP:
            raise InputError(f"--batch {self.batch}: give a multiple of {MBSTD_GROUP}")
        for name in (
            "kimg",
            "log_kimg",
            "snapshot_kimg",
            "r1_interval",
            "z_dim",
            "mapping_layers",
            "channel_max",
        ):
            if getattr(self, name) <= 0:
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: give a number above 0"
                )
        if self.metric_images and not FEWEST_IMAGES <= self.metric_images <= MOST_IMAGES:
            raise InputError(
                f"--metric-images {self.metric_images}: give 0 or {FEWEST_IMAGES} to {MOST_IMAGES}"
            )
        if self.channel_base is not None and self.channel_base < self.resolution:
            raise InputError(
                f"--channel-base {self.channel_base}: give at least the resolution, {self.resolution}"
            )


def pretrain(
    config: PretrainConfig,
    images: Tensor | data.UnlabelledImages | None = None,
    after_snapshot: Callable[[RunFolder], object] = lambda folder: None,
) -> Path:
    """Train a generator and its discriminator.

    Args:
        config: the options.
        images: uint8 [N, 3, r, r], to train on in place of those under `config.data`.
        after_snapshot: called whenever a snapshot is complete.

    Returns:
        The checkpoint (`models.checkpoint.load_generator` reads it).

    Raises:
        InputError: if options or images can't be used.
        RunError: if a loss isn't finite, or the disk is full.
        Interrupted: on Ctrl-C or SIGTERM, once the state is saved.
    """
    config.check()
    device = choose_device(config.device)
    network = config.network()
    torch.manual_seed(config.seed)
    trainer = Trainer(config, network, device)
    if images is None:
        images = data.UnlabelledImages(
            training_images(config.data),
            config.resolution,
            cache_bytes=round(config.cache_gib * 2**30),
        )
    if not len(images):
        raise InputError(f"{config.data}: no images there; give a folder of images")
    stored = dataclasses.asdict(config)
    with (
        RunFolder.open(
            config.out, "pretrain", stored, resume=config.resume, may_change=_MAY_CHANGE
        ) as folder,
        logging_redirect_tqdm(),
        stop_requests() as stop_requested,
        short_collections(),
    ):
        state = folder.load_state() if config.resume else None
        if state is not None:
            trainer.load_state_dict(state)
        parameters = sum(p.numel() for p in trainer.generator.parameters())
        log.info(
            "%s: %s %d images of %d px, generator of %.2f M parameters, %s on %s",
            folder.path,
            "continuing at" if state else "training on",
            trainer.seen if state else len(images),
            config.resolution,
            parameters / 1e6,
            str(trainer.dtype).removeprefix("torch."),
            device,
        )
        quality = _quality(images, config.metric_images)
        snapshot = partial(_snapshot, trainer, folder, quality, after_snapshot)
        _train(trainer, images, folder, stop_requested, snapshot)
        return snapshot()


def training_images(path: Path) -> list[Path]:
    """The images to pre-train on: those of a data set's `unlabelled/` and `images/`, or of a plain folder.

    Args:
        path: the folder.

    Returns:
        Paths, sorted by folder and name.

    Raises:
        InputError: if there are none.
    """
    parts = [path / name for name in ("unlabelled", "images") if (path / name).is_dir()]
    return [image for part in parts or [path] for image in data.images_in(part)]


@dataclass(frozen=True)
class Batch:
    """What a step draws from the images, and how its styles are mixed.

    Args:
        images: uint8 [N, 3, r, r].
        mirrored: which of them to mirror, [N].
        mixed_from: first layer that takes its style from a second latent; None for no mixing.
        sampling: state of the random stream that all this was drawn from, afterwards.
    """

    images: Tensor
    mirrored: Tensor
    mixed_from: int | None
    sampling: Tensor


class Trainer:
    """Networks, optimisers and random streams of a run, and the step that moves them.

    Args:
        config: the options.
        network: what the networks are built from.
        device: where they live.
    """

    def __init__(
        self, config: PretrainConfig, network: NetworkConfig, device: torch.device
    ) -> None:
        self.config = config
        self.network = network
        self.device = device
        self.dtype = choose_dtype(config.precision, device)
        self.seen = 0
        self.steps = 0
        self.generator = network.generator(self.dtype, config.checkpointing).to(device)
        self.discriminator = network.discriminator(self.dtype, config.checkpointing).to(device)
        self.generator_ema = ema_copy(self.generator)
        # The R1 steps are extra steps of Adam; this keeps the discriminator's pace as if there were none.
        share = config.r1_interval / (config.r1_interval + 1)
        self.optimizer_g = _adam(self.generator, config.lr_generator, 1.0)
        self.optimizer_d = _adam(self.discriminator, config.lr_discriminator, share)
        self.r1_gamma = config.r1_gamma
        if self.r1_gamma is None:
            self.r1_gamma = 0.002 * config.resolution**2 / config.batch
        self.sampling = torch.Generator().manual_seed(config.seed)
        self.random = torch.Generator(device).manual_seed(config.seed)

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        state |= {"seen": self.seen, "steps": self.steps}
        state |= {
            "rng": torch.get_rng_state(),
            "sampling": self.sampling.get_state(),
            "random": self.random.get_state(),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for name, part in self._parts().items():
            if isinstance(part, torch.optim.Optimizer):
                restore_optimizer(part, state[name])
            else:
                part.load_state_dict(state[name])
        self.seen, self.steps = state["seen"], state["steps"]
        torch.set_rng_state(state["rng"])
        self.sampling.set_state(state["sampling"])
        self.random.set_state(state["random"])
        if "cuda_rng" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    def _parts(self) -> dict[str, Any]:
        names = ("generator", "discriminator", "generator_ema", "optimizer_g", "optimizer_d")
        return {name: getattr(self, name) for name in names}

    def batches(self, images: Tensor | data.UnlabelledImages) -> Iterator[Batch]:
        """Draw batches without end, from where the last step left the random stream.

        They may be drawn ahead, in another thread: the stream moves on when `step` takes one.

        Args:
            images: uint8 [N, 3, r, r].
        """
        sampling = torch.Generator()
        sampling.set_state(self.sampling.get_state())
        while True:
            index = torch.randint(len(images), (self.config.batch,), generator=sampling)
            mirrored = torch.rand(self.config.batch, generator=sampling) < 0.5
            mixed_from = None
            if torch.rand((), generator=sampling) < self.config.style_mixing:
                num_ws = self.generator.num_ws
                mixed_from = int(torch.randint(1, num_ws, (), generator=sampling))
            yield Batch(images[index], mirrored, mixed_from, sampling.get_state())

    def step(self, images: Tensor | data.UnlabelledImages | Batch) -> dict[str, Tensor]:
        """Train on one batch of real images.

        Args:
            images: a batch, or uint8 [N, 3, r, r] to draw it from.

        Returns:
            Scalars by name, on the device: losses, and the mean sign of the discriminator's logits.
        """
        batch = images if isinstance(images, Batch) else next(self.batches(images))
        self.sampling.set_state(batch.sampling)
        reals = self._reals(batch)
        fakes, loss_g = self._generator_step(batch.mixed_from)
        # The discriminator learns from the images of the generator step: one forward pass of the generator less.
        values = {"loss_g": loss_g, **self._discriminator_step(fakes, reals)}
        if self.steps % self.config.r1_interval == 0:
            values["r1"] = self._r1_step(reals)
        self.seen += self.config.batch
        self.steps += 1
        ramped = min(self.config.ema_kimg * 1000, 0.05 * self.seen)
        ema_update(
            self.generator_ema, self.generator, 0.5 ** (self.config.batch / max(ramped, 1e-8))
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
        return data.diff_augment(images, self.random)

    def _latents(self, n: int) -> Tensor:
        return torch.randn(n, self.config.z_dim, generator=self.random, device=self.device)

    def _generator_step(self, mixed_from: int | None = None) -> tuple[Tensor, Tensor]:
        self.discriminator.requires_grad_(False)
        ws = self.generator.mapping(self._latents(self.config.batch), update_w_avg=True)
        if mixed_from is not None:
            others = self.generator.mapping(self._latents(self.config.batch))
            ws = mix_styles(ws, others, mixed_from)
        fakes = self.generator.synthesis(ws)
        loss = generator_loss(self.discriminator(self._augment(fakes)))
        _descend(self.optimizer_g, loss)
        self.discriminator.requires_grad_(True)
        return fakes.detach(), loss.detach()

    def _discriminator_step(self, fakes: Tensor, reals: Tensor) -> dict[str, Tensor]:
        # One pass for both: the minibatch-deviation groups don't straddle the two halves.
        logits = self.discriminator(self._augment(torch.cat([fakes, reals])))
        fake_logits, real_logits = logits.chunk(2)
        loss = discriminator_loss(fake_logits, real_logits)
        _descend(self.optimizer_d, loss)
        return {
            "loss_d": loss.detach(),
            "sign_fake": fake_logits.detach().sign().mean(),
            "sign_real": real_logits.detach().sign().mean(),
        }

    def _r1_step(self, reals: Tensor) -> Tensor:
        reals = reals.detach().requires_grad_(True)
        penalty = r1_penalty(self.discriminator(self._augment(reals)), reals)
        assert self.r1_gamma is not None
        _descend(self.optimizer_d, penalty * (self.r1_gamma / 2 * self.config.r1_interval))
        return penalty.detach()

    @torch.no_grad()
    def samples(self, truncation_psi: float) -> Tensor:
        """Images [GRID², 3, r, r] of the running mean, for the same latents and noise every time."""
        latents = torch.randn(
            GRID**2, self.config.z_dim, generator=torch.Generator().manual_seed(self.config.seed)
        )
        return torch.cat(
            [
                self.generator_ema(
                    z.to(self.device), truncation_psi=truncation_psi, noise_mode="const"
                )
                for z in latents.split(self.config.batch)
            ]
        )


def _adam(model: torch.nn.Module, lr: float, share: float) -> torch.optim.Adam:
    betas = (BETAS[0] ** share, BETAS[1] ** share)
    return torch.optim.Adam(model.parameters(), lr=lr * share, betas=betas, eps=1e-8, fused=True)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    # To these alone: R1's images take a gradient too.
    loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
    optimizer.step()


def _train(
    trainer: Trainer,
    images: Tensor | data.UnlabelledImages,
    folder: RunFolder,
    stop_requested: Callable[[], bool],
    snapshot: Callable[[], Path],
) -> None:
    config = trainer.config
    total = round(config.kimg * 1000)
    log_every, snapshot_every = config.log_kimg * 1000, config.snapshot_kimg * 1000
    next_log, next_snapshot = trainer.seen + log_every, trainer.seen + snapshot_every
    means = Means()
    started, begun_at = time.monotonic(), trainer.seen
    # A terminal is drawn anew every second; a log file gets a line now and then.
    interval = 1.0 if sys.stderr.isatty() else 60.0
    with (
        tqdm(
            total=total, initial=trainer.seen, unit="img", unit_scale=True, mininterval=interval
        ) as bar,
        data.made_ahead(trainer.batches(images), data.batches_ahead(images)) as batches,
    ):
        while trainer.seen < total:
            means.add(trainer.step(next(batches)))
            bar.update(config.batch)
            stopping = stop_requested()
            if not stopping and trainer.seen < min(next_log, next_snapshot, total):
                continue
            values = means.take()
            check_finite(values, folder, _NAN_REMEDY)
            values["s_per_kimg"] = 1000 * (time.monotonic() - started) / (trainer.seen - begun_at)
            values["memory_gib"] = _memory(trainer.device)
            folder.log(trainer.seen, values)
            bar.set_postfix_str(f"{values['s_per_kimg']:.1f} s/kimg", refresh=False)
            shown = "  ".join(f"{name} {value:.3g}" for name, value in values.items())
            log.info("%.1f kimg  %s", trainer.seen / 1000, shown)
            if stopping:
                folder.save_state(trainer.seen, trainer.state_dict())
                raise Interrupted(folder.path)
            if trainer.seen >= next_snapshot and trainer.seen < total:
                snapshot()
                next_snapshot += snapshot_every
            if trainer.seen >= next_log:
                next_log += log_every
            started, begun_at = time.monotonic(), trainer.seen


def _quality(images: Tensor | data.UnlabelledImages, count: int) -> Quality | None:
    """What to measure generated images with; None if that is not wanted, or there are too few real ones."""
    if min(count, len(images)) < FEWEST_IMAGES:
        return None
    return Quality(real_images(images, count))


def _snapshot(
    trainer: Trainer,
    folder: RunFolder,
    quality: Quality | None,
    after_snapshot: Callable[[RunFolder], object],
) -> Path:
    for psi in (0.7, 1.0):
        folder.write_image(f"psi{psi}", image_grid(trainer.samples(psi)), trainer.seen)
    path = folder.path / "generator.safetensors"
    extra = {"images_seen": trainer.seen, "r1_gamma": trainer.r1_gamma}
    save_generator(path, trainer.generator_ema, trainer.discriminator, trainer.network, extra)
    if quality is not None:
        _measure(trainer, folder, quality)
    folder.save_state(trainer.seen, trainer.state_dict())
    after_snapshot(folder)
    return path


def _measure(trainer: Trainer, folder: RunFolder, quality: Quality) -> None:
    started = time.monotonic()
    fakes = generated_images(trainer.generator_ema, quality.count, trainer.config.batch)
    values = quality.measure(fakes)
    folder.log(trainer.seen, values)
    shown = "  ".join(f"{name} {value:.3g}" for name, value in values.items())
    log.info(
        "%.1f kimg  %s  (%d images, %.1f s)",
        trainer.seen / 1000,
        shown,
        quality.count,
        time.monotonic() - started,
    )


def image_grid(images: Tensor, columns: int = GRID) -> Tensor:
    """Tile images into one picture.

    Args:
        images: [N, 3, h, w], −1 … 1.
        columns: images a row, if there are that many.

    Returns:
        uint8 [3, rows·h, columns·w].
    """
    n, c, h, w = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    pixels = to_uint8(images)
    canvas = pixels.new_zeros(rows * columns, c, h, w)
    canvas[:n] = pixels
    return (
        canvas.reshape(rows, columns, c, h, w)
        .permute(2, 0, 3, 1, 4)
        .reshape(c, rows * h, columns * w)
    )


def _memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
