"""What a generator makes: images, grids, an interpolation, mixed styles, and how far it is from real images."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gpseg.atomic import replacing
from gpseg.data import UnlabelledImages, training_images
from gpseg.errors import InputError
from gpseg.evaluation.fidelity import Inception, fid, kid
from gpseg.models.checkpoint import load_generator
from gpseg.models.segmenter import to_uint8
from gpseg.models.stylegan2 import Generator, mix_styles
from gpseg.training.checks import check_least, check_seed
from gpseg.training.device import Precision, choose_device, choose_dtype
from gpseg.training.pretrain import image_grid
from gpseg.training.quality import (
    FEWEST_IMAGES,
    MOST_IMAGES,
    Quality,
    generated_images,
    real_images,
)

log = logging.getLogger(__name__)

GRID_IMAGES = 64
_MIXED_ROWS, _MIXED_COLUMNS = 4, 7
_WIDTH = 512  # pixels of an interpolation: it shows several images side by side if they are small
_MOST_ACROSS = 4
_FRAME_MS = 50


@dataclass
class GenerateConfig:
    """Options of generating."""

    generator: Path
    """Checkpoint of gpseg.pretrain, or one that gpseg.convert made of a published one."""
    out: Path
    """Folder for the pictures; new or empty."""
    count: int = 16
    """Single images, to images/ in the folder, at the first of --psi: one for each seed from --seed on."""
    psi: list[float] = field(default_factory=lambda: [0.7, 1.0])
    """Truncations, each of which gets a grid: 1 is what the generator learned, towards 0 images become alike and, as a
    rule, cleaner."""
    seed: int = 0
    """Seed of the first image; the next has the next."""
    animation: Literal["gif", "webp", "png", "none"] = "gif"
    """Format of the interpolation between seeds, a loop: gif has 256 colours, webp and png (animated) have all."""
    keyframes: int = 5
    """Seeds that the interpolation passes through."""
    frames: int = 20
    """Frames from one seed to the next, 20 a second."""
    metrics: list[Literal["swd", "fid", "kid"]] = field(default_factory=list)
    """What to measure against --data, without truncation: swd (with frechet_8, coverage and nearest; needs nothing else), fid, kid
    (need --inception)."""
    data: Path | None = None
    """Real images to measure against: a folder as for gpseg.pretrain."""
    metric_images: int = 2000
    """Generated images to measure with, and real ones if there are as many. FID is usually given for 50000, and is larger
    for fewer. swd compares equal numbers, 10000 at most."""
    inception: Path | None = None
    """The Inception network's weights, a file that torch-fidelity publishes; without it the command says where."""
    batch: int = 16
    """Images generated at once."""
    precision: Precision = "auto"
    """Dtype of the feature maps; auto is bf16 where the device computes in it, else fp32."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto is a GPU if there is one."""

    def check(self) -> None:
        """Raise InputError for values that can't work."""
        check_least(self, 0, "count")
        check_least(self, 1, "frames", "batch")
        check_least(self, 2, "keyframes")
        check_seed(self)
        if not self.psi or not all(map(math.isfinite, self.psi)):
            raise InputError("--psi: give one or more numbers, such as 0.7")
        if self.metrics and self.data is None:
            raise InputError("--metrics: say with --data which real images to measure against")
        if self.metrics:
            check_least(self, FEWEST_IMAGES, "metric_images")
        if self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
            raise InputError(f"{self.out}: already there and not empty; give another --out")


def generate(config: GenerateConfig) -> dict[str, float]:
    """Write pictures of what a generator makes, and measure it.

    Args:
        config: the options.

    Returns:
        What was measured, by name; also in metrics.json in the folder.

    Raises:
        InputError: options, checkpoint, data or Inception's weights can't be used; nothing was written then.
        RunError: the disk is full.
    """
    config.check()
    device = choose_device(config.device)
    dtype = choose_dtype(config.precision, device)
    generator = load_generator(config.generator, dtype)[0].to(device).eval().requires_grad_(False)
    reals = _reals(config, generator)
    network = Inception(config.inception, device) if {"fid", "kid"} & {*config.metrics} else None
    _make_folders(config)
    studio = _Studio(generator, config.batch)
    for psi in config.psi:
        _write(
            config.out / f"grid-psi{psi:g}.png",
            image_grid(studio.images(config.seed, GRID_IMAGES, psi)),
        )
    first = config.psi[0]
    _write(config.out / "style-mixing.png", _style_mixing(studio, config.seed, first))
    _write_images(config, studio, first)
    if config.animation != "none":
        _write_animation(config, studio, first)
    values = {} if reals is None else _measure(config, generator, reals, network)
    if values:
        with replacing(config.out / "metrics.json") as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n")
    log.info("%s: done", config.out)
    return values


