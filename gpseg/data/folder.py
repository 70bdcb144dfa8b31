"""A data set in a folder: `images/`, `masks/`, `unlabelled/`, `classes.json`, `splits.json`.

Only `images/` and at least one mask are needed; what is missing is made up from the rest.
Nothing is ever written into the folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpseg.data.classes import Classes, check_keys, fit_mask, read_json, write_json
from gpseg.data.images import image_size, read_image, read_square
from gpseg.data.reading import Reading
from gpseg.data.sources import image_files
from gpseg.errors import InputError

_FEWEST_TO_HOLD_OUT = 8  # labelled images; with fewer, all of them are worth more in training
_SEED = 0  # of splits that a data set doesn't give
_DRAWS = 5


@dataclass(frozen=True)
class Splits:
    """Which labelled images serve for what, by stem.

    Args:
        draws: ordered lists; k shots of a draw are its first k.
        val: images to choose by.
        test: images to score on, seen by nothing else.
        train_pool: images that the draws are drawn from.
    """

    draws: list[list[str]]
    val: list[str]
    test: list[str]
    train_pool: list[str]

    @classmethod
    def make(cls, stems: list[str]) -> Splits:
        """Split labelled images at random, always alike, so that what one run learns from is not what another is tested on.

        With fewer than 8 all of them train and `val` and `test` are empty; otherwise an eighth
        goes to `val` and a quarter to `test`.

        Args:
            stems: labelled images.

        Returns:
            The splits, each draw an ordering of the whole pool.
        """
        generator = torch.Generator().manual_seed(_SEED)
        order = _shuffled(sorted(stems), generator)
        holds_out = len(order) >= _FEWEST_TO_HOLD_OUT
        test = len(order) // 4 if holds_out else 0
        val = len(order) // 8 if holds_out else 0
        pool = sorted(order[test + val :])
        draws = [_shuffled(pool, generator) for _ in range(_DRAWS)]
        return cls(draws, sorted(order[test : test + val]), sorted(order[:test]), pool)

    @classmethod
    def load(cls, path: str | Path, labelled: Iterable[str]) -> Splits:
        """Read a splits.json.

        Without `few_shot_draws`, the draws are orderings of `train_pool`, or of every labelled
        image outside `val` and `test`.

        Args:
            path: the file.
            labelled: stems that have an image and a mask.

        Returns:
            The splits.

        Raises:
            InputError: the file is malformed, names images that have no mask or don't exist, or
                holds a training image in `val` or `test`.
        """
        path = Path(path)
        content = read_json(path)
        try:
            check_keys(content, ("few_shot_draws", "val", "test", "train_pool"))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        val = _stems(content, "val", path)
        test = _stems(content, "test", path)
        pool = _stems(content, "train_pool", path)
        given = content.get("few_shot_draws", [])
        if not isinstance(given, list):
            raise InputError(f"{path}: few_shot_draws must be a list of lists of image stems")
        draws = [_stems({"few_shot_draws": draw}, "few_shot_draws", path) for draw in given]
        labelled = set(labelled)
        held_out = {*val, *test}
        if not pool:
            drawn = {stem for draw in draws for stem in draw}
            pool = sorted(drawn or labelled - held_out)
        if not draws:
            generator = torch.Generator().manual_seed(_SEED)
            draws = [_shuffled(pool, generator) for _ in range(_DRAWS)]
        splits = cls(draws, val, test, pool)
        splits._validate(path, labelled)
        return splits

    def save(self, path: str | Path) -> None:
        """Write a splits.json that `load` reads back.

        Args:
            path: the file to write.
        """
        content = asdict(self)
        write_json(Path(path), {"few_shot_draws": content.pop("draws"), **content})

    def _validate(self, path: Path, labelled: set[str]) -> None:
        trained = {stem for draw in [*self.draws, self.train_pool] for stem in draw}
        for stem in sorted(trained.union(self.val, self.test)):
            if stem not in labelled:
                raise InputError(
                    f"{path} names '{stem}', which has no image with a mask; add both or remove it"
                )
        for first, second, names in (
            (trained, self.val, "a training draw and val"),
            (trained, self.test, "a training draw and test"),
            (set(self.val), self.test, "val and test"),
        ):
            shared = sorted(first.intersection(second))
            if shared:
                raise InputError(f"{path} has '{shared[0]}' in both {names}; keep it in one")


def _stems(content: dict[str, Any], key: str, path: Path) -> list[str]:
    stems = content.get(key, [])
    if not isinstance(stems, list) or not all(isinstance(stem, str) for stem in stems):
        raise InputError(f"{path}: {key} must hold lists of image stems (file names, no suffix)")
    if len(set(stems)) != len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise InputError(f"{path}: {key} names '{twice}' twice in one list; remove one")
    return stems


def _shuffled(stems: list[str], generator: torch.Generator) -> list[str]:
    return [stems[i] for i in torch.randperm(len(stems), generator=generator).tolist()]


@dataclass(frozen=True)
class PartFolder:
    """An opened data-set folder; made by `PartFolder.open`.

    Args:
        root: the folder.
        reading: how its masks are read.
        labelled: sorted stems that have an image and a mask.
        unlabelled: files in `unlabelled/` and images without a mask. Images in `val` and `test`
            carry masks and so are never among them.
        splits: which labelled images serve for what.
        image_paths: image file of every stem in `images/`.
    """

    root: Path
    reading: Reading
    labelled: list[str]
    unlabelled: list[Path]
    splits: Splits
    image_paths: dict[str, Path]

    @classmethod
    def open(
        cls,
        root: str | Path,
        splits: str | Path | None = None,
        classes: str | Path | None = None,
    ) -> PartFolder:
        """List a folder and read its JSON files; masks are read only where classes.json is missing.

        Args:
            root: the folder.
            splits: a splits.json to use instead of the folder's, such as the one of an earlier run.
            classes: a classes.json whose classes are made of the folder's (`Reading.load`), to read masks as those.

        Returns:
            The data set.

        Raises:
            InputError: the folder, or what is in it, can't be used.
        """
        root = Path(root)
        masks = root / "masks"
        image_paths = _list_images(root)
        labelled = _list_masks(masks, image_paths)
        if (root / "classes.json").exists():
            own = Classes.load(root / "classes.json")
        else:
            own = Classes.from_masks([masks / f"{stem}.png" for stem in labelled])
        if splits is None and not (root / "splits.json").exists():
            chosen = Splits.make(labelled)
        else:
            chosen = Splits.load(Path(splits or root / "splits.json"), labelled)
        without_mask = [image_paths[stem] for stem in sorted(image_paths.keys() - set(labelled))]
        extra = root / "unlabelled"
        return cls(
            root=root,
            reading=Reading.plain(own) if classes is None else Reading.load(classes, own),
            labelled=labelled,
            unlabelled=without_mask + (image_files(extra) if extra.is_dir() else []),
            splits=chosen,
            image_paths=image_paths,
        )

    @property
    def classes(self) -> Classes:
        """The part classes that masks are read as."""
        return self.reading.classes

    def few_shot(self, shots: int, draw: int) -> list[str]:
        """Return the training images of a draw.

        Args:
            shots: number of images, at least 1.
            draw: number of the draw, from 0.

        Returns:
            Stems: the first `shots` of the draw.

        Raises:
            InputError: there is no such draw, or it holds fewer images.
        """
        draws = self.splits.draws
        if not 0 <= draw < len(draws):
            raise InputError(
                f"draw {draw} does not exist: {self.root} has draws 0..{len(draws) - 1}"
            )
        if shots < 1:
            raise InputError(f"shots must be at least 1, not {shots}")
        if shots > len(draws[draw]):
            raise InputError(
                f"{shots} shots asked for, but draw {draw} of {self.root} has only "
                f"{len(draws[draw])} labelled images to train on; ask for fewer or add masks"
            )
        return draws[draw][:shots]

    @property
    def seen_in_training(self) -> list[Path]:
        """Every image that may be seen in training: `unlabelled` and the training pool; nothing of `val` and `test`."""
        return self.unlabelled + [self.image_paths[stem] for stem in self.splits.train_pool]

    def image(self, image: str | Path, resolution: int) -> Tensor:
        """Read an image of this folder, or any other, fitted to a square.

        Args:
            image: a stem of `images/`, or the path of an image file.
            resolution: side of the square in pixels.

        Returns:
            uint8 [3, resolution, resolution].

        Raises:
            InputError: the file can't be read.
        """
        path = self.image_paths.get(image, Path(image)) if isinstance(image, str) else image
        return read_square(path, resolution)[0]

    def mask_path(self, stem: str) -> Path:
        """Return the mask file of a labelled image."""
        return self.root / "masks" / f"{stem}.png"

    def mask(self, stem: str, resolution: int) -> Tensor:
        """Read a mask, fitted to the same square as its image.

        Args:
            stem: a labelled image.
            resolution: side of the square in pixels.

        Returns:
            uint8 [resolution, resolution] of class ids and `classes.ignore_index`.

        Raises:
            InputError: the mask can't be read or used, or its size is not its image's.
        """
        path = self.mask_path(stem)
        mask = self.reading.read_mask(path)
        image_path = self.image_paths[stem]
        width, height = image_size(image_path)
        if mask.shape != (height, width):
            raise InputError(
                f"{path} is {mask.shape[1]}x{mask.shape[0]} pixels, but {image_path} is "
                f"{width}x{height} (as displayed); export the mask at the image's size"
            )
        return fit_mask(mask, resolution, self.classes.ignore_index)

    def check(self, stems: Iterable[str]) -> None:
        """Read the images and masks that a run is about to use, so that it fails at once if at all.

        Args:
            stems: labelled images.

        Raises:
            InputError: an image or mask can't be used; the first such is named.
        """
        for stem in stems:
            read_image(self.image_paths[stem])
            self.mask(stem, resolution=1)


def _list_images(root: Path) -> dict[str, Path]:
    """Map the stems in `root/images` to files."""
    if not root.is_dir():
        raise InputError(f"{root} is not a folder; check the path")
    folder = root / "images"
    if not folder.is_dir():
        raise InputError(f"{root} has no folder images/; put the images there, masks in masks/")
    found: dict[str, Path] = {}
    for path in image_files(folder):
        other = found.setdefault(path.stem, path)
        if other is not path:
            raise InputError(
                f"{other} and {path.name} have the same name, so that a mask could belong to "
                "either; rename or remove one"
            )
    if not found:
        raise InputError(f"{folder} holds no images; put the images there")
    return found


def _list_masks(folder: Path, image_paths: dict[str, Path]) -> list[str]:
    """List the stems of the masks in a folder, each of which must have its image."""
    paths = image_files(folder) if folder.is_dir() else []
    if not paths:
        raise InputError(
            f"{folder} holds no masks; put at least one there, an indexed PNG named as its image"
        )
    for path in paths:
        # Lossy formats smear ids; one lossless format keeps the rule easy to tell.
        if path.suffix != ".png":
            raise InputError(f"{path} is no .png; save masks as indexed PNG")
    orphans = [path for path in paths if path.stem not in image_paths]
    if orphans:
        others = f" (and {len(orphans) - 1} more)" if len(orphans) > 1 else ""
        raise InputError(
            f"{orphans[0]}{others} has no image of the same name in images/; "
            "add it or remove the mask"
        )
    return [path.stem for path in paths]
