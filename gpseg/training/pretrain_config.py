"""Options of pre-training, and the presets that fill in those not given."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpseg.errors import InputError
from gpseg.models.checkpoint import load_generator
from gpseg.models.stylegan2 import MAX_RESOLUTION, MIN_RESOLUTION, NetworkConfig
from gpseg.training import distributed
from gpseg.training.checks import check_not_negative, check_positive, check_seed, check_share
from gpseg.training.device import AnyPrecision, choose_device
from gpseg.training.quality import FEWEST_IMAGES, MOST_IMAGES

MBSTD_GROUP = 4
FP16_CLAMP = 256.0
FP16_RESOLUTIONS = 4
DEFAULT_RESOLUTION = 64


@dataclass(frozen=True)
class Preset:
    """A row of the table of presets.

    Args:
        batch: images a step.
        z_dim: width of latents and styles.
        channel_base: channels at resolution r are channel_base / r …
        channel_max: … and at most this many.
        mapping_layers: layers of the mapping network.
        path_length: weight of the path-length penalty; 0 for none.
        r1: the weight of R1 is this times resolution² / batch.
    """

    batch: int
    z_dim: int
    channel_base: int
    channel_max: int
    mapping_layers: int
    path_length: float
    r1: float


RESOLUTIONS = tuple(2**i for i in range(MIN_RESOLUTION.bit_length() - 1, 11))
assert RESOLUTIONS[-1] == MAX_RESOLUTION

PRESETS = {
    # What was tried here, at 64 px on two cores (docs/results.md), and without path length. Above, R1 follows the
    # published rule, but never below what was tried.
    **{f"{r}-cpu": Preset(16, 128, 32 * r, 96, 4, 0.0, 0.002) for r in (16, 32, 64)},
    "128-cpu": Preset(16, 128, 4096, 96, 4, 0.0, 0.0005),
    **{f"{r}-cpu": Preset(16, 128, 32 * r, 96, 4, 0.0, 0.0002) for r in (256, 512, 1024)},
    # The published sizes and rules: StyleGAN2 with adaptive augmentation, for one GPU; no path length at CIFAR's size.
    "16-gpu": Preset(32, 512, 16384, 512, 2, 0.0, 0.0002),
    "32-gpu": Preset(32, 512, 16384, 512, 2, 0.0, 0.0002),
    "64-gpu": Preset(32, 512, 16384, 512, 2, 2.0, 0.0002),
    "128-gpu": Preset(32, 512, 16384, 512, 2, 2.0, 0.0002),
    "256-gpu": Preset(16, 512, 16384, 512, 2, 2.0, 0.0002),
    "512-gpu": Preset(8, 512, 32768, 512, 8, 2.0, 0.0002),
    "1024-gpu": Preset(4, 512, 32768, 512, 8, 2.0, 0.0002),
}


@dataclass(frozen=True)
class Recipe:
    """What a run trains with: an option where one was given, else what the preset says.

    Args:
        resolution: side of the images.
        batch: images a step, over all processes.
        z_dim: width of latents and styles.
        channel_base: channels at resolution r are channel_base / r …
        channel_max: … and at most this many.
        mapping_layers: layers of the mapping network.
        lr_generator: learning rate of the generator.
        lr_discriminator: learning rate of the discriminator.
        r1_gamma: weight of R1.
        ema_kimg: half-life of the running mean of the weights, in thousands of images.
        path_length_weight: weight of the path-length penalty.
    """

    resolution: int
    batch: int
    z_dim: int
    channel_base: int
    channel_max: int
    mapping_layers: int
    lr_generator: float
    lr_discriminator: float
    r1_gamma: float
    ema_kimg: float
    path_length_weight: float


_RECIPE = tuple(field.name for field in dataclasses.fields(Recipe))
_OF_NETWORK = ("z_dim", "channel_base", "channel_max", "mapping_layers")


@dataclass
class PretrainConfig:
    """Options of pre-training."""

    data: Path | None = None
    """Images of any size: a folder (what lies in it or, where it holds folders only, below it), a zip file, a pattern
    such as 'photos/**/*.jpg', or a data set with masks, whose val and test images are left out (not those of a zipped one).
    Many are packed once at the training resolution, 3 bytes a pixel,
    into a file under ~/.cache/gpseg, or GPSEG_CACHE if that is set. Default: 20,000 faces that the package draws
    itself, other ones than those of gpseg.train."""
    out: Path | None = None
    """Run folder; new or empty, unless --resume. Default: runs/pretrain-<date>-<time>."""
    resume: bool = False
    """Continue the run in --out from its last state, with the same options."""
    preset: str = "auto"
    """What fills in the options that are not given: a resolution (256), with -cpu or -gpu to choose the sizes for a
    small or a large machine (256-gpu); or auto, for --resolution. Without -cpu or -gpu the device decides. The
    table is above."""
    resolution: int | None = None
    """Side of the images, a power of two from 16 to 1024. Default: the preset's, or 64."""
    kimg: float = 400.0
    """Length: thousands of real images shown."""
    batch: int | None = None
    """Images a step, over all processes; a multiple of 4. Default: by preset."""
    micro_batch: int | None = None
    """Images that one process passes through the networks at once, a multiple of 4: its share of the batch is taken in
    parts of this size, whose gradients are summed up. Less memory, the same step. Default: its whole share."""
    channel_base: int | None = None
    """Channels at resolution r are channel_base / r, at most channel_max. Default: by preset."""
    channel_max: int | None = None
    """Channels at the coarse resolutions. Default: by preset."""
    z_dim: int | None = None
    """Width of the latents and of the styles. Default: by preset."""
    mapping_layers: int | None = None
    """Layers of the mapping network. Default: by preset."""
    transfer: Path | None = None
    """Start from the weights of this checkpoint, of this or another resolution: all of generator and discriminator
    that fits by name and shape. Its channels, z-dim and mapping layers are taken where they are not given."""
    freeze_d: int = 0
    """Blocks of the discriminator, from the highest resolution down, that stay as they are; for --transfer to few
    images."""
    lr_generator: float | None = None
    """Learning rate of the generator (Adam), before the correction for lazy path length. Default: 0.0025, and 0.002
    from 1024 px."""
    lr_discriminator: float | None = None
    """Learning rate of the discriminator (Adam), before the correction for lazy R1. Default: as for the
    generator."""
    r1_gamma: float | None = None
    """Weight of the R1 penalty. Default: a factor by preset, x resolution² / batch."""
    r1_interval: int = 16
    """Steps from one R1 penalty to the next."""
    path_length_weight: float | None = None
    """Weight of the path-length penalty; 0 for none. Default: by preset."""
    path_length_interval: int = 4
    """Steps from one path-length penalty to the next."""
    ema_kimg: float | None = None
    """Half-life of the running mean of the generator's weights, in thousands of images; shorter at the start. Default:
    batch x 10 / 32."""
    style_mixing: float = 0.9
    """Probability that two latents share the layers of a batch."""
    mirror: bool = True
    """Whether images are mirrored, every other one on average."""
    augment: Literal["ada", "diffaug", "none"] = "diffaug"
    """Augmentation of what the discriminator sees: colour, translation, cutout (DiffAugment); or flips, turns, warps
    and colours, as often as its overfitting asks for (ada); or none. Wanted below some ten thousand images or in long
    runs."""
    ada_target: float = 0.6
    """With --augment ada: the mean sign of the discriminator's logits of real images to hold, -1 to 1."""
    ada_kimg: float = 100.0
    """With --augment ada: thousands of images in which the probability may go from 0 to 1. The published 500 are for runs
    of thousands; in one of 100 to 400 it would hardly move."""
    augment_p: float | None = None
    """With --augment ada: a fixed probability of each transform, 0 to 1. Default: controlled, from 0."""
    precision: AnyPrecision = "auto"
    """Dtype of the feature maps; auto is bf16 where the device computes in it, else fp32. fp16, on a GPU only, bounds
    every layer at 256 and keeps all but the four highest resolutions in fp32."""
    checkpointing: bool = False
    """Compute activations anew in the backward pass instead of keeping them: less memory, about a third more time."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto is a GPU if there is one (under torchrun, one for each process)."""
    seed: int = 0
    """Seed of everything random; the same seed on the same machine gives the same run."""
    log_kimg: float = 1.0
    """Thousands of images from one log entry to the next."""
    snapshot_kimg: float = 10.0
    """Thousands of images from one snapshot (sample grids, generator.safetensors, state) to the next."""
    metric_images: int = 2000
    """Real and generated images compared at each snapshot (swd, frechet_8, coverage, nearest: docs/pretraining.md), at most 10000;
    0: don't."""
    rank_timeout: float = distributed.TIMEOUT
    """Under torchrun: seconds that a process waits within a step for the others before it gives them up."""

    def recipe(self) -> Recipe:
        """What the options and the preset come to.

        Raises:
            InputError: there is no such preset, or the checkpoint to start from can't be read.
        """
        name = self.preset_name()
        preset, resolution = PRESETS[name], int(name.split("-")[0])
        batch = self.batch or preset.batch
        lr = 0.002 if resolution >= 1024 else 0.0025
        found: dict[str, Any] = {
            "resolution": resolution,
            "batch": batch,
            **{f: getattr(preset, f) for f in _OF_NETWORK},
            "lr_generator": lr,
            "lr_discriminator": lr,
            "r1_gamma": preset.r1 * resolution**2 / batch,
            "ema_kimg": batch * 10 / 32,
            "path_length_weight": preset.path_length,
        }
        given = {f: getattr(self, f) for f in _RECIPE if getattr(self, f) is not None}
        if self.transfer is not None and not given.keys() >= set(_OF_NETWORK):
            network = load_generator(self.transfer)[2]
            found |= {f: getattr(network, f) for f in _OF_NETWORK}
        return Recipe(**found | given)

    def preset_name(self) -> str:
        """The row of the table that the preset stands for, such as "64-cpu"."""
        match = re.fullmatch(r"(auto|\d+)(-cpu|-gpu)?", self.preset)
        number = match[1] if match and match[1] != "auto" else None
        resolution = (
            int(number or DEFAULT_RESOLUTION) if self.resolution is None else self.resolution
        )
        if resolution not in RESOLUTIONS:
            raise InputError(
                f"resolution {resolution}: give a power of two from {MIN_RESOLUTION} to {MAX_RESOLUTION}"
            )
        if match is None:
            raise InputError(
                f"--preset {self.preset}: give auto or a resolution, such as 256, 256-cpu or 256-gpu"
            )
        machine = match[2] or ("-cpu" if choose_device(self.device).type == "cpu" else "-gpu")
        return f"{resolution}{machine}"

    def filled_in(self, stored: Mapping[str, Any] | None = None) -> "PretrainConfig":
        """These options, with those not given as the preset says.

        Args:
            stored: the options of the run to continue, whose values take the preset's place.
        """
        before = stored or {}
        known = {f: before[f] for f in _RECIPE if getattr(self, f) is None and f in before}
        config = dataclasses.replace(self, **known)
        return dataclasses.replace(config, **dataclasses.asdict(config.recipe()))

    def network(self) -> NetworkConfig:
        """What the networks are built from."""
        recipe = self.recipe()
        return NetworkConfig(
            img_resolution=recipe.resolution,
            z_dim=recipe.z_dim,
            w_dim=recipe.z_dim,
            channel_base=recipe.channel_base,
            channel_max=recipe.channel_max,
            mapping_layers=recipe.mapping_layers,
            conv_clamp=FP16_CLAMP if self.precision == "fp16" else None,
        )

    def check(self) -> None:
        """Raise InputError for values that can't work."""
        recipe = self.recipe()
        _, processes = distributed.rank_and_count()
        among = f" for each of {processes} processes" if processes > 1 else ""
        if recipe.batch < 1 or recipe.batch % (MBSTD_GROUP * processes):
            raise InputError(f"--batch {recipe.batch}: give a multiple of {MBSTD_GROUP}{among}")
        share, micro = recipe.batch // processes, self.micro_batch
        if micro is not None and (micro < 1 or micro % MBSTD_GROUP or share % micro):
            raise InputError(
                f"--micro-batch {micro}: give a multiple of {MBSTD_GROUP} that divides {share}"
            )
        check_positive(
            self,
            "kimg",
            "log_kimg",
            "snapshot_kimg",
            "r1_interval",
            "path_length_interval",
            "ada_kimg",
            "rank_timeout",
        )
        check_positive(recipe, "z_dim", "mapping_layers", "channel_max")
        check_not_negative(
            recipe,
            "lr_generator",
            "lr_discriminator",
            "r1_gamma",
            "ema_kimg",
            "path_length_weight",
        )
        check_share(self, "style_mixing")
        check_seed(self)
        if recipe.channel_base < recipe.resolution:
            raise InputError(
                f"--channel-base {recipe.channel_base}: give at least the resolution, {recipe.resolution}"
            )
        if self.metric_images and not FEWEST_IMAGES <= self.metric_images <= MOST_IMAGES:
            raise InputError(
                f"--metric-images {self.metric_images}: give 0 or {FEWEST_IMAGES} to {MOST_IMAGES}"
            )
        if not -1 <= self.ada_target <= 1:
            raise InputError(f"--ada-target {self.ada_target}: give a mean of signs, -1 to 1")
        if self.augment_p is not None and not 0 <= self.augment_p <= 1:
            raise InputError(f"--augment-p {self.augment_p}: give a probability, 0 to 1")
        if self.augment_p is not None and self.augment != "ada":
            raise InputError(f"--augment-p {self.augment_p}: it goes with --augment ada")
        blocks = recipe.resolution.bit_length() - 3
        if not 0 <= self.freeze_d <= blocks:
            raise InputError(
                f"--freeze-d {self.freeze_d}: give 0 to {blocks}, the blocks at {recipe.resolution} px"
            )


def preset_table() -> str:
    """The presets as a table for people, with what follows from them."""
    rows = [
        [
            "preset",
            "batch",
            "z",
            "channel-base",
            "channel-max",
            "mapping",
            "path-length",
            "R1-gamma",
            "lr",
            "ema-kimg",
        ]
    ]
    for name, p in PRESETS.items():
        recipe = PretrainConfig(preset=name).recipe()
        rates = recipe.r1_gamma, recipe.lr_generator, recipe.ema_kimg
        sizes = p.batch, p.z_dim, p.channel_base, p.channel_max, p.mapping_layers, p.path_length
        rows.append([name, *(f"{x:g}" for x in sizes), *(f"{x:.3g}" for x in rates)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [map(str.rjust, row, widths) for row in rows]
    return "\n".join("  ".join(line) for line in lines)
