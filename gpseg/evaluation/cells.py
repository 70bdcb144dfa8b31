"""One cell of the comparison: a method trained on one draw and scored, in a process of its own, and kept as two files.

<method>-<shots>-shot-draw-<draw>.npz    confusions of every image, and the predicted masks
<method>-<shots>-shot-draw-<draw>.json   everything else; written last, so that the cell is whole if it is there
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

import gpseg
from gpseg.atomic import replacing
from gpseg.data import Classes, PartFolder, Reading
from gpseg.errors import InputError
from gpseg.evaluation.jitter import KINDS, jittered
from gpseg.evaluation.methods import METHODS, Task, masks_of
from gpseg.evaluation.metrics import confusions, pooled_iou
from gpseg.evaluation.other import OTHER, OtherCollection
from gpseg.evaluation.results import BATCH, Held, Predictor, Split, load_held
from gpseg.evaluation.segment import training_set
from gpseg.models.checkpoint import load_generator
from gpseg.processes import memory_of_this_process
from gpseg.training.device import choose_device, choose_dtype
from gpseg.training.finetune_config import FinetuneConfig

PLAIN = "plain"
"""Kind of the images as they are, beside the kinds of `gpseg.evaluation.jitter`."""

_JITTER_SEED = 0


@dataclass(frozen=True)
class Setting:
    """What all cells of a comparison have in common.

    Args:
        data: the data-set folder.
        splits: splits.json, which may be another than the data set's.
        generator: checkpoint of the pre-trained generator.
        generator_sha256: of that file.
        images_seen: how many the generator was pre-trained on; None if it doesn't say.
        split: which labelled images are scored on.
        jitter: whether they are also scored on changed.
        rival_steps: training steps of rivals; None for each one's own.
        tuning: options of fine-tuning; the draw is added to the seed.
        device: where to compute.
        classes: classes.json to read masks by; None for the data set's own classes.
        classes_sha256: of what it says.
        other: data-set folder of another collection that is scored on too; None for none.
        data_sha256: of images and masks in use; None for a comparison from before there was such a hash.
    """

    data: Path
    splits: Path
    generator: Path
    generator_sha256: str
    images_seen: int | None
    split: Split
    jitter: bool
    rival_steps: int | None
    tuning: FinetuneConfig
    device: str
    classes: Path | None = None
    classes_sha256: str | None = None
    other: Path | None = None
    data_sha256: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What decides the scores, as JSON has it; not where things lie."""
        kept = ("generator_sha256", "split", "jitter", "rival_steps")
        options = {name: getattr(self, name) for name in kept}
        # else the hash stays what it was before there was a choice
        if self.classes is not None:
            options["classes_sha256"] = self.classes_sha256
        if self.other is not None:
            options["other"] = str(self.other)
        return options | {"data": str(self.data), "tuning": dataclasses.asdict(self.tuning)}

    @property
    def options_sha256(self) -> str:
        """A hash of `options`; a cell carries it."""
        return sha256(self.options)

    def open_data(self) -> PartFolder:
        """Open the data set as all cells see it.

        Raises:
            InputError: it can't be used.
        """
        return PartFolder.open(self.data, self.splits, self.classes)

    def open_other(self, classes: Classes) -> OtherCollection | None:
        """Open the other collection, for a model of some classes; None if there is none.

        Raises:
            InputError: it can't be used.
        """
        if self.other is None:
            return None
        return OtherCollection.open(self.other, classes, self.split)


