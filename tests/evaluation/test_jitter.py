"""Test images are changed as said, the same way for everybody, and masks only where images move."""

import pytest
import torch

from gpseg.evaluation.jitter import KINDS, jittered
from gpseg.evaluation.results import Held

IGNORED = 255


def held(count: int = 3, side: int = 32) -> Held:
    """Pictures with a bright red square of class 1 on a dark ground."""
    images = torch.full((count, 3, side, side), 40, dtype=torch.uint8)
    masks = torch.zeros(count, side, side, dtype=torch.uint8)
    images[:, 0, 10:22, 10:22] = 220
    masks[:, 10:22, 10:22] = 1
    return Held([f"image{i}" for i in range(count)], images, masks)


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_and_a_seed_decide(kind: str) -> None:
    whole = held()
    found = jittered(whole, kind, 0, IGNORED)
    last = Held(whole.stems[2:], whole.images[2:], whole.masks[2:])
    alone = jittered(last, kind, 0, IGNORED)
    assert found.images[2:].equal(alone.images) and found.masks[2:].equal(alone.masks)
    assert found.images.shape == whole.images.shape and found.images.dtype == torch.uint8
    assert not found.images.equal(whole.images)
    if kind in ("similarity", "noise"):
        assert not found.images[0].equal(found.images[1])
        assert not found.images.equal(jittered(whole, kind, 1, IGNORED).images)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "similarity"])
def test_only_what_moves_changes_masks(kind: str) -> None:
    assert jittered(held(), kind, 0, IGNORED).masks.equal(held().masks)


def test_masks_move_with_their_images() -> None:
    found = jittered(held(20), "similarity", 0, IGNORED)
    bright = found.images[:, 0] > 130
    labelled = found.masks != IGNORED
    assert (bright & labelled).equal((found.masks == 1) & labelled) or (
        ((bright != (found.masks == 1)) & labelled).float().mean() < 0.01
    )
    sizes = (found.masks == 1).flatten(1).sum(1) / 144
    assert 0.55 < sizes.min() < 0.85 and 1.2 < sizes.max() < 1.65  # 1.25² and its inverse
    assert {*found.masks.unique().tolist()} == {0, 1, IGNORED}
    # What comes from beyond the edge goes on as the edge is, which is dark here.
    assert found.images[:, 0][found.masks == IGNORED].eq(40).all()


def test_how_strong_the_others_are() -> None:
    whole = held(40)
    noise = jittered(whole, "noise", 0, IGNORED).images.float() - whole.images
    assert noise[:, 0, 10:22, 10:22].std() == pytest.approx(20, rel=0.1)
    grey = jittered(whole, "grey", 0, IGNORED).images
    assert grey[:, 0].equal(grey[:, 1]) and grey[:, 0].equal(grey[:, 2])
    edge = jittered(held(1, 64), "blur", 0, IGNORED).images[0, 0, 15].int()
    assert 40 < edge[9] < edge[10] < 220
    block = jittered(whole, "JPEG", 0, IGNORED).images[0].int() - whole.images[0].int()
    assert 1 < block.abs().float().mean() < 40


def test_no_images_stay_none() -> None:
    assert jittered(held(0), "similarity", 0, IGNORED).stems == []
