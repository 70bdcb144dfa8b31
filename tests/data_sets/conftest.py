"""A small data-set folder to break in every possible way."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpseg.data import Classes, PartClass

CLASSES = Classes(
    (
        PartClass(0, "background", (0, 0, 0)),
        PartClass(1, "left", (200, 10, 10)),
        PartClass(2, "right", (10, 10, 200)),
    ),
    swap=((1, 2),),
)


def write_pair(root: Path, stem: str, seed: int, size: tuple[int, int] = (20, 16)) -> None:
    """Write an image of a size (width, height) and its mask, which uses every id and 255."""
    rng = np.random.default_rng(seed)
    width, height = size
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
        root / "images" / f"{stem}.png"
    )
    mask = rng.integers(0, 3, (height, width), dtype=np.uint8)
    mask.flat[:4] = (0, 1, 2, 255)
    CLASSES.write_mask(mask, root / "masks" / f"{stem}.png")


@pytest.fixture
def classes() -> Classes:
    return CLASSES


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a folder of labelled images `a0`, `a1`, ... and one more."""

    def make(labelled: int = 12, json: bool = True) -> Path:
        root = tmp_path / "set"
        for name in ("images", "masks", "unlabelled"):
            (root / name).mkdir(parents=True)
        for index in range(labelled):
            write_pair(root, f"a{index}", index)
        Image.new("RGB", (9, 9)).save(root / "images" / "bare.jpg")
        Image.new("RGB", (9, 9)).save(root / "unlabelled" / "extra.jpg")
        if json:
            CLASSES.save(root / "classes.json")
        return root

    return make
