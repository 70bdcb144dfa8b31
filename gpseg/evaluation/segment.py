"""The main job: from labelled and unlabelled images and a generator to a segmenter, its scores and a report."""

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from gpseg import data
from gpseg.data import PartFolder, UnlabelledImages, fingerprint
from gpseg.errors import InputError
from gpseg.evaluation.metrics import finite, majority_score, percent, score
from gpseg.evaluation.pictures import training_report
from gpseg.evaluation.progress import write_progress
from gpseg.evaluation.report import write_report
from gpseg.evaluation.results import (
    Held,
    Mirrored,
    Result,
    choose_readout,
    load_held,
    masks_by,
    readout_scores,
)
from gpseg.evaluation.rivals import train_unet
from gpseg.models.checkpoint import SHIPPED_GENERATOR, load_generator
from gpseg.models.segmenter import Segmenter
from gpseg.models.stylegan2 import Discriminator, Generator, NetworkConfig
from gpseg.training import distributed
from gpseg.training.batches import TrainingSet
from gpseg.training.checks import check_least, check_positive
from gpseg.training.device import choose_device, choose_dtype
from gpseg.training.distributed import ALONE, Ranks
from gpseg.training.finetune import Finetuner, finetune
from gpseg.training.finetune_config import FinetuneConfig
from gpseg.training.pretrain import pretrain
from gpseg.training.pretrain_config import PretrainConfig
from gpseg.training.run_folder import Interrupted, RunFolder, stop_requests

log = logging.getLogger(__name__)

DEFAULT_RESOLUTION = 64
DRAWN_LABELLED = 160
DRAWN_UNLABELLED = 2000

_MAY_CHANGE = ("out", "resume", "device", "unet_steps", "rank_timeout")


@dataclass
class TrainConfig:
    """Options of the main job."""

    data: Path | None = None
    """Data-set folder: images/, masks/ (same stems, indexed PNG), and where present unlabelled/, classes.json,
    splits.json. Default: faces that the package draws itself, in runs/drawn-<resolution>."""
    classes: Path | None = None
    """A classes.json to read masks by instead of the data set's: each class is made of those of the data set that its
    "of" lists, such as "of": ["shirt", "trousers"], or without "of" the one of its name; the rest is ignored."""
    generator: Path | None = None
    """Checkpoint of gpseg.pretrain on the same class of images. Default: for the package's own faces of 64 px its own
    generator; for all else one is pre-trained first, for --pretrain-kimg, and kept for the next run on the same data."""
    pretrain_kimg: float = 5.0
    """Length of that pre-training in thousands of images. Five are enough to try things; a good generator wants
    hundreds, see gpseg.pretrain."""
    out: Path | None = None
    """Run folder; new or empty, unless --resume. Default: runs/train-<date>-<time>."""
    resume: bool = False
    """Continue the run in --out from its last state, with the same options."""
    shots: int = 5
    """Labelled images to train on."""
    draw: int = 0
    """Which of the data set's draws of labelled images to take."""
    resolution: int | None = None
    """Side of the images in training, a power of two; must be the generator's. Default: the generator's, or 64."""
    unet_steps: int = 0
    """Also train a U-Net from scratch on the same labels for so many steps, to compare with; 0: don't."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto is a GPU if there is one."""
    rank_timeout: float = distributed.TIMEOUT
    """Under torchrun: seconds that a process waits within a step for the others before it gives them up."""
    tuning: FinetuneConfig = field(default_factory=FinetuneConfig)

    def check(self) -> None:
        """Raise InputError for values that can't work."""
        self.tuning.for_labels(self.shots).check()
        check_least(self, 1, "shots")
        check_least(self, 0, "draw", "unet_steps")
        check_positive(self, "pretrain_kimg", "rank_timeout")


def train_segmenter(config: TrainConfig) -> Result | None:
    """Do the main job.

    Args:
        config: the options.

    Returns:
        The scores; the run folder has segmenter.safetensors, results.json and report.html. None in other processes than
        the first.

    Raises:
        InputError: options, data or checkpoints can't be used; nothing was written then.
        RunError: a loss isn't finite, or the disk is full.
        Interrupted: on Ctrl-C or SIGTERM, once the state is saved.
    """
    config.check()
    with distributed.join(config.out, config.rank_timeout) as ranks, logging_redirect_tqdm():
        resume = RunFolder.continues(config.out, config.resume)
        tuning = config.tuning.for_labels(config.shots)
        config = dataclasses.replace(config, resume=resume, tuning=tuning)
        options = dataclasses.asdict(config)
        RunFolder.check(config.out, config.resume, options, _MAY_CHANGE)
        device = choose_device(config.device)
        job = _prepare(config, device, ranks)
        torch.manual_seed(config.tuning.seed)
        networks = job.generator, job.discriminator, job.network
        trainer = Finetuner(config.tuning, job.training, *networks, device, ranks)
        with RunFolder.open(
            config.out,
            "train",
            options,
            resume=config.resume,
            may_change=_MAY_CHANGE,
            ranks=ranks,
        ) as folder:
            started = time.monotonic()
            with stop_requests() as stop_requested:
                _tune(config, job, folder, trainer, stop_requested)
            # the state is saved: from here on a stop is at once, and --resume does the rest
            result = _finish(config, job, folder, trainer, started) if ranks.first else None
            ranks.wait()
    return result