def sha256(content: Mapping[str, Any]) -> str:
    """A hash of what JSON makes of something."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, order=True)
class Key:
    """Which cell: a draw, a number of labelled images, a method."""

    draw: int
    shots: int
    method: str

    def __str__(self) -> str:
        return f"{self.method}-{self.shots}-shot-draw-{self.draw}"


@dataclass(frozen=True)
class Cell:
    """A finished cell, or one that failed.

    Args:
        key: which.
        facts: what its JSON file holds; "failed" with the reason if it did.
        path: its JSON file.
    """

    key: Key
    facts: Mapping[str, Any]
    path: Path

    @property
    def failed(self) -> str | None:
        """Why there are no scores."""
        return self.facts.get("failed")

    @property
    def rows(self) -> list[str]:
        """The method's name, and that with each read-out where it has several."""
        return [*self.facts.get("rows", ())]

    @property
    def finished(self) -> bool:
        """Whether there are scores, and the file that holds them can be read."""
        try:
            return not self.failed and bool(self._counts)
        except InputError:
            return False

    @cached_property
    def _counts(self) -> dict[str, Tensor]:
        with self._arrays() as arrays:
            names = [name for name in arrays.files if name.startswith("counts ")]
            return {name: torch.from_numpy(arrays[name]).long() for name in names}

    def counts(self, row: str, kind: str = PLAIN) -> Tensor | None:
        """Confusions [N, K, K] of the images scored on, changed in one way; None if they weren't."""
        return self._counts.get(f"counts {kind} {row}")

    def masks(self, row: str, kind: str = PLAIN) -> Tensor:
        """Predicted masks, uint8 [N, r, r], of the images as they are or of the other collection."""
        with self._arrays() as arrays:
            return torch.from_numpy(arrays[_masks(row, kind)])

    @contextmanager
    def _arrays(self) -> Iterator[Any]:
        path = self.path.with_suffix(".npz")
        try:
            with np.load(path) as arrays:
                yield arrays
        except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error) as error:
            raise InputError(
                f"{path}: missing or damaged ({error}); remove it, and the comparison's command computes it again"
            ) from error

    @staticmethod
    def read(path: Path) -> Cell:
        """Read a cell.

        Args:
            path: its JSON file.

        Raises:
            InputError: it can't be read.
        """
        try:
            facts = json.loads(path.read_text())
            return Cell(Key(facts["draw"], facts["shots"], facts["method"]), facts, path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: can't be read ({error}); remove it") from error

    @staticmethod
    def write_failure(folder: Path, key: Key, setting: Setting, reason: str) -> None:
        """Note that a cell failed; it is tried again when the comparison is continued."""
        _write_json(folder / f"{key}.json", {**_identity(key, setting), "failed": reason})


def run_cell(folder: Path, key: Key, setting: Setting) -> None:
    """Train and score one method on one draw, and write the cell; in a process that does nothing else.

    Args:
        folder: where cells are kept.
        key: which.
        setting: what all cells have in common.

    Raises:
        InputError: data or generator can't be used.
        RunError: a loss isn't finite, or the disk is full.
    """
    begun = time.monotonic()
    task, held = _task(folder, key, setting)
    classes = task.training.classes
    started = time.monotonic()
    predictor = METHODS[key.method].train(task)
    trained = time.monotonic() - started
    shutil.rmtree(task.folder / "checkpoints", ignore_errors=True)
    arrays: dict[str, Tensor] = {}
    for kind, seen, reading in _scored_on(setting, held, task):
        for row, masks in masks_of(key.method, predictor, seen.images).items():
            read = torch.from_numpy(reading.read(masks.numpy()))
            counts = confusions(read, seen.masks, reading.classes)
            arrays[f"counts {kind} {row}"] = counts.int()
            if kind in (PLAIN, OTHER):
                arrays[_masks(row, kind)] = masks
    rows = [name.removeprefix(_masks("")) for name in arrays if name.startswith(_masks(""))]
    facts = {
        **_identity(key, setting),
        "rows": rows,
        "readout": getattr(predictor, "readout", None),
        "labelled": len(task.training.images),
        "unlabelled": len(task.training.unlabelled),
        "resolution": task.network.img_resolution,
        "seed": task.tuning.seed,
        "device": str(choose_device(setting.device)),
        "threads": torch.get_num_threads(),
        "train_seconds": round(trained, 2),
        "images_per_second": _images_per_second(predictor, held.images),
        "images": held.stems,
        "val_miou": _val_mious(key.method, predictor, task.val, classes),
    }
    with replacing(folder / f"{key}.npz") as temporary, temporary.open("wb") as file:
        kept: dict[str, Any] = {name: x.numpy() for name, x in arrays.items()}
        np.savez_compressed(file, **kept)
    facts["peak_memory_bytes"] = _peak_memory(setting.device)
    facts["seconds"] = round(time.monotonic() - begun, 2)
    _write_json(folder / f"{key}.json", facts)


def _scored_on(setting: Setting, held: Held, task: Task) -> Iterator[tuple[str, Held, Reading]]:
    """Images by kind, and how masks in the model's classes are read to be held against theirs."""
    classes = task.training.classes
    plain = Reading.plain(classes)
    yield PLAIN, held, plain
    for kind in KINDS if setting.jitter else ():
        yield kind, jittered(held, kind, _JITTER_SEED, classes.ignore_index), plain
    if other := setting.open_other(classes):
        yield OTHER, other.held(task.network.img_resolution), other.reading


def _masks(row: str, kind: str = PLAIN) -> str:
    """What a cell's predicted masks are called in its file."""
    return f"masks {row}" if kind == PLAIN else f"{kind} masks {row}"


def _task(folder: Path, key: Key, setting: Setting) -> tuple[Task, Held]:
    """What the method is trained with, and what it is scored on."""
    device = choose_device(setting.device)
    tuning = dataclasses.replace(setting.tuning, seed=setting.tuning.seed + key.draw)
    parts = setting.open_data()
    generator, discriminator, network, _ = load_generator(
        setting.generator, choose_dtype(tuning.precision, device)
    )
    resolution = network.img_resolution
    stems = parts.few_shot(key.shots, key.draw)
    val = load_held(parts, parts.splits.val, resolution)
    logs = folder / "training" / str(key)
    shutil.rmtree(logs, ignore_errors=True)
    task = Task(
        training=training_set(parts, stems, resolution, tuning.with_unlabelled),
        val=val,
        generator=generator,
        discriminator=discriminator,
        network=network,
        tuning=tuning,
        rival_steps=setting.rival_steps,
        device=setting.device,
        folder=logs,
    )
    held = val if setting.split == "val" else load_held(parts, parts.splits.test, resolution)
    return task, held


def _identity(key: Key, setting: Setting) -> dict[str, Any]:
    return {
        **dataclasses.asdict(key),
        "split": setting.split,
        "options_sha256": setting.options_sha256,
        "gpseg": gpseg.__version__,
    }


def _val_mious(
    name: str, predictor: Predictor, val: Held, classes: Classes
) -> dict[str, float] | None:
    if not val.stems:
        return None
    return {
        row: pooled_iou(confusions(masks, val.masks, classes)).nanmean().item()
        for row, masks in masks_of(name, predictor, val.images).items()
    }


def _images_per_second(predictor: Predictor, images: Tensor) -> float:
    """Images that are predicted in a second, of all of them in batches; some were before, to warm up."""
    started = time.monotonic()
    for batch in images.split(BATCH):
        predictor.probabilities(batch).argmax(1).cpu()
    return round(len(images) / (time.monotonic() - started), 2)


def _peak_memory(device: str) -> int | None:
    """Bytes that this process, or on a GPU torch's allocator, had in use at most; None where nobody tells."""
    place = choose_device(device)
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated(place)
    return memory_of_this_process("VmHWM")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
