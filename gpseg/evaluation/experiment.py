"""The comparison: every method on every draw at every number of labelled images, one cell after another."""

import dataclasses
import hashlib
import json
import logging
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from gpseg.atomic import remove_leftovers, replacing
from gpseg.data import PartFolder
from gpseg.errors import InputError, RunError
from gpseg.evaluation.cells import Cell, Key, Setting, run_cell, sha256
from gpseg.evaluation.methods import FLOOR, METHODS
from gpseg.evaluation.metrics import percent, pooled_iou
from gpseg.evaluation.other import OtherCollection
from gpseg.evaluation.outcome import write_outcome
from gpseg.evaluation.results import Split
from gpseg.evaluation.segment import TrainConfig, find_generator, open_data
from gpseg.models.checkpoint import load_generator
from gpseg.processes import in_fresh_process
from gpseg.training.checks import check_least
from gpseg.training.device import choose_device
from gpseg.training.distributed import rank_and_count
from gpseg.training.finetune_config import FinetuneConfig
from gpseg.training.run_folder import flat_options

log = logging.getLogger(__name__)


@dataclass
class EvaluateConfig:
    """Options of the comparison."""

    data: Path | None = None
    """Data-set folder, as for gpseg.train. Default: faces that the package draws itself, in runs/drawn-64."""
    classes: Path | None = None
    """A classes.json to read masks by instead of the data set's, as for gpseg.train."""
    generator: Path | None = None
    """Checkpoint of gpseg.pretrain on the same class of images. Default: as for gpseg.train."""
    pretrain_kimg: float = 5.0
    """Length of the pre-training, in thousands of images, where there is no generator."""
    out: Path = Path("runs/evaluate")
    """Folder for cells and report. Running the same command again continues with the cells that are missing; options may
    not differ then, but for --methods, --shots, --draws and --device."""
    methods: list[str] = field(default_factory=lambda: [*METHODS])
    """What to compare; majority always is."""
    shots: list[int] = field(default_factory=lambda: [1, 5, 10])
    """Numbers of labelled images to train on."""
    draws: int = 5
    """How many of the data set's draws of labelled images to take, from the first; each also has its own seed."""
    split: Split = "test"
    """What to score on: test, or val, so that settings can be chosen without looking at test."""
    jitter: bool = True
    """Whether to score also on images that are moved or damaged, and as if from another collection."""
    other_data: Path | None = None
    """Data set of the same kind of images from another source: each method is scored there too, on its test images, or on all
    if it has no splits.json. "of" in its classes.json says which classes of --data a class takes in."""
    rival_steps: int | None = None
    """Training steps of rivals; default: each one's own."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto is a GPU if there is one."""
    report_only: bool = False
    """Compute nothing; write results and report anew from the cells that are in --out."""
    tuning: FinetuneConfig = field(default_factory=FinetuneConfig)

    def check(self) -> None:
        """Raise InputError for values that can't work."""
        known = ", ".join(METHODS)
        for method in self.methods:
            if method not in METHODS:
                raise InputError(f'--methods: "{method}" is none of {known}')
        if not self.shots or min(self.shots) < 1:
            raise InputError("--shots: give one or more numbers above 0")
        for shots in self.shots:
            self.tuning.for_labels(shots).check()
        check_least(self, 1, "draws", "rival_steps")
        if rank_and_count()[1] > 1:
            raise InputError("torchrun: gpseg.evaluate runs in one process; start it with python")


def evaluate(config: EvaluateConfig) -> None:
    """Compute the cells that are missing, then write results.json, results.md and report.html.

    Args:
        config: the options.

    Raises:
        InputError: options, data, generator or an earlier comparison in `config.out` can't be used.
        RunError: cells failed (once all others are done), or the disk is full.
    """
    config.check()
    folder = config.out / "cells"
    with logging_redirect_tqdm():
        failed = []
        if not config.report_only:
            setting = _setting(config)
            failed = _compute(folder, _keys(config), setting)
        setting = _stored(config.out)
        write_outcome(config.out, _cells(folder, setting), setting)
    if failed:
        first = f"{failed[0].key}: {failed[0].failed}"
        raise RunError(
            f"{len(failed)} cells failed, the first is {first}; the same command tries them again"
        )


