"""A folder of drawn faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from gpseg.atomic import making
from gpseg.data.classes import read_json, write_json
from gpseg.data.drawn.canvas import DRAWN_CLASSES
from gpseg.data.drawn.face import draw_face
from gpseg.data.folder import Splits
from gpseg.errors import InputError, RunError

_SHOTS = 10  # images in each few-shot draw
_DRAWS = 5


def write_drawn(
    root: str | Path, resolution: int, labelled: int, unlabelled: int, seed: int = 0
) -> Path:
    """Write a drawn data set as a folder, whole or not at all.

    A folder already written with the same arguments is left as it is.

    Args:
        root: the folder to make.
        resolution: side of the images in pixels.
        labelled: number of images with masks, at least 3. Three tenths are the training pool (but
            10, or half of them, where that is more), half as many are `val`, the rest `test`.
        unlabelled: number of images without masks.
        seed: seed of the faces and of the draws.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds something else, or too few labelled images are asked for.
        RunError: the disk is full or can't be written.
    """
    root = Path(root)
    if labelled < 3:
        raise InputError(f"labelled must be at least 3 (train, val, test), not {labelled}")
    made_by = {
        "resolution": resolution,
        "labelled": labelled,
        "unlabelled": unlabelled,
        "seed": seed,
    }
    if _is_there(root, made_by):
        return root
    try:
        with making(root) as partial:
            _write_faces(partial, resolution, labelled, unlabelled, seed)
            DRAWN_CLASSES.save(partial / "classes.json")
            _drawn_splits(labelled, seed).save(partial / "splits.json")
            write_json(partial / "drawn.json", made_by)
    except RunError:
        if not _is_there(root, made_by):  # by another process, in the meantime
            raise
    return root


def _is_there(root: Path, made_by: dict[str, int]) -> bool:
    if not root.exists():
        return False
    record = root / "drawn.json"
    if record.exists() and read_json(record) == made_by:
        return True
    raise InputError(f"{root} exists and holds other data; choose another folder or remove it")


def _write_faces(root: Path, resolution: int, labelled: int, unlabelled: int, seed: int) -> None:
    for name in ("images", "masks", "unlabelled"):
        (root / name).mkdir()
    for index in tqdm(
        range(labelled + unlabelled), desc="drawing faces", unit="img", mininterval=1.0
    ):
        image, mask = draw_face(seed, index, resolution)
        has_mask = index < labelled
        folder = root / ("images" if has_mask else "unlabelled")
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.save(folder / f"{_stem(index)}.png", compress_level=1)
        if has_mask:
            DRAWN_CLASSES.write_mask(mask, root / "masks" / f"{_stem(index)}.png")


def _drawn_splits(labelled: int, seed: int) -> Splits:
    stems = [_stem(index) for index in range(labelled)]
    pool = max(min(_SHOTS, labelled // 2), 3 * labelled // 10)
    val = max(1, pool // 2)
    rng = np.random.default_rng(seed)
    draws = [[stems[i] for i in rng.permutation(pool)[:_SHOTS].tolist()] for _ in range(_DRAWS)]
    return Splits(draws, stems[pool : pool + val], stems[pool + val :], stems[:pool])


def _stem(index: int) -> str:
    return f"drawn_{index:05d}"
