"""Masks for new images: of any size and mode, any number, each written whole or not at all."""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from gpseg.atomic import replacing
from gpseg.data import Classes, Placement, images_in, read_image, read_square
from gpseg.errors import InputError, RunError
from gpseg.models.segmenter import Readout, Segmenter
from gpseg.training.checks import check_least
from gpseg.training.device import choose_device, choose_dtype
from gpseg.training.run_folder import Interrupted, stop_requests

_OVERLAY_OPACITY = 0.5
_OVERLAY_QUALITY = 92


@dataclass
class PredictConfig:
    """Options of prediction."""

    segmenter: Path
    """The segmenter, as gpseg.train wrote it (segmenter.safetensors)."""
    images: list[Path]
    """Image files, folders or quoted patterns such as 'photos/**/*.jpg', any number of them."""
    out: Path
    """Folder for the masks: an indexed PNG for every image, named as the image, of its own size. If
    names repeat in different folders, these folders are made here too."""
    overlay: bool = False
    """Also write the images tinted with the parts' colours, to overlays/ in the folder."""
    probabilities: bool = False
    """Also write the class probabilities, to probabilities/ in the folder: .npz with
    "probabilities", float16 [classes, height, width], and "names"."""
    readout: Readout | None = None
    """How classes are read off the segmenter; default: the one that was better in validation,
    fusion where there was none."""
    flip: bool = True
    """Take the mean of what is made of an image and of its mirror image; without, it takes half the time."""
    batch: int = 16
    """Images that go through the segmenter at once."""
    overwrite: bool = False
    """Replace files that are already in the folder."""
    resume: bool = False
    """Go on where an earlier call stopped: leave out images whose files are already there."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto is a GPU if there is one."""

    def check(self) -> None:
        """Raise InputError for values that can't work."""
        check_least(self, 1, "batch")
        if self.overwrite and self.resume:
            raise InputError("--overwrite and --resume: give one of them")
        if not self.images:
            raise InputError("--images: give at least one file, folder or pattern")


@dataclass(frozen=True)
class _Job:
    """One image, and the files to write for it (None: not asked for)."""

    image: Path
    mask: Path
    overlay: Path | None
    probabilities: Path | None

    @property
    def outputs(self) -> list[Path]:
        return [path for path in (self.mask, self.overlay, self.probabilities) if path is not None]


def predict(config: PredictConfig, segmenter: Segmenter | None = None) -> list[Path]:
    """Write a mask for every image.

    An image that can't be read is reported and left out; the others are done all the same.

    Args:
        config: the options.
        segmenter: the segmenter to use in place of that in `config.segmenter`.

    Returns:
        The masks written.

    Raises:
        InputError: if an option, the segmenter or a path can't be used; nothing is written then.
        RunError: if images could not be read (once all others are done), or the disk is full.
        Interrupted: on Ctrl-C or SIGTERM, after the image in work.
    """
    config.check()
    jobs = _jobs(config)
    if segmenter is None:
        device = choose_device(config.device)
        segmenter = Segmenter.load(config.segmenter, device, choose_dtype("auto", device))
    _make_folders(config.out, jobs)
    written: list[Path] = []
    unreadable = 0
    with (
        stop_requests() as stop_requested,
        tqdm(total=len(jobs), desc="predicting", unit="img", mininterval=0.5) as bar,
    ):
        for batch in _batches(jobs, segmenter.resolution, config.batch):
            readable: list[tuple[_Job, Tensor, Placement]] = []
            for job, image in batch:
                if isinstance(image, InputError):
                    unreadable += 1
                    bar.write(f"skipped: {image}", file=sys.stderr)
                    bar.update()
                else:
                    readable.append((job, *image))
            if not readable:
                continue
            squares = torch.stack([square for _, square, _ in readable])
            found = segmenter.probabilities(squares, config.readout, flip=config.flip).float().cpu()
            for (job, _, placement), probabilities in zip(readable, found, strict=True):
                if stop_requested():
                    # Where files are replaced, a resumed call could not tell old from new.
                    raise KeyboardInterrupt if config.overwrite else Interrupted(config.out)
                _write(job, probabilities, placement, segmenter.classes)
                written.append(job.mask)
                bar.update()
    if unreadable:
        raise RunError(
            f"{unreadable} of {len(jobs)} images could not be read, as listed above; "
            f"the other {len(written)} have their masks in {config.out}"
        )
    return written