def _tune(
    config: TrainConfig,
    job: "_Job",
    folder: RunFolder,
    trainer: Finetuner,
    stop_requested: Callable[[], bool],
) -> None:
    ranks = trainer.ranks
    if ranks.first:
        job.parts.splits.save(folder.path / "splits.json")
        job.parts.reading.save(folder.path / "classes.json")
    if config.resume and (state := folder.load_state()) is not None:
        trainer.load_state_dict(state)
    ranks.check_equal([*trainer.model.state_dict().values()], "networks")
    log.info(
        "%s: %d labelled and %d unlabelled images of %d px, %s on %s%s",
        folder.path,
        len(job.training.images),
        len(job.training.unlabelled),
        job.network.img_resolution,
        str(trainer.dtype).removeprefix("torch."),
        trainer.device,
        f", {ranks.count} processes" if ranks.count > 1 else "",
    )
    validate = partial(_validation, job.val) if job.val.stems else None
    finetune(trainer, folder, stop_requested, validate)


def _finish(
    config: TrainConfig, job: "_Job", folder: RunFolder, trainer: Finetuner, started: float
) -> Result:
    segmenter = trainer.segmenter()
    choose_readout(segmenter, job.val)
    segmenter.save(folder.path / "segmenter.safetensors")
    result = _result(config, folder, segmenter, job.training, job.test)
    _write_results(result, folder, time.monotonic() - started)
    stored = dataclasses.asdict(config)
    report = training_report(result, folder, segmenter, job.training, job.test, stored)
    write_report(folder.path / "report.html", report)
    _say(result)
    return result


@dataclass(frozen=True)
class _Job:
    parts: PartFolder
    training: TrainingSet
    val: Held
    test: Held
    generator: Generator
    discriminator: Discriminator
    network: NetworkConfig


def _prepare(config: TrainConfig, device: torch.device, ranks: Ranks) -> _Job:
    """Read and check everything that the options name, before the run folder is made."""
    splits, classes = (_kept(config, name) for name in ("splits.json", "classes.json"))
    parts = open_data(config, splits, classes, ranks)
    stems = parts.few_shot(config.shots, config.draw)
    parts.check([*stems, *parts.splits.val, *parts.splits.test])
    path = find_generator(config, parts)
    dtype = choose_dtype(config.tuning.precision, device)
    generator, discriminator, network, _ = load_generator(path, dtype)
    resolution = network.img_resolution
    if config.resolution not in (None, resolution):
        raise InputError(
            f"{path}: made for {resolution} px, not --resolution {config.resolution}; leave that out or pre-train"
            f" with gpseg.pretrain --resolution {config.resolution}"
        )
    with ranks.first_goes_first():  # which packs them, if anybody has to
        training = training_set(parts, stems, resolution, config.tuning.with_unlabelled)
    val, test = (
        load_held(parts, names, resolution) for names in (parts.splits.val, parts.splits.test)
    )
    return _Job(parts, training, val, test, generator, discriminator, network)


def open_data(
    config: TrainConfig,
    splits: Path | None = None,
    classes: Path | None = None,
    ranks: Ranks = ALONE,
) -> PartFolder:
    """Open the data set that the options name, drawn first if they name none.

    Args:
        config: the options.
        splits: a splits.json to use instead of the data set's.
        classes: a classes.json to read masks by instead of the one that the options name.
        ranks: the processes that share the job.

    Raises:
        InputError: the data set can't be used.
    """
    with ranks.first_goes_first():
        root = config.data or _drawn_data(config)
    return PartFolder.open(root, splits, classes or config.classes)


def find_generator(config: TrainConfig, parts: PartFolder) -> Path:
    """The generator that the options name, or the package's own, or one that is pre-trained here."""
    return config.generator or _shipped(config) or _pretrained(config, parts)


def _validation(val: Held, segmenter: Segmenter) -> dict[str, float]:
    return {f"val_{name}": s.miou for name, s in readout_scores(segmenter, val).items()}


def _kept(config: TrainConfig, name: str) -> Path | None:
    """The file that the run to continue keeps of what it was started with."""
    if not config.resume or config.out is None:
        return None
    path = config.out / name
    return path if path.exists() else None