def _keys(config: EvaluateConfig) -> list[Key]:
    """The cells in their order: all methods on a draw before the next draw, so that what is there can be compared."""
    methods = [name for name in METHODS if name in (FLOOR, *config.methods)]
    return [
        Key(draw, shots, method)
        for draw in range(config.draws)
        for shots in sorted({*config.shots})
        for method in methods
    ]


def _setting(config: EvaluateConfig) -> Setting:
    """Read and check everything that the options name, and make the folder or find it made for the same options."""
    choose_device(config.device)
    inputs = TrainConfig(
        data=config.data,
        classes=config.classes,
        generator=config.generator,
        pretrain_kimg=config.pretrain_kimg,
        device=config.device,
        tuning=config.tuning,
    )
    splits = config.out / "splits.json"
    parts = open_data(inputs, splits if splits.exists() else None)
    held = parts.splits.val if config.split == "val" else parts.splits.test
    if not held:
        raise InputError(
            f"{parts.root}: holds no {config.split} images to score on; label 8 or more, or name them in splits.json"
        )
    drawn = {stem for key in _keys(config) for stem in parts.few_shot(key.shots, key.draw)}
    parts.check(sorted(drawn.union(parts.splits.val, held)))
    # Of all draws, also those that no cell needs yet: a comparison may be continued with more.
    in_use = [(parts, {*held, *parts.splits.val, *chain(*parts.splits.draws)})]
    if config.other_data is not None:
        other = OtherCollection.open(config.other_data, parts.classes, config.split)
        other.parts.check(other.stems)
        in_use.append((other.parts, {*other.stems}))
    generator = find_generator(inputs, parts)
    *_, about = load_generator(generator)
    read = None if config.classes is None else parts.reading.to_json()
    setting = Setting(
        data=parts.root.resolve(),
        splits=splits.resolve(),
        generator=generator.resolve(),
        generator_sha256=_file_sha256(generator),
        images_seen=about.get("images_seen"),
        split=config.split,
        jitter=config.jitter,
        rival_steps=config.rival_steps,
        tuning=config.tuning,
        device=config.device,
        classes=None if read is None else (config.out / "classes.json").resolve(),
        classes_sha256=None if read is None else sha256(read),
        other=config.other_data and config.other_data.resolve(),
        data_sha256=sha256({str(number): _files(*used) for number, used in enumerate(in_use)}),
    )
    _open_folder(config.out, setting, parts)
    return setting


def _files(parts: PartFolder, stems: Iterable[str]) -> dict[str, list[str]]:
    """Hashes of the image and the mask of each stem."""
    return {
        stem: [_file_sha256(path) for path in (parts.image_paths[stem], parts.mask_path(stem))]
        for stem in stems
    }


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _open_folder(out: Path, setting: Setting, parts: PartFolder) -> None:
    if (out / "setting.json").exists():
        _check_same(out, _stored(out), setting)
    elif out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: already there and not of gpseg.evaluate; give another --out")
    try:
        (out / "cells").mkdir(parents=True, exist_ok=True)
    except PermissionError:
        raise InputError(f"{out}: no permission to write there; give another --out") from None
    for folder in (out, out / "cells"):
        remove_leftovers(folder)
    parts.splits.save(out / "splits.json")
    if setting.classes is not None:
        parts.reading.save(setting.classes)
    with replacing(out / "setting.json") as temporary:
        content = json.dumps(dataclasses.asdict(setting), indent=2, default=str)
        temporary.write_text(content + "\n")


