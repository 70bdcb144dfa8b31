"""The folder data set, with and without its JSON files, and everything wrong with it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gpseg.data import Classes, PartFolder
from gpseg.errors import InputError

MakeFolder = Callable[..., Path]


def test_full_folder(make_folder: MakeFolder, classes: Classes) -> None:
    root = make_folder()
    stems = [f"a{i}" for i in range(12)]
    content = {
        "few_shot_draws": [["a3", "a1"], ["a2", "a3"]],
        "val": ["a4"],
        "test": ["a5", "a6"],
        "train_pool": ["a1", "a2", "a3"],
        "note": "ignored",
    }
    (root / "splits.json").write_text(json.dumps(content))
    folder = PartFolder.open(root)
    assert folder.classes == classes
    assert folder.labelled == sorted(stems)
    assert folder.few_shot(1, 0) == ["a3"]
    assert folder.few_shot(2, 1) == ["a2", "a3"]
    assert folder.splits.test == ["a5", "a6"]
    assert [path.name for path in folder.unlabelled] == ["bare.jpg", "extra.jpg"]
    seen = [path.stem for path in folder.seen_in_training]
    assert seen == ["bare", "extra", "a1", "a2", "a3"]
    image, mask = folder.image("a0", 8), folder.mask("a0", 8)
    assert image.shape == (3, 8, 8)
    assert image.dtype == mask.dtype == torch.uint8
    assert mask.shape == (8, 8)
    assert (mask[0] == 255).all()  # 20x16 pixels leave a border of one row above and below
    assert folder.image(root / "unlabelled" / "extra.jpg", 8).shape == (3, 8, 8)
    folder.check(stems)


def test_bare_folder_is_split_and_left_alone(make_folder: MakeFolder) -> None:
    root = make_folder(json=False)
    before = sorted(root.rglob("*"))
    folder = PartFolder.open(root)
    assert sorted(root.rglob("*")) == before
    assert folder.classes.num_classes == 3
    splits = folder.splits
    assert len(splits.val) == 1
    assert len(splits.test) == 3
    assert len(splits.train_pool) == 8
    assert all(sorted(draw) == splits.train_pool for draw in splits.draws)
    assert len({tuple(draw) for draw in splits.draws}) > 1
    assert sorted(splits.train_pool + splits.val + splits.test) == folder.labelled
    torch.manual_seed(7)
    assert PartFolder.open(root).splits == splits


def test_few_labelled_all_train(make_folder: MakeFolder) -> None:
    folder = PartFolder.open(make_folder(labelled=5, json=False))
    assert folder.splits.val == folder.splits.test == []
    assert sorted(folder.few_shot(5, 0)) == folder.labelled
    assert folder.few_shot(2, 0) == folder.few_shot(5, 0)[:2]


def test_splits_saved_elsewhere_are_read_back(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(json=False)
    first = PartFolder.open(root)
    first.splits.save(tmp_path / "run.json")
    (root / "splits.json").write_text(json.dumps({"test": ["a0"]}))
    assert PartFolder.open(root).splits != first.splits
    again = PartFolder.open(root, splits=tmp_path / "run.json")
    assert again.splits == first.splits


def test_splits_without_draws_are_completed(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "splits.json").write_text(json.dumps({"test": ["a0", "a1"]}))
    splits = PartFolder.open(root).splits
    assert splits.test == ["a0", "a1"]
    assert len(splits.train_pool) == 10
    assert all(sorted(draw) == splits.train_pool for draw in splits.draws)


def test_many_images_open_without_being_read(make_folder: MakeFolder) -> None:
    root = make_folder()
    for index in range(300):
        (root / "unlabelled" / f"{index:04d}.jpg").touch()  # empty, so that reading one would fail
        (root / "images" / f"more{index:04d}.jpg").touch()
    assert len(PartFolder.open(root).unlabelled) == 602


def _replace_mask(root: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(root / "masks" / "a0.png")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: _truncate(root / "images" / "a0.png"), r"images/a0\.png"),
        (lambda root: _truncate(root / "masks" / "a0.png"), r"masks/a0\.png"),
        (lambda root: _replace_mask(root, np.zeros((16, 21), np.uint8)), "21x16.*20x16"),
        (lambda root: _replace_mask(root, np.full((16, 20), 7, np.uint8)), "ids 7"),
        (lambda root: _replace_mask(root, np.full((16, 20, 3), 7, np.uint8)), "indexed"),
    ],
    ids=["truncated image", "truncated mask", "size", "unknown id", "rgb"],
)
def test_check_names_the_bad_file(
    make_folder: MakeFolder, damage: Callable[[Path], None], said: str
) -> None:
    root = make_folder()
    damage(root)
    folder = PartFolder.open(root)
    folder.check(["a1", "a2"])
    with pytest.raises(InputError, match=said) as caught:
        folder.check(["a1", "a0"])
    assert "a0.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def _no_images(root: Path) -> None:
    for path in (root / "images").iterdir():
        path.unlink()


def _no_masks(root: Path) -> None:
    for path in (root / "masks").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: root.rename(root.with_name("moved")), "set is not a folder"),
        (lambda root: (root / "images").rename(root / "pictures"), "no folder images/"),
        (_no_images, "images holds no images"),
        (_no_masks, "masks holds no masks"),
        (lambda root: (root / "masks").rename(root / "labels"), "masks holds no masks"),
        (lambda root: (root / "images" / "a0.png").unlink(), r"masks/a0\.png has no image"),
        (lambda root: (root / "images" / "a0.jpg").touch(), r"a0\.png.* have the same name"),
        (lambda root: (root / "masks" / "bare.jpg").touch(), r"masks/bare\.jpg is no \.png"),
        (lambda root: (root / "classes.json").write_text("{"), r"classes\.json is not valid"),
        (lambda root: (root / "splits.json").write_text("{"), r"splits\.json is not valid"),
        (
            lambda root: (root / "splits.json").write_text(json.dumps({"draws": [["a0"]]})),
            r'splits\.json: "draws" is not known; "few_shot_draws" is',
        ),
    ],
    ids=[
        "no folder",
        "no images folder",
        "no images",
        "no masks",
        "no masks folder",
        "orphan mask",
        "duplicate stem",
        "jpeg mask",
        "classes",
        "splits",
        "misspelt splits",
    ],
)
def test_open_names_what_is_wrong(
    make_folder: MakeFolder, damage: Callable[[Path], object], said: str
) -> None:
    root = make_folder()
    damage(root)
    with pytest.raises(InputError, match=said) as caught:
        PartFolder.open(root)
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"few_shot_draws": [["absent"]]}, "'absent', which has no image"),
        ({"test": ["bare"]}, "'bare', which has no image with a mask"),
        ({"few_shot_draws": [["a0"]], "test": ["a0"]}, "'a0' in both .*test"),
        ({"train_pool": ["a0"], "val": ["a0"]}, "'a0' in both .*val"),
        ({"val": ["a0"], "test": ["a0"]}, "'a0' in both val and test"),
        ({"few_shot_draws": [["a0", "a0"]]}, "'a0' twice"),
        ({"few_shot_draws": ["a0"]}, "lists of image stems"),
        ({"few_shot_draws": 5}, "list of lists"),
        ({"val": [1]}, "lists of image stems"),
    ],
)
def test_bad_splits_are_named(make_folder: MakeFolder, content: Any, said: str) -> None:
    root = make_folder()
    (root / "splits.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=said) as caught:
        PartFolder.open(root)
    assert "splits.json" in str(caught.value)


@pytest.mark.parametrize(
    ("shots", "draw", "said"),
    [(9, 0, "9 shots.* only 8"), (1, 5, "draw 5 .*0..4"), (1, -1, "draw -1"), (0, 0, "at least 1")],
)
def test_few_shot_out_of_range(make_folder: MakeFolder, shots: int, draw: int, said: str) -> None:
    folder = PartFolder.open(make_folder())
    with pytest.raises(InputError, match=said):
        folder.few_shot(shots, draw)


def test_mask_must_fit_the_image_as_displayed(make_folder: MakeFolder) -> None:
    root = make_folder()
    with Image.open(root / "images" / "a0.png") as stored:
        exif = Image.Exif()
        exif[0x0112] = 8
        turned = stored.copy()
    turned.save(root / "images" / "a0.png", exif=exif)
    with pytest.raises(InputError, match=re.escape("16x20 (as displayed)")):
        PartFolder.open(root).mask("a0", 8)


def test_splits_that_are_named_must_be_there(make_folder: MakeFolder) -> None:
    root = make_folder()
    with pytest.raises(InputError, match=r"cannot read .*typo\.json"):
        PartFolder.open(root, splits=root / "typo.json")
