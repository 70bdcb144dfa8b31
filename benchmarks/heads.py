"""`python -m benchmarks.heads`: from photographs of people to another collection of faces, for `gpseg.evaluate --other-data`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gpseg.atomic import making
from gpseg.commandline import run
from gpseg.data import Classes, PartFolder, Reading, Splits, read_image
from gpseg.data.classes import write_json
from gpseg.errors import InputError

DESCRIPTION = """Cut the heads out of photographs of people whose masks tell hair and skin apart: faces that no studio
portrait was taken for, to score on what was trained on other faces. Test images stay test images; all others are val."""

REACH = 0.21
"""How far below the top of the hair the skin of a face reaches at most, as a share of the photograph's height."""

SIDE, ABOVE = 2.3, 0.1
"""Side of the square, and what it shows above the hair, in lengths from there to the middle of the face."""

SMALLEST = 40
"""Side in pixels below which nothing can be seen of eyes and mouth."""

CLASSES = {
    "ignore_index": 255,
    "classes": [
        {"id": 0, "name": "background", "color": [255, 0, 0]},
        {"id": 1, "name": "skin", "color": [255, 255, 0], "of": ["skin", "eyes", "nose", "mouth"]},
        {"id": 2, "name": "hair", "color": [127, 0, 0]},
    ],
}
OF = {
    "background": ("background", "upper_clothes", "lower_clothes", "bag", "scarf"),
    "skin": ("skin",),
    "hair": ("hair",),
}
"""What the classes are made of; the rest (eyewear, hats, jewellery) is ignored."""


@dataclass
class HeadsConfig:
    """Options of cutting out heads."""

    data: Path
    """Data-set folder with the classes background, hair, skin, upper_clothes, lower_clothes, bag and scarf."""
    out: Path
    """Data-set folder to make."""


def heads(config: HeadsConfig) -> None:
    """Write the data set.

    Args:
        config: the options.

    Raises:
        InputError: the data set lacks a class, or the folder is there.
        RunError: the folder can't be written.
    """
    parts = PartFolder.open(config.data)
    names = parts.classes.names
    lacking = [name for members in OF.values() for name in members if name not in names]
    if lacking:
        raise InputError(f"{config.data}: has no class {lacking[0]}; it has {', '.join(names)}")
    if config.out.exists():
        raise InputError(f"{config.out}: already there; give another --out or remove it")
    of = tuple(tuple(names.index(name) for name in members) for members in OF.values())
    reading = Reading(parts.classes, Classes.from_json(CLASSES), of)
    test = set(parts.splits.test)
    splits = Splits(draws=[], val=[], test=[], train_pool=[])
    with making(config.out) as partial:
        for folder in ("images", "masks"):
            (partial / folder).mkdir()
        for stem in parts.labelled:
            image = read_image(parts.image_paths[stem])
            mask = parts.classes.read_mask(parts.mask_path(stem))
            box = _head(mask == names.index("hair"), mask == names.index("skin"))
            if box is None:
                continue
            image.crop(box).save(partial / "images" / f"{stem}.png")
            cut = Image.fromarray(reading.read(mask)).crop(box)
            reading.classes.write_mask(np.asarray(cut), partial / "masks" / f"{stem}.png")
            (splits.test if stem in test else splits.val).append(stem)
        write_json(partial / "classes.json", CLASSES)
        splits.save(partial / "splits.json")
    print(f"{config.out}: {len(splits.val)} val and {len(splits.test)} test images")


def _head(hair: np.ndarray, skin: np.ndarray) -> tuple[int, int, int, int] | None:
    """A square around the head; None where too little is seen of it."""
    height, width = hair.shape
    rows = np.flatnonzero(hair.any(1))
    if not len(rows):
        return None
    top = rows[0]
    y, x = np.nonzero(skin[: top + round(REACH * height)])
    if not len(y):
        return None
    length = np.median(y) - top
    side = round(SIDE * length)
    left = round(np.median(x) - side / 2)
    upper = max(0, round(top - ABOVE * length))
    if side < SMALLEST or left < 0 or left + side > width or upper + side > height:
        return None
    return left, upper, left + side, upper + side


if __name__ == "__main__":
    run("benchmarks.heads", HeadsConfig, heads, DESCRIPTION)