def _jobs(config: PredictConfig) -> list[_Job]:
    """List the work, and refuse what would overwrite a file that isn't to be overwritten."""
    images = _distinct([path for given in config.images for path in images_in(given)])
    names = _names(images)
    jobs = [
        _Job(
            image,
            config.out / f"{name}.png",
            config.out / "overlays" / f"{name}.jpg" if config.overlay else None,
            config.out / "probabilities" / f"{name}.npz" if config.probabilities else None,
        )
        for image, name in zip(images, names, strict=True)
    ]
    sources = {_real(image) for image in images}
    for job in jobs:
        for output in job.outputs:
            if _real(output) in sources:
                raise InputError(f"{output} is one of the images; give another folder with --out")
    if any(_real(config.out) == _real(image.parent) for image in images):
        raise InputError(
            f"{config.out} holds images to predict, and masks there would pass for images; give another --out"
        )
    if config.out.name == "masks" and (config.out.parent / "images").is_dir():
        raise InputError(f"{config.out} is for masks to train on; give another --out")
    if config.resume:
        return [job for job in jobs if not all(output.exists() for output in job.outputs)]
    if not config.overwrite:
        there = [output for job in jobs for output in job.outputs if output.exists()]
        if there:
            others = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
            raise InputError(
                f"{there[0]}{others} already exists; replace with --overwrite, "
                "go on with --resume, or give another --out"
            )
    return jobs


def _real(path: Path) -> str:
    return os.path.realpath(path)


def _distinct(images: Sequence[Path]) -> list[Path]:
    """Leave out paths that come a second time; links to one file are images of their own."""
    first: dict[str, Path] = {}
    for image in images:
        first.setdefault(os.path.abspath(image), image)  # noqa: PTH100  keeps links
    return list(first.values())


def _names(images: Sequence[Path]) -> list[str]:
    """Name the outputs of images, without suffix: by stem, with the folder where stems repeat."""
    names = [image.stem for image in images]
    if len(set(names)) < len(names):
        full = [Path(os.path.abspath(image)) for image in images]  # noqa: PTH100  keeps links
        common = Path(os.path.commonpath([image.parent for image in full]))
        names = [image.relative_to(common).with_suffix("").as_posix() for image in full]
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        first, second = [image for image, its in zip(images, names, strict=True) if its == name][:2]
        raise InputError(
            f"{first} and {second.name} would both get the mask {name}.png; "
            "rename one, or predict them in two calls with different --out"
        )
    return names


def _make_folders(out: Path, jobs: Sequence[_Job]) -> None:
    try:
        for folder in {out, *(output.parent for job in jobs for output in job.outputs)}:
            folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{out} is not a folder; give another --out") from None
    except PermissionError:
        raise InputError(f"{out}: no permission to write there; give another --out") from None


_Read = tuple[Tensor, Placement] | InputError


def _batches(
    jobs: Sequence[_Job], resolution: int, size: int
) -> Iterator[list[tuple[_Job, _Read]]]:
    """Read the images in batches, one batch ahead of the one in work and no further."""

    def read(job: _Job) -> _Read:
        try:
            return read_square(job.image, resolution)
        except InputError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        ahead: deque[list[tuple[_Job, Future[_Read]]]] = deque()
        try:
            for start in range(0, len(jobs), size):
                ahead.append([(job, pool.submit(read, job)) for job in jobs[start : start + size]])
                if len(ahead) > 1:
                    yield [(job, future.result()) for job, future in ahead.popleft()]
            while ahead:
                yield [(job, future.result()) for job, future in ahead.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)


def _write(job: _Job, probabilities: Tensor, placement: Placement, classes: Classes) -> None:
    """Write the files of one image from its probabilities [K, r, r]."""
    mask, kept = _full_size(probabilities, placement, keep=job.probabilities is not None)
    if job.overlay is not None:
        with replacing(job.overlay) as temporary:
            picture = _tinted(read_image(job.image), mask, classes)
            picture.save(temporary, format="JPEG", quality=_OVERLAY_QUALITY)
    if job.probabilities is not None and kept is not None:
        with replacing(job.probabilities) as temporary, temporary.open("wb") as file:
            names = np.array(classes.names)
            np.savez_compressed(file, probabilities=kept, names=names)
    # The mask comes last: where it is, the rest is too.
    with replacing(job.mask) as temporary:
        classes.write_mask(mask, temporary)


def _full_size(
    probabilities: Tensor, placement: Placement, keep: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Find the likeliest class [H, W] at the image's size, and keep the probabilities [K, H, W].

    Goes class by class: all classes of a large photograph at once would take gigabytes.
    """
    size = (placement.height, placement.width)
    best = torch.full(size, -1.0)
    mask = torch.zeros(size, dtype=torch.uint8)
    kept = np.empty((len(probabilities), *size), dtype=np.float16) if keep else None
    for index, probability in enumerate(probabilities):
        restored = placement.restore(probability[None])[0]
        mask[restored > best] = index
        torch.maximum(best, restored, out=best)
        if kept is not None:
            kept[index] = restored.numpy()
    return mask.numpy(), kept


def _tinted(image: Image.Image, mask: np.ndarray, classes: Classes) -> Image.Image:
    """Tint the parts of an image with their colours; the background stays as it is."""
    colours = Image.fromarray(mask)
    colours.putpalette(classes.palette_bytes())
    parts = Image.fromarray(np.where(mask > 0, np.uint8(255), np.uint8(0)))
    blended = Image.blend(image, colours.convert("RGB"), _OVERLAY_OPACITY)
    return Image.composite(blended, image, parts)
