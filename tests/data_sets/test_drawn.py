"""The drawn faces: the same everywhere, varied, and written whole or not at all."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpseg.data import DRAWN_CLASSES, PartFolder, draw_face, write_drawn
from gpseg.data.drawn import canvas, data_set
from gpseg.errors import InputError, RunError


def _masks(seed: int, indices: range, resolution: int = 64) -> torch.Tensor:
    return torch.stack([draw_face(seed, index, resolution)[1] for index in indices])


def test_a_face_depends_on_seed_and_index_only() -> None:
    image, mask = draw_face(3, 7, 64)
    draw_face(3, 8, 64)
    again, again_mask = draw_face(3, 7, 64)
    assert image.equal(again)
    assert mask.equal(again_mask)
    assert not image.equal(draw_face(3, 8, 64)[0])
    assert not image.equal(draw_face(4, 7, 64)[0])


@pytest.mark.parametrize("resolution", [16, 48, 64, 256])
def test_any_resolution_shows_the_same_face(resolution: int) -> None:
    image, mask = draw_face(1, 5, resolution)
    assert image.shape == (3, resolution, resolution)
    assert mask.shape == (resolution, resolution)
    assert image.dtype == mask.dtype == torch.uint8
    reference = draw_face(1, 5, 128)[0].float()
    small = torch.nn.functional.interpolate(reference[None], (16, 16), mode="area")
    same = torch.nn.functional.interpolate(image.float()[None], (16, 16), mode="area")
    assert (small - same).abs().mean() < 6
    other = draw_face(1, 6, resolution)[0].float()[None]
    different = torch.nn.functional.interpolate(other, (16, 16), mode="area")
    assert (small - different).abs().mean() > 20


def test_every_class_is_there_and_no_other() -> None:
    masks = _masks(0, range(60))
    assert masks.max() == DRAWN_CLASSES.num_classes - 1
    shows = torch.stack(
        [(masks == part).flatten(1).any(dim=1) for part in range(DRAWN_CLASSES.num_classes)]
    ).float()
    # Skin, hair, nose and mouth may be hidden by a hand, a hat or sunglasses, but seldom.
    assert (shows.mean(dim=1) > 0.75).all()


def test_the_mask_tells_what_is_in_the_picture() -> None:
    """Within an image, a part's colours lie nearer to their own mean than to the next part's."""
    better = []
    for index in range(20):
        image, mask = draw_face(2, index, 64)
        hair, skin = (image[:, mask == part].float() for part in (canvas.HAIR, canvas.SKIN))
        if min(hair.shape[1], skin.shape[1]) < 40:
            continue
        between = (hair.mean(dim=1) - skin.mean(dim=1)).norm()
        shuffled = torch.cat([hair, skin], dim=1)
        order = torch.randperm(shuffled.shape[1], generator=torch.Generator().manual_seed(index))
        halves = shuffled[:, order].split(hair.shape[1], dim=1)
        better.append(bool(between > 2 * (halves[0].mean(dim=1) - halves[1].mean(dim=1)).norm()))
    assert sum(better) >= 0.9 * len(better)


def test_the_majority_mask_does_badly() -> None:
    """The floor of the data set: five masks' majority, scored on a hundred other faces."""
    count = DRAWN_CLASSES.num_classes
    votes = torch.nn.functional.one_hot(_masks(0, range(5)).long(), count).sum(dim=0)
    test = _masks(0, range(100, 200)).long()
    guess = votes.argmax(dim=-1).expand_as(test)
    ious = [
        ((guess == part) & (test == part)).sum() / ((guess == part) | (test == part)).sum()
        for part in range(count)
    ]
    assert torch.stack(ious).mean() < 0.3


def test_write_drawn_makes_a_data_set(tmp_path: Path) -> None:
    root = write_drawn(tmp_path / "deep" / "drawn", 16, labelled=40, unlabelled=3, seed=5)
    folder = PartFolder.open(root)
    assert folder.classes == DRAWN_CLASSES
    assert len(folder.labelled) == 40
    assert len(folder.unlabelled) == 3
    splits = folder.splits
    assert [len(draw) for draw in splits.draws] == [10] * 5
    assert len({tuple(draw) for draw in splits.draws}) == 5
    assert [len(part) for part in (splits.train_pool, splits.val, splits.test)] == [12, 6, 22]
    folder.check(folder.labelled)
    image, mask = draw_face(5, 11, 16)
    assert folder.image("drawn_00011", 16).equal(image)
    assert folder.mask("drawn_00011", 16).equal(mask)
    with Image.open(folder.unlabelled[0]) as unlabelled:
        first = np.asarray(unlabelled).transpose(2, 0, 1)
    assert (first == draw_face(5, 40, 16)[0].numpy()).all()


def test_writing_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_drawn(tmp_path / "drawn", 16, labelled=4, unlabelled=0)
    monkeypatch.setattr(data_set, "draw_face", None)
    assert write_drawn(root, 16, labelled=4, unlabelled=0) == root
    with pytest.raises(InputError, match="holds other data"):
        write_drawn(root, 16, labelled=5, unlabelled=0)
    assert json.loads((root / "drawn.json").read_text())["labelled"] == 4


def test_of_two_that_write_at_once_both_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, save = tmp_path / "drawn", data_set.write_json

    def later(path: Path, content: dict[str, int]) -> None:
        save(path, content)
        shutil.copytree(path.parent, root)  # as the other one leaves it

    monkeypatch.setattr(data_set, "write_json", later)
    assert write_drawn(root, 16, labelled=3, unlabelled=1) == root
    assert PartFolder.open(root).labelled and [*tmp_path.iterdir()] == [root]


def test_smallest_set_has_every_split(tmp_path: Path) -> None:
    splits = PartFolder.open(write_drawn(tmp_path / "drawn", 16, 3, 0)).splits
    assert [len(part) for part in (splits.train_pool, splits.val, splits.test)] == [1, 1, 1]
    with pytest.raises(InputError, match="at least 3"):
        write_drawn(tmp_path / "fewer", 16, 2, 0)


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(28, "No space left on device"), RunError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_failure_leaves_nothing_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[BaseException],
) -> None:
    original = draw_face

    def fail_late(seed: int, index: int, resolution: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index == 3:
            raise failure
        return original(seed, index, resolution)

    monkeypatch.setattr(data_set, "draw_face", fail_late)
    with pytest.raises(raised):
        write_drawn(tmp_path / "drawn", 16, labelled=4, unlabelled=0)
    assert list(tmp_path.iterdir()) == []
