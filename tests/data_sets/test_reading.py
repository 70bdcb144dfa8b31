"""Masks read in terms of other classes than they are written in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gpseg.data import DRAWN_CLASSES, Classes, PartFolder, Reading
from gpseg.errors import InputError

MakeFolder = Callable[..., Path]

FEATURES: dict[str, Any] = {
    "ignore_index": 200,
    "classes": [
        {"id": 0, "name": "background"},
        {"id": 2, "name": "hair", "color": [9, 9, 9]},
        {"id": 1, "name": "features", "color": [1, 2, 3], "of": ["eyes", 4, "mouth"]},
    ],
}


def _written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_classes_are_those_of_the_file(tmp_path: Path) -> None:
    reading = Reading.load(_written(tmp_path / "c.json", FEATURES), DRAWN_CLASSES)
    assert reading.classes.names == ("background", "features", "hair")
    assert reading.classes.colors[1] == (1, 2, 3)
    assert reading.of == ((0,), (3, 4, 5), (2,))
    assert "of" not in json.dumps(reading.classes.to_json())
    assert str(reading) == "background, features (eyes + nose + mouth), hair; ignored: skin"


@pytest.mark.parametrize("seed", range(10))
def test_a_mask_is_read_as_it_is_and_then_mapped(tmp_path: Path, seed: int) -> None:
    """Whatever is merged, renumbered and left out, pixel by pixel."""
    rng = np.random.default_rng(seed)
    own = DRAWN_CLASSES
    ids = rng.choice([*range(own.num_classes), 255], (9, 11)).astype(np.uint8)
    own.write_mask(ids, tmp_path / "m.png")
    count = int(rng.integers(2, own.num_classes + 1))
    parts = np.array_split(rng.permutation(own.num_classes)[: rng.integers(count, 7)], count)
    entries = [
        {"id": i, "of": [own.names[x] if rng.random() < 0.5 else int(x) for x in part]}
        for i, part in enumerate(parts)
    ]
    content = {"ignore_index": 77, "classes": entries}
    reading = Reading.load(_written(tmp_path / "c.json", content), own)
    expected = [[next((i for i, p in enumerate(parts) if x in p), 77) for x in row] for row in ids]
    read = reading.read_mask(tmp_path / "m.png")
    assert read.dtype == np.uint8
    assert read.tolist() == expected


def test_a_reading_saved_is_read_back(tmp_path: Path) -> None:
    reading = Reading.load(_written(tmp_path / "c.json", FEATURES), DRAWN_CLASSES)
    reading.save(tmp_path / "kept.json")
    assert Reading.load(tmp_path / "kept.json", DRAWN_CLASSES) == reading
    assert json.loads((tmp_path / "kept.json").read_text())["classes"][1]["of"] == [
        "eyes", "nose", "mouth"
    ]  # fmt: skip


def test_the_plain_reading_is_the_data_sets_own(tmp_path: Path, classes: Classes) -> None:
    plain = Reading.plain(classes)
    assert plain.to_json() == classes.to_json()
    plain.save(tmp_path / "c.json")
    assert Reading.load(tmp_path / "c.json", classes) == plain
    assert str(plain) == "background, left, right"


def test_masks_in_colours_are_in_the_data_sets_own(tmp_path: Path, classes: Classes) -> None:
    ids = np.array([[0, 1, 2]], dtype=np.uint8)
    Image.fromarray(np.array(classes.colors, dtype=np.uint8)[ids]).save(tmp_path / "m.png")
    content = {"classes": [{"id": 0}, {"id": 1, "name": "part", "of": ["left", "right"]}]}
    reading = Reading.load(_written(tmp_path / "c.json", content), classes)
    assert reading.read_mask(tmp_path / "m.png").tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            {"name": "torso"},
            'no class "torso"; say .*"of": .*; it has background, left, right',
        ),
        (
            {"name": "a", "of": ["lft"]},
            '"a" is made of "lft", which .*; it has background, left, right',
        ),
        ({"name": "a", "of": [3]}, 'made of 3, which .*; it has background'),
        ({"name": "a", "of": [-1]}, "made of -1"),
        ({"name": "a", "of": [True]}, "made of true"),
        ({"name": "a", "of": [1.0]}, r"made of 1\.0"),
        ({"name": "a", "of": [["left"]]}, r'made of \["left"\]'),
        ({"name": "a", "of": "left"}, 'must be a list of one or more .*; it has background'),
        ({"name": "a", "of": []}, "must be a list of one or more"),
        ({"name": "a", "of": ["left", 1]}, '"left" .* named twice, for "a" and "a"'),
        (
            {"name": "a", "of": ["left", "background"]},
            '"background" .* named twice, for "background" and "a"',
        ),
        ({"name": "left", "color": "red"}, "no list of classes"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(
    tmp_path: Path, classes: Classes, entry: dict[str, Any], said: str
) -> None:
    path = _written(tmp_path / "c.json", {"classes": [{"id": 0}, {"id": 1, **entry}]})
    with pytest.raises(InputError, match=said) as caught:
        Reading.load(path, classes)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"classes": [1, 2]}'])
def test_a_malformed_file_is_named(tmp_path: Path, classes: Classes, text: str) -> None:
    with pytest.raises(InputError, match=r"c\.json"):
        Reading.load(_written(tmp_path / "c.json", text), classes)


def test_a_folder_is_read_so(make_folder: MakeFolder, tmp_path: Path, classes: Classes) -> None:
    root = make_folder()
    content = {"classes": [{"id": 0}, {"id": 1, "name": "part", "of": ["left", "right"]}]}
    path = _written(tmp_path / "coarse.json", content)
    folder = PartFolder.open(root, classes=path)
    assert folder.classes.names == ("background", "part")
    assert folder.classes.swap == ()  # the file's, not the folder's
    own, coarse = PartFolder.open(root).mask("a0", 20), folder.mask("a0", 20)
    assert set(own.unique().tolist()) == {0, 1, 2, 255}
    assert coarse.equal(torch.where(own == 2, 1, own))


def test_classes_are_merged_before_masks_are_fitted(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    """Two parts that only together cover most of a pixel are what covers most of it."""
    root = make_folder()
    Image.new("RGB", (3, 3)).save(root / "images" / "a0.png")
    ids = np.array([[0, 0, 0], [0, 1, 1], [1, 2, 2]], dtype=np.uint8)
    Image.fromarray(ids).save(root / "masks" / "a0.png")
    content = {"classes": [{"id": 0}, {"id": 1, "name": "part", "of": ["left", "right"]}]}
    path = _written(tmp_path / "coarse.json", content)
    assert PartFolder.open(root).mask("a0", 1).item() == 0
    assert PartFolder.open(root, classes=path).mask("a0", 1).item() == 1


def test_classes_found_in_masks_have_ids(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(json=False)
    content = {"classes": [{"id": 0, "of": [0, 1]}, {"id": 1, "name": "right", "of": ["class_2"]}]}
    folder = PartFolder.open(root, classes=_written(tmp_path / "coarse.json", content))
    own = PartFolder.open(root).mask("a0", 20)
    table = torch.zeros(256, dtype=torch.uint8)
    table[2], table[255] = 1, 255
    assert folder.mask("a0", 20).equal(table[own.long()])
