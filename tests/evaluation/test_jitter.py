"""Test images are changed as said, the same way for everybody, and masks only where images move."""

import pytest
import torch

from gpseg.data.augment import PairAugment
from gpseg.evaluation import jitter
from gpseg.evaluation.jitter import ELSEWHERE, KINDS, jittered
from gpseg.evaluation.results import Held

IGNORED = 255
RANDOM = {"similarity", "noise", *(name for name, kind in KINDS.items() if kind.foreign)}
MOVING = {"similarity", "framing", ELSEWHERE}


def held(count: int = 3, side: int = 32, square: slice = slice(10, 22)) -> Held:
    """Pictures with a bright red square of class 1 on a dark ground."""
    images = torch.full((count, 3, side, side), 40, dtype=torch.uint8)
    masks = torch.zeros(count, side, side, dtype=torch.uint8)
    images[:, 0, square, square] = 220
    masks[:, square, square] = 1
    return Held([f"image{i}" for i in range(count)], images, masks)


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_and_a_seed_decide(kind: str) -> None:
    whole = held()
    found = jittered(whole, kind, 0, IGNORED)
    last = Held(whole.stems[2:], whole.images[2:], whole.masks[2:])
    alone = jittered(last, kind, 0, IGNORED)
    assert found.images[2:].equal(alone.images) and found.masks[2:].equal(alone.masks)
    assert found.images.shape == whole.images.shape and found.images.dtype == torch.uint8
    assert found.masks.shape == whole.masks.shape and found.masks.dtype == torch.uint8
    assert not found.images.equal(whole.images)
    differ = not found.images[0].equal(found.images[1])
    other_seed = not found.images.equal(jittered(whole, kind, 1, IGNORED).images)
    assert differ == other_seed == (kind in RANDOM)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_moves_changes_masks(kind: str) -> None:
    same = jittered(held(), kind, 0, IGNORED).masks.equal(held().masks)
    assert same == (kind not in MOVING)


@pytest.mark.parametrize("only", [0, 1, IGNORED])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_a_single_value(kind: str, only: int) -> None:
    """Whether all is background, there is none, or all is ignored."""
    whole = held(2)
    found = jittered(Held(whole.stems, whole.images, whole.masks.fill_(only)), kind, 0, IGNORED)
    assert {*found.masks.unique().tolist()} <= {only, IGNORED}
    if kind == "background":
        assert found.images.equal(whole.images) == (only != 0)


@pytest.mark.parametrize(
    ("kind", "scale", "turned"), [("similarity", 1.25, 20), ("framing", 1.6, 40)]
)
def test_masks_move_with_their_images(kind: str, scale: float, turned: float) -> None:
    whole = held(60, 64, slice(20, 44))
    found = jittered(whole, kind, 0, IGNORED)
    bright, square = found.images[:, 0] > 130, found.masks == 1
    labelled = found.masks != IGNORED
    assert ((bright != square) & labelled).float().mean() < 0.01
    edges = (square[:, 0], square[:, -1], square[..., 0], square[..., -1])
    inside = ~torch.stack(edges).any(0).any(1)
    sizes = square[inside].flatten(1).sum(1) / 24**2
    assert scale**-2 * 0.95 < sizes.min() < scale**-1.4
    assert scale**1.4 < sizes.max() < scale**2 * 1.05
    # A square turned by an angle is wider by cos + sin.
    wide = square[inside].any(1).sum(1) / (24 * sizes.sqrt())
    angle = torch.tensor(turned).deg2rad()
    assert 0.95 * (angle.cos() + angle.sin()) < wide.max() < 1.08 * (angle.cos() + angle.sin())
    assert {*found.masks.unique().tolist()} == {0, 1, IGNORED}
    # What comes from beyond the edge goes on as the edge is, which is dark here.
    assert found.images[:, 0][found.masks == IGNORED].eq(40).all()