class _Studio:
    """A generator with latents that go by seeds."""

    def __init__(self, generator: Generator, batch: int) -> None:
        self.generator = generator
        self.batch = batch

    def styles(self, seed: int, count: int, psi: float) -> Tensor:
        """Styles [count, num_ws, w_dim] of consecutive seeds."""
        latents = [
            torch.randn(self.generator.z_dim, generator=torch.Generator().manual_seed(s))
            for s in range(seed, seed + count)
        ]
        z = torch.stack(latents).to(self.generator.mapping.w_avg.device)
        ws: Tensor = self.generator.mapping(z, truncation_psi=psi)
        return ws

    def rendered(self, ws: Tensor) -> Iterator[Tensor]:
        """Images [n, 3, r, r] of styles, batch by batch; the noise is the same in all."""
        for part in ws.split(self.batch):
            yield self.generator.synthesis(part, noise_mode="const")

    def images(self, seed: int, count: int, psi: float) -> Tensor:
        """Images [count, 3, r, r] of consecutive seeds."""
        return torch.cat([*self.rendered(self.styles(seed, count, psi))])


def _reals(config: GenerateConfig, generator: Generator) -> UnlabelledImages | None:
    if not config.metrics or config.data is None:
        return None
    reals = UnlabelledImages(training_images(config.data), generator.img_resolution)
    if len(reals) < FEWEST_IMAGES:
        raise InputError(
            f"{config.data}: {len(reals)} images are too few to measure with; give {FEWEST_IMAGES} or more"
        )
    return reals


def _make_folders(config: GenerateConfig) -> None:
    try:
        (config.out / "images" if config.count else config.out).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{config.out} is not a folder; give another --out") from None
    except PermissionError:
        raise InputError(
            f"{config.out}: no permission to write there; give another --out"
        ) from None


def _style_mixing(studio: _Studio, seed: int, psi: float) -> Tensor:
    """Rows with the coarse half of the layers, columns with the fine half; the sources along the edges.

    Returns:
        uint8 [3, rows·r, columns·r]; the corner is black.
    """
    ws = studio.styles(seed, _MIXED_ROWS + _MIXED_COLUMNS, psi)
    rows, columns = ws.split((_MIXED_ROWS, _MIXED_COLUMNS))
    half = ws.shape[1] // 2
    lines = [columns]
    for row in rows:
        mixed = mix_styles(row.expand_as(columns), columns, half)
        lines.append(torch.cat([row[None], mixed]))
    images = torch.cat([*studio.rendered(torch.cat(lines))])
    corner = images.new_full((1, *images.shape[1:]), -1)
    return image_grid(torch.cat([corner, images]), _MIXED_COLUMNS + 1)


def _write_images(config: GenerateConfig, studio: _Studio, psi: float) -> None:
    seed = config.seed
    with tqdm(total=config.count, desc="images", unit="img", disable=config.count < 100) as bar:
        for start in range(0, config.count, config.batch):
            images = studio.images(seed + start, min(config.batch, config.count - start), psi)
            for index, pixels in enumerate(to_uint8(images)):
                _write(config.out / "images" / f"seed{seed + start + index:06d}.png", pixels)
            bar.update(len(images))


def _write_animation(config: GenerateConfig, studio: _Studio, psi: float) -> None:
    """Write a loop through seeds, straight from style to style, several side by side if they are small."""
    across = max(1, min(_MOST_ACROSS, _WIDTH // studio.generator.img_resolution))
    tiles = across * max(1, across // 2)
    keys = studio.styles(config.seed, tiles * config.keyframes, psi).unflatten(
        0, (config.keyframes, tiles)
    )
    pictures = []
    shares = torch.arange(config.frames) / config.frames
    steps = [(key, float(share)) for key in range(config.keyframes) for share in shares]
    for key, share in tqdm(steps, desc="animation", unit="frame", disable=len(steps) < 500):
        ws = keys[key].lerp(keys[(key + 1) % config.keyframes], share)
        images = torch.cat([*studio.rendered(ws)])
        pictures.append(_picture(image_grid(images, across)))
    path = config.out / f"interpolation.{config.animation}"
    with replacing(path) as temporary:
        pictures[0].save(
            temporary,
            format=config.animation.upper(),
            save_all=True,
            append_images=pictures[1:],
            duration=_FRAME_MS,
            loop=0,
        )


def _picture(pixels: Tensor) -> Image.Image:
    """An image of uint8 [3, H, W]."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())


def _write(path: Path, pixels: Tensor) -> None:
    with replacing(path) as temporary:
        _picture(pixels).save(temporary, format="PNG")


def _measure(
    config: GenerateConfig,
    generator: Generator,
    reals: UnlabelledImages,
    network: Inception | None,
) -> dict[str, float]:
    values: dict[str, float] = {}
    count = min(config.metric_images, len(reals))
    if "swd" in config.metrics:
        quality = Quality(real_images(reals, min(count, MOST_IMAGES)))
        values |= quality.measure(generated_images(generator, quality.count, config.batch))
    if network is not None:
        real = network.features(real_images(reals, count))
        fake = network.features(generated_images(generator, config.metric_images, config.batch))
        for name, distance in (("fid", fid), ("kid", kid)):
            if name in config.metrics:
                values[name] = distance(real, fake)
    shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    values |= {"real_images": count, "generated_images": config.metric_images}
    log.info("%s  (%d real images)", shown, count)
    return values
