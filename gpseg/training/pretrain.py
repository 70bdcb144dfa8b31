"""Pre-training: StyleGAN2 on unlabelled images of one class."""

import dataclasses
import logging
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from gpseg import data
from gpseg.errors import InputError
from gpseg.models.checkpoint import save_generator
from gpseg.models.segmenter import to_uint8
from gpseg.training import distributed
from gpseg.training.device import choose_device
from gpseg.training.pretrain_config import PretrainConfig
from gpseg.training.quality import FEWEST_IMAGES, Quality, generated_images, real_images
from gpseg.training.run_folder import Interrupted, RunFolder, stop_requests
from gpseg.training.steps import Means, check_finite, check_state, short_collections
from gpseg.training.trainer import GRID, Trainer
from gpseg.training.transfer import transfer

log = logging.getLogger(__name__)

DRAWN_IMAGES = 20_000
DRAWN_SEED = 1  # that of what gpseg.train labels is 0

_NAN_REMEDY = "--precision fp32, a larger --r1-gamma or smaller learning rates"
_MAY_CHANGE = (
    "out",
    "resume",
    "preset",
    "kimg",
    "device",
    "micro_batch",
    "checkpointing",
    "log_kimg",
    "snapshot_kimg",
    "metric_images",
    "rank_timeout",
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
        after_snapshot: called by the first process whenever a snapshot is complete.

    Returns:
        The checkpoint (`models.checkpoint.load_generator` reads it).

    Raises:
        InputError: if options or images can't be used.
        RunError: if a loss isn't finite, or the disk is full.
        Interrupted: on Ctrl-C or SIGTERM, once the state is saved.
    """
    with (
        distributed.join(config.out, config.rank_timeout) as ranks,
        logging_redirect_tqdm(),
        short_collections(),
    ):
        resume = RunFolder.continues(config.out, config.resume)
        stored = RunFolder.stored(config.out) if resume else None
        config = dataclasses.replace(config.filled_in(stored), resume=resume)
        config.check()
        options = dataclasses.asdict(config)
        RunFolder.check(config.out, resume, options, _MAY_CHANGE)
        device = choose_device(config.device)
        torch.manual_seed(config.seed)
        trainer = Trainer(config, config.network(), device, ranks)
        if images is None:
            with ranks.first_goes_first():  # which packs them, if anybody has to
                images = data.UnlabelledImages(
                    _sources(config.data or _drawn(trainer.recipe.resolution)),
                    trainer.recipe.resolution,
                    progress=ranks.first,
                )
        if not len(images):
            raise InputError(f"{config.data}: no images there; give a folder of images")
        # before there is a folder, so that a file of no use leaves none behind
        transferred = None if resume or not config.transfer else transfer(config.transfer, trainer)
        with (
            RunFolder.open(
                config.out,
                "pretrain",
                options,
                resume=resume,
                may_change=_MAY_CHANGE,
                ranks=ranks,
            ) as folder,
            stop_requests() as stop_requested,
        ):
            state = folder.load_state() if resume else None
            if state is not None:
                trainer.load_state_dict(state)
            elif config.transfer is not None:
                log.info("%s", transferred or transfer(config.transfer, trainer))
            ranks.check_equal(trainer.networks(), "networks")
            _say(trainer, folder, len(images), state is not None)
            quality = _quality(images, config.metric_images) if ranks.first else None
            snapshot = partial(_snapshot, trainer, folder, quality, after_snapshot)
            _train(trainer, images, folder, stop_requested, snapshot)
            return snapshot()


def _sources(path: Path) -> Sequence[Path | data.ImageSource]:
    """What to train on; of a data set with masks what fine-tuning may see, so that nobody is tested on what was seen here."""
    if (path / "images").is_dir() and any((path / "masks").glob("*.png")):
        parts = data.PartFolder.open(path)
        held_out = len(parts.splits.val) + len(parts.splits.test)
        log.info("%s: %d val and test images are left out", path, held_out)
        return parts.seen_in_training
    return data.training_images(path)


def _drawn(resolution: int) -> Path:
    root = Path("runs") / f"drawn-{resolution}-pretraining"
    return data.write_drawn(root, resolution, labelled=3, unlabelled=DRAWN_IMAGES, seed=DRAWN_SEED)


def _say(trainer: Trainer, folder: RunFolder, images: int, continuing: bool) -> None:
    parameters = sum(p.numel() for p in trainer.generator.parameters())
    log.info(
        "%s: %s %d images of %d px, generator of %.2f M parameters, batch %d, %s on %s%s",
        folder.path,
        "continuing at" if continuing else "training on",
        trainer.seen if continuing else images,
        trainer.recipe.resolution,
        parameters / 1e6,
        trainer.recipe.batch,
        str(trainer.dtype).removeprefix("torch."),
        trainer.device,
        f", {trainer.ranks.count} processes" if trainer.ranks.count > 1 else "",
    )


def _train(
    trainer: Trainer,
    images: Tensor | data.UnlabelledImages,
    folder: RunFolder,
    stop_requested: Callable[[], bool],
    snapshot: Callable[[], Path],
) -> None:
    config, ranks = trainer.config, trainer.ranks
    total = round(config.kimg * 1000)
    log_every, snapshot_every = config.log_kimg * 1000, config.snapshot_kimg * 1000
    next_log, next_snapshot = _after(trainer.seen, log_every), _after(trainer.seen, snapshot_every)
    means = Means()
    started, begun_at = time.monotonic(), trainer.seen
    # A terminal is drawn anew every second; a log file gets a line now and then.
    interval = 1.0 if sys.stderr.isatty() else 60.0
    with (
        tqdm(
            total=total,
            initial=trainer.seen,
            unit="img",
            unit_scale=True,
            mininterval=interval,
            disable=not ranks.first,
        ) as bar,
        data.made_ahead(trainer.batches(images), data.batches_ahead(images)) as batches,
    ):
        while trainer.seen < total:
            means.add(trainer.step(next(batches)))
            bar.update(trainer.recipe.batch)
            stopping = ranks.any(stop_requested())
            if not stopping and trainer.seen < min(next_log, next_snapshot, total):
                continue
            values = means.take(ranks)
            check_finite(values, folder, _NAN_REMEDY)
            values["s_per_kimg"] = 1000 * (time.monotonic() - started) / (trainer.seen - begun_at)
            values["memory_gib"] = _memory(trainer.device)
            folder.log(trainer.seen, values)
            bar.set_postfix_str(f"{values['s_per_kimg']:.1f} s/kimg", refresh=False)
            shown = "  ".join(f"{name} {value:.3g}" for name, value in values.items())
            log.info("%.1f kimg  %s", trainer.seen / 1000, shown)
            if stopping:
                _save_state(trainer, folder, _checked_state(trainer, folder))
                raise Interrupted(folder.path)
            if trainer.seen >= next_snapshot and trainer.seen < total:
                snapshot()
            next_log = _after(trainer.seen, log_every)
            next_snapshot = _after(trainer.seen, snapshot_every)
            started, begun_at = time.monotonic(), trainer.seen


def _after(seen: int, every: float) -> float:
    """The next multiple, so that a continued run has its log entries where the straight one has."""
    return (seen // every + 1) * every


def _checked_state(trainer: Trainer, folder: RunFolder) -> dict[str, Any]:
    state = trainer.state_dict()
    check_state(state, folder, _NAN_REMEDY)
    return state


def _save_state(trainer: Trainer, folder: RunFolder, state: dict[str, Any]) -> None:
    trainer.ranks.check_equal(trainer.networks(), "networks")
    folder.save_state(trainer.seen, state)
    trainer.ranks.wait()


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
    state = _checked_state(trainer, folder)
    path = folder.path / "generator.safetensors"
    if trainer.ranks.first:
        for psi in (0.7, 1.0):
            folder.write_image(f"psi{psi}", image_grid(trainer.samples(psi)), trainer.seen)
        extra = {"images_seen": trainer.seen, "r1_gamma": trainer.recipe.r1_gamma}
        save_generator(path, trainer.generator_ema, trainer.discriminator, trainer.network, extra)
        if quality is not None:
            _measure(trainer, folder, quality)
    _save_state(trainer, folder, state)
    if trainer.ranks.first:
        after_snapshot(folder)
    return path


def _measure(trainer: Trainer, folder: RunFolder, quality: Quality) -> None:
    started = time.monotonic()
    fakes = generated_images(trainer.generator_ema, quality.count, trainer.recipe.batch)
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