def _drawn_data(config: TrainConfig) -> Path:
    resolution = config.resolution or DEFAULT_RESOLUTION
    root = Path("runs") / f"drawn-{resolution}"
    return data.write_drawn(root, resolution, DRAWN_LABELLED, DRAWN_UNLABELLED)


def _shipped(config: TrainConfig) -> Path | None:
    """The package's own generator, for the package's own faces."""
    fits = config.data is None and config.resolution in (None, DEFAULT_RESOLUTION)
    return SHIPPED_GENERATOR if fits else None


def _pretrained(config: TrainConfig, parts: PartFolder) -> Path:
    """Pre-train a generator on the data's images, or find the one that an earlier run made of them."""
    resolution = config.resolution or DEFAULT_RESOLUTION
    root = parts.root.resolve()
    # Other images, as when others are held out, must not share a generator.
    made_of = fingerprint(parts.seen_in_training), config.tuning.seed, config.tuning.precision
    kept = hashlib.sha256(repr(made_of).encode()).hexdigest()[:8]
    name = f"generator-{root.name}-{kept}-{resolution}-{config.pretrain_kimg:g}kimg"
    out = Path("runs") / name
    options = PretrainConfig(
        data=parts.root,
        out=out,
        resume=(out / "config.json").exists(),
        resolution=resolution,
        kimg=config.pretrain_kimg,
        seed=config.tuning.seed,
        device=config.device,
        precision=config.tuning.precision,
    )
    finished = out / "generator.safetensors"
    if options.resume and finished.exists() and _images_seen(finished) >= 1000 * options.kimg:
        log.info("%s: the generator of an earlier run", finished)
        return finished
    log.info("%s: no --generator given, pre-training one first; it is kept for later runs", out)
    # every image that may be seen in training; what is held out stays unseen
    images = UnlabelledImages(parts.seen_in_training, resolution)
    try:
        return pretrain(options, images, write_progress)
    except Interrupted as interruption:
        raise Interrupted(interruption.folder, within=True) from None


def _images_seen(path: Path) -> int:
    _, _, _, config = load_generator(path)
    return int(config.get("images_seen", 0))


def training_set(
    parts: PartFolder, stems: list[str], resolution: int, unlabelled: bool
) -> TrainingSet:
    """Read what fine-tuning learns from.

    Args:
        parts: the data set.
        stems: labelled images to train on.
        resolution: side of the images.
        unlabelled: whether images without labels are wanted too.
    """
    labelled = load_held(parts, stems, resolution)
    # All of them are packed, whatever the draw, so that one file serves every draw and pre-training too.
    used = {parts.image_paths[stem] for stem in stems}
    more = UnlabelledImages(parts.seen_in_training if unlabelled else [], resolution, used)
    return TrainingSet(labelled.images, labelled.masks, more, parts.classes)


def _result(
    config: TrainConfig, folder: RunFolder, segmenter: Segmenter, training: TrainingSet, test: Held
) -> Result:
    if not test.stems:
        return Result(folder.path, segmenter.readout, None, None, {})
    classes = training.classes
    floor = majority_score(training.masks, test.masks, classes)
    rivals = {}
    if config.unet_steps:
        unet = train_unet(
            training,
            steps=config.unet_steps,
            seed=config.tuning.seed,
            device=config.device,
            precision=config.tuning.precision,
        )
        masks = masks_by(Mirrored(unet, classes), test.images)
        rivals["U-Net from scratch"] = score(masks, test.masks, classes)
    scores = readout_scores(segmenter, test)
    return Result(folder.path, segmenter.readout, scores, floor, rivals)


def _write_results(result: Result, folder: RunFolder, seconds: float) -> None:
    scores = {**(result.readouts or {}), **result.rivals}
    if result.floor is not None:
        scores["majority mask"] = result.floor
    content = {
        "readout": result.readout,
        "seconds": round(seconds, 1),
        "test": {
            name: {
                "miou": finite(s.miou),
                "per_class": {part: finite(iou) for part, iou in s.per_class.items()},
            }
            for name, s in scores.items()
        },
    }
    folder.write_json("results.json", content)


def _say(result: Result) -> None:
    log.info("%s, %s", result.folder / "segmenter.safetensors", result.folder / "report.html")
    if result.readouts is None or result.floor is None:
        log.info("no test images in the data set: no score")
        return
    chosen = result.readouts[result.readout]
    for name, value in chosen.per_class.items():
        log.info(
            "%16s  IoU %5s  floor %5s", name, percent(value), percent(result.floor.per_class[name])
        )
    others = {**result.readouts, **result.rivals}
    others.pop(result.readout)
    rest = "".join(f", {name} {percent(s.miou)}" for name, s in others.items())
    log.info(
        "test mIoU %s (%s read-out), majority mask %s%s",
        percent(chosen.miou),
        result.readout,
        percent(result.floor.miou),
        rest,
    )
