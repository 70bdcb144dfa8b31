"""Heads cut out of photographs of people."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.heads import HeadsConfig, heads
from gpseg.data import Classes
from gpseg.data.classes import write_json
from gpseg.errors import InputError
from gpseg.evaluation.other import OtherCollection

NAMES = "background hair skin upper_clothes lower_clothes bag scarf eyewear"
HAIR, SKIN, CLOTHES, EYEWEAR = 1, 2, 3, 7
FACES = Classes.from_json(
    {
        "classes": [
            {"id": i, "name": n}
            for i, n in enumerate(["background", "skin", "hair", "eyes", "nose", "mouth"])
        ]
    }
)


def people(root: Path, names: str = NAMES) -> Path:
    """Four photographs 192 px wide: a head at the top with glasses, clothes under it; no head in the third, a cut one in the last."""
    classes = {"classes": [{"id": i, "name": name} for i, name in enumerate(names.split())]}
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index, left in enumerate((80, 100, None, 0)):
        mask = np.zeros((192, 192), np.uint8)
        mask[80:, 40:150] = CLOTHES
        mask[150:160, 40:50] = SKIN  # a hand
        if left is not None:
            mask[20:30, left : left + 30] = HAIR
            mask[30:70, left : left + 30] = SKIN
            mask[40:44, left : left + 30] = EYEWEAR
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
        Image.fromarray(np.repeat(20 * mask[..., None], 3, 2)).save(
            root / "images" / f"{index}.png"
        )
    write_json(root / "classes.json", classes)
    write_json(root / "splits.json", {"few_shot_draws": [["0"]], "val": [], "test": ["1", "3"]})
    return root


def test_heads_are_cut_out_with_their_masks(tmp_path: Path) -> None:
    heads(HeadsConfig(people(tmp_path / "people"), tmp_path / "heads"))
    found = OtherCollection.open(tmp_path / "heads", FACES, "test")
    assert found.stems == ["1"]
    assert found.parts.splits.val == ["0"]
    assert found.classes.names == ("background", "skin", "hair")
    image = np.array(Image.open(tmp_path / "heads" / "images" / "1.png"))[..., 0]
    mask = np.array(Image.open(tmp_path / "heads" / "masks" / "1.png"))
    side, _ = image.shape
    assert image.shape == mask.shape == (side, side)
    kinds = {0: 0, 20 * HAIR: 2, 20 * SKIN: 1, 20 * CLOTHES: 0, 20 * EYEWEAR: 255}
    assert mask.tolist() == [[kinds[x] for x in row] for row in image.tolist()]
    ys, xs = np.nonzero(mask == 2)
    assert len(ys) == 300 and ys.min() == pytest.approx(0.043 * side, abs=1)
    assert xs.mean() == pytest.approx(side / 2, abs=1)


def test_what_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no class bag"):
        heads(
            HeadsConfig(people(tmp_path / "people", NAMES.replace("bag", "sack")), tmp_path / "x")
        )
    assert not (tmp_path / "x").exists()
    (tmp_path / "x").mkdir()
    with pytest.raises(InputError, match="already there"):
        heads(HeadsConfig(people(tmp_path / "more"), tmp_path / "x"))


def test_nothing_is_left_of_half_a_set(tmp_path: Path) -> None:
    root = people(tmp_path / "people")
    (root / "masks" / "1.png").write_bytes(b"no mask")
    with pytest.raises(InputError, match=r"1\.png"):
        heads(HeadsConfig(root, tmp_path / "x"))
    assert [path.name for path in tmp_path.iterdir()] == ["people"]
