"""Classes files, mask files and fitting masks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gpseg.data import Classes, PartClass, fit_mask, fit_square
from gpseg.errors import InputError


def _written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_save_and_load_round_trip(tmp_path: Path, classes: Classes) -> None:
    classes.save(tmp_path / "classes.json")
    assert Classes.load(tmp_path / "classes.json") == classes
    assert [path.name for path in tmp_path.iterdir()] == ["classes.json"]


def test_defaults_for_names_and_colors(tmp_path: Path) -> None:
    loaded = Classes.load(
        _written(tmp_path / "c.json", {"classes": [{"id": i} for i in range(254)]})
    )
    assert loaded.names[:3] == ("background", "class_1", "class_2")
    assert len(set(loaded.colors)) == 254
    assert loaded.ignore_index == 255


def test_palette_and_swap_table(classes: Classes) -> None:
    palette = np.frombuffer(classes.palette_bytes(), dtype=np.uint8).reshape(256, 3)
    assert palette[1].tolist() == [200, 10, 10]
    table = classes.swap_table()
    assert table.dtype == torch.int64
    assert table[:4].tolist() == [0, 2, 1, 3]
    assert table[table].equal(torch.arange(256))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{not json", "line 1"),
        ([1, 2], "JSON object"),
        ({}, "no list of classes"),
        ({"classes": [{"name": "no id"}]}, "no list of classes"),
        ({"classes": [{"id": "0"}, {"id": "1"}]}, "no list of classes"),
        ({"classes": [{"id": 0}, {"id": 1, "color": [0, 0, 300]}]}, "no list of classes"),
        ({"classes": [{"id": 0}, {"id": 1, "color": "red"}]}, "no list of classes"),
        ({"classes": [{"id": 0}, {"id": 1, "name": None}]}, "the name None is no text"),
        ({"classes": [{"id": 0}]}, "at least two"),
        ({"classes": [{"id": 0}, {"id": 2}]}, "renumber"),
        ({"classes": [{"id": 0}, {"id": 1}, {"id": 1}]}, "renumber"),
        ({"classes": [{"id": 0, "name": "a"}, {"id": 1, "name": "a"}]}, "same name"),
        ({"classes": [{"id": 0}, {"id": 1, "color": [0, 0, 0]}]}, "same color"),
        ({"classes": [{"id": 0}, {"id": 1}], "swap": [[1, 2]]}, "swap"),
        ({"classes": [{"id": 0}, {"id": 1}], "swap": [[1, 1]]}, "swap"),
        ({"classes": [{"id": 0}, {"id": 1}], "swap": [1]}, "no list of classes"),
        ({"classes": [{"id": 0}, {"id": 1}], "ignore_index": 1}, "ignore_index"),
    ],
)
def test_bad_classes_files_are_named(tmp_path: Path, content: Any, said: str) -> None:
    path = _written(tmp_path / "classes.json", content)
    with pytest.raises(InputError, match=said) as caught:
        Classes.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_classes_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.json"):
        Classes.load(tmp_path / "absent.json")


def test_mask_round_trip(tmp_path: Path, classes: Classes) -> None:
    mask = np.random.default_rng(0).choice([0, 1, 2, 255], (7, 5)).astype(np.uint8)
    classes.write_mask(torch.from_numpy(mask), tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
    assert (classes.read_mask(tmp_path / "m.png") == mask).all()


def test_grey_and_bilevel_masks_hold_ids(tmp_path: Path, classes: Classes) -> None:
    mask = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    Image.fromarray(mask).save(tmp_path / "grey.png")
    assert (classes.read_mask(tmp_path / "grey.png") == mask).all()
    Image.fromarray(mask.astype(np.uint16)).save(tmp_path / "deep.png")
    assert (classes.read_mask(tmp_path / "deep.png") == mask).all()
    Image.fromarray(mask == 1).save(tmp_path / "bits.png")
    assert (classes.read_mask(tmp_path / "bits.png") == (mask == 1)).all()


def test_a_mask_is_turned_as_its_photograph_is(tmp_path: Path, classes: Classes) -> None:
    ids = np.zeros((6, 8), np.uint8)
    ids[:, 0] = 1
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ids).save(tmp_path / "m.png", exif=exif)
    assert np.array_equal(classes.read_mask(tmp_path / "m.png"), np.rot90(ids, -1))


def test_rgb_mask_in_class_colors_is_converted(tmp_path: Path, classes: Classes) -> None:
    ids = np.random.default_rng(0).integers(0, 3, (6, 4)).astype(np.uint8)
    colors = np.array(classes.colors, dtype=np.uint8)[ids]
    Image.fromarray(colors).save(tmp_path / "rgb.png")
    assert (classes.read_mask(tmp_path / "rgb.png") == ids).all()
    colors[0, 0] = (1, 2, 3)
    Image.fromarray(colors).save(tmp_path / "rgb.png")
    with pytest.raises(InputError, match=r"rgb\.png .*indexed"):
        classes.read_mask(tmp_path / "rgb.png")


def test_masks_of_no_use_are_named(tmp_path: Path, classes: Classes) -> None:
    Image.fromarray(np.array([[0, 3, 9]], dtype=np.uint8)).save(tmp_path / "ids.png")
    with pytest.raises(InputError, match=r"ids\.png holds ids 3, 9"):
        classes.read_mask(tmp_path / "ids.png")
    Image.fromarray(np.array([[0, 300]], dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png .*300"):
        classes.read_mask(tmp_path / "deep.png")
    Image.new("LA", (2, 2)).save(tmp_path / "la.png")
    with pytest.raises(InputError, match=r"la\.png .*LA"):
        classes.read_mask(tmp_path / "la.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "ids.png").read_bytes()[:40])
    with pytest.raises(InputError, match=r"cut\.png"):
        classes.read_mask(tmp_path / "cut.png")


def test_classes_from_masks_take_ids_and_palette(tmp_path: Path, classes: Classes) -> None:
    for name, ids in (("a", [0, 1, 255]), ("b", [0, 2])):
        classes.write_mask(np.array([ids], dtype=np.uint8), tmp_path / f"{name}.png")
    paths = sorted(tmp_path.glob("*.png"))
    made = Classes.from_masks(paths)
    assert made.names == ("background", "class_1", "class_2")
    assert made.colors == classes.colors
    Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).save(tmp_path / "c.png")
    mixed = Classes.from_masks([*paths, tmp_path / "c.png"])
    assert mixed.num_classes == 3
    assert len(set(mixed.colors)) == 3


def test_masks_that_show_one_colour_for_different_ids(tmp_path: Path, classes: Classes) -> None:
    parts = classes.classes
    swapped = (
        parts[0],
        replace(parts[1], color=parts[2].color),
        replace(parts[2], color=parts[1].color),
    )
    ids = np.array([[0, 1, 2]], dtype=np.uint8)
    for name, those in (("a", classes), ("b", Classes(swapped))):
        those.write_mask(ids, tmp_path / f"{name}.png")
    with pytest.raises(
        InputError, match=r"b\.png shows id 1 in the colour that id 2 has in a\.png"
    ):
        Classes.from_masks(sorted(tmp_path.glob("*.png")))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"classes": [{"id": 0}, {"id": 1}], "swaps": [[0, 1]]}, '"swaps" is not known; "swap" is'),
        ({"classes": [{"id": 0}, {"id": 1, "colour": [1, 2, 3]}]}, '^"colour" is not known'),
    ],
)
def test_misspelt_keys_are_refused(content: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Classes.from_json(content)
    noted = {"notes": "", "classes": [{"id": 0, "source_labels": [3]}, {"id": 1}]}
    assert Classes.from_json(noted).num_classes == 2


@pytest.mark.parametrize(
    ("ids", "said"), [([0, 255], "hold no part"), ([0, 1, 4], "gaps"), ([1, 2], "gaps")]
)
def test_classes_from_masks_of_no_use(tmp_path: Path, ids: list[int], said: str) -> None:
    Image.fromarray(np.array([ids], dtype=np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=said):
        Classes.from_masks([tmp_path / "m.png"])


def test_classes_from_rgb_masks(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"m\.png .*indexed"):
        Classes.from_masks([tmp_path / "m.png"])


def test_fit_mask_takes_the_majority_of_each_area() -> None:
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[:, 1:4] = 1  # three of the first four columns, which nearest sampling might miss
    mask[8:, 16:] = 255
    fitted = fit_mask(mask, 8)
    assert fitted[:, 0].tolist() == [1] * 8
    assert (fitted[:, 1:4] == 0).all()
    assert (fitted[2:, 4:] == 255).all()


def test_fit_mask_lies_where_its_image_lies() -> None:
    for size in ((40, 23), (7, 12), (33, 33), (64, 16)):
        mask = np.zeros(size[::-1], dtype=np.uint8)
        mask[size[1] // 3 :, : size[0] // 2] = 1
        image = Image.fromarray(np.repeat(mask[..., None] * 255, 3, axis=2))
        fitted, placement = fit_square(image, 16)
        ids = fit_mask(mask, 16)
        (above, below), (left, right) = placement.border
        outside = torch.nn.functional.pad(
            torch.zeros(placement.fitted_height, placement.fitted_width),
            (left, right, above, below),
            value=1,
        ).bool()
        assert (ids[outside] == 255).all()
        sure = ~outside & ((fitted[0] < 60) | (fitted[0] > 195))
        assert sure.sum() > 40
        assert ((fitted[0] > 127)[sure] == (ids == 1)[sure]).all()


def test_at_its_own_size_a_mask_is_unchanged() -> None:
    mask = np.random.default_rng(0).integers(0, 4, (16, 16)).astype(np.uint8)
    assert (fit_mask(mask, 16).numpy() == mask).all()


def test_background_comes_first() -> None:
    with pytest.raises(InputError, match="in order"):
        Classes((PartClass(1, "a", (1, 1, 1)), PartClass(0, "b", (2, 2, 2))))