def _check_same(out: Path, stored: Setting, setting: Setting) -> None:
    before, now = flat_options(stored.options), flat_options(setting.options)
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise InputError(
                f"{out}: that comparison has {name} = {before.get(name)}, not {now.get(name)}; give the same option, or "
                "another --out"
            )
    if stored.data_sha256 not in (None, setting.data_sha256):
        raise InputError(
            f"{setting.data}: its images or masks are not those of the comparison in {out}; give the same, or another --out"
        )


def _stored(out: Path) -> Setting:
    """What the comparison in a folder was started with."""
    path = out / "setting.json"
    try:
        content = json.loads(path.read_text())
        content["tuning"] = FinetuneConfig(**content["tuning"])
        names = ("data", "splits", "generator", "classes", "other")
        paths = {name: Path(content[name]) for name in names if content.get(name) is not None}
        return Setting(**{**content, **paths})
    except FileNotFoundError:
        raise InputError(f"{out}: no comparison there; run without --report-only first") from None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: can't be read ({error}); give another --out") from error


def _compute(folder: Path, keys: Sequence[Key], setting: Setting) -> list[Cell]:
    """Compute what is missing; returns the cells that failed."""
    finished = {cell.key: cell for cell in _cells(folder, setting) if cell.finished}
    missing = [key for key in keys if key not in finished]
    failed = []
    for number, key in enumerate(missing):
        path = folder / f"{key}.json"
        if (cell := _finished(path)) is not None:  # by another process
            finished[key] = cell
            continue
        left = _left(missing[number:], list(finished.values()))
        log.info("cell %d of %d: %s%s", len(keys) - len(missing) + number + 1, len(keys), key, left)
        try:
            in_fresh_process(run_cell, folder, key, setting)
        except KeyboardInterrupt:
            log.info("%s holds what is finished; the same command continues", folder.parent)
            raise
        except Exception as error:  # whatever a method dies of, the others go on
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            log.warning("failed: %s: %s", key, reason)
            if _finished(path) is None:
                Cell.write_failure(folder, key, setting, reason)
        cell = Cell.read(path)
        if cell.failed:
            failed.append(cell)
        else:
            finished[key] = cell
            _say(cell)
    return failed


def _finished(path: Path) -> Cell | None:
    cell = Cell.read(path) if path.exists() else None
    return cell if cell is not None and cell.finished else None


def _left(missing: Sequence[Key], finished: Sequence[Cell]) -> str:
    """How long the missing cells will take, judged by the finished ones of the same methods."""
    seconds: dict[str, list[float]] = {}
    for cell in finished:
        seconds.setdefault(cell.key.method, []).append(cell.facts["seconds"])
    means = {method: statistics.mean(values) for method, values in seconds.items()}
    trained = [mean for method, mean in means.items() if method != FLOOR]
    if not trained:
        return ""
    typical = statistics.mean(trained)
    minutes = sum(means.get(key.method, typical) for key in missing) / 60
    return f", about {max(1, round(minutes))} min left"


def _say(cell: Cell) -> None:
    facts = cell.facts
    scores = []
    for row in cell.rows:
        counts = cell.counts(row)
        assert counts is not None
        scores.append(f"{row} {percent(pooled_iou(counts).nanmean().item())}")
    memory = facts["peak_memory_bytes"]
    log.info(
        "%s mIoU: %s; trained for %.0f s%s",
        facts["split"],
        ", ".join(scores),
        facts["train_seconds"],
        f", {memory / 2**30:.2f} GiB at the peak" if memory else "",
    )


def _cells(folder: Path, setting: Setting) -> list[Cell]:
    """All cells that are there, of whatever methods, shots and draws."""
    cells = [Cell.read(path) for path in sorted(folder.glob("*.json"))]
    for cell in cells:
        if cell.facts.get("options_sha256") != setting.options_sha256:
            raise InputError(
                f"{cell.path}: computed with other options than setting.json has; remove it"
            )
    return [cell for cell in cells if cell.key.method in METHODS]