def test_how_strong_damages_are() -> None:
    whole = held(40)
    noise = jittered(whole, "noise", 0, IGNORED).images.float() - whole.images
    assert noise[:, 0, 10:22, 10:22].std() == pytest.approx(20, rel=0.1)
    grey = jittered(whole, "grey", 0, IGNORED).images
    assert grey[:, 0].equal(grey[:, 1]) and grey[:, 0].equal(grey[:, 2])
    edge = jittered(held(1, 64), "blur", 0, IGNORED).images[0, 0, 15].int()
    assert 40 < edge[9] < edge[10] < 220
    block = jittered(whole, "JPEG", 0, IGNORED).images[0].int() - whole.images[0].int()
    assert 1 < block.abs().float().mean() < 40


@pytest.mark.parametrize("side", [16, 64])
def test_light_comes_from_one_side(side: int) -> None:
    """Of an even grey: a plane of logarithms, steep, in any direction, about a middle dark or bright."""
    even = torch.full((40, 3, side, side), 100, dtype=torch.uint8)
    masks = torch.zeros(40, side, side, dtype=torch.uint8)
    found = jittered(Held([str(i) for i in range(40)], even, masks), "light", 0, IGNORED).images
    assert found[:, 0].equal(found[:, 1]) and found[:, 0].equal(found[:, 2])
    whole = found[found.flatten(1).max(1).values < 255][:, 0].double()
    assert len(whole) > 10
    stops = whole.log2()
    slopes = [stops[:, -1, :].mean(1) - stops[:, 0, :].mean(1)]
    slopes.append(stops[:, :, -1].mean(1) - stops[:, :, 0].mean(1))
    steep = torch.hypot(*slopes) / 2
    assert steep.min() > jitter.STOPS / 2 * 0.95 and steep.max() < jitter.STOPS * 1.05
    assert all(slope.min() < -0.5 and slope.max() > 0.5 for slope in slopes)
    middles = stops.mean((1, 2)) - torch.tensor(100.0).log2()
    assert middles.abs().min() > 0.2 and middles.min() < -0.3 < 0.2 < middles.max()


def test_colours_go_beyond_what_training_meets() -> None:
    assert PairAugment.hue < jitter.HUE / 2 and PairAugment.saturation < jitter.SATURATION
    whole = held(60)
    whole.images[:] = torch.tensor([150, 110, 90], dtype=torch.uint8)[:, None, None]
    found = jittered(whole, "colour", 0, IGNORED).images
    assert found.flatten(2).float().std(2).max() == 0  # no place is changed otherwise than another
    colours = found[:, :, 0, 0].float()
    spread = colours.amax(1) - colours.amin(1)
    assert spread.min() < 30 and spread.max() > 120
    assert {*colours.argmax(1).tolist()} == {0, 1, 2}


@pytest.mark.parametrize("side", [32, 64])
def test_only_the_background_gives_way(side: int) -> None:
    whole = held(30, side)
    whole.masks[:, :4] = IGNORED
    found = jittered(whole, "background", 0, IGNORED)
    changed = (found.images != whole.images).any(1)
    assert not changed[:, 11:21, 11:21].any() and not changed[:, :4].any()
    away = whole.masks == 0
    away[:, 9:23, 9:23] = away[:, :6] = False
    assert changed[away].float().mean() > 0.95
    backgrounds = found.images[:, :, 24:].float()
    assert backgrounds.flatten(1).mean(1).std() > 20  # other colours in every picture
    assert backgrounds.flatten(2).std(2).amax(1).median() > 20  # and patterns within most


def test_edges_before_another_background_are_soft() -> None:
    bright = held(30)
    bright.images[:] = 255
    found = jittered(bright, "background", 0, IGNORED).images.float().mean(1)
    outside, edge, inside = (found[:, 16, column].mean() for column in (7, 10, 11))
    assert inside == 255 and outside < 180
    assert edge == pytest.approx((3 * 255 + outside) / 4, abs=12)


def test_elsewhere_is_all_of_it() -> None:
    found = jittered(held(30, 64), ELSEWHERE, 0, IGNORED)
    assert {*found.masks.unique().tolist()} == {0, 1, IGNORED}
    sizes = (found.masks == 1).flatten(1).sum(1) / 144
    assert sizes.min() < 0.6 and sizes.max() > 1.7
    ground = found.images.float().permute(0, 2, 3, 1)[found.masks == 0]
    assert ground.std(0).min() > 30


def test_no_images_stay_none() -> None:
    assert jittered(held(0), "similarity", 0, IGNORED).stems == []
