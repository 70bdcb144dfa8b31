"""Differences and their intervals, against cases that can be worked out."""

import math

import pytest
import torch
from torch import Tensor

from gpseg.data import Classes, PartClass
from gpseg.evaluation.comparison import Interval, Term, contrast
from gpseg.evaluation.metrics import confusions, score


def difference(a: Tensor, b: Tensor) -> Interval:
    return contrast([Term(1, a), Term(-1, b)])


def two_classes(right: Tensor) -> Tensor:
    """Confusions [D, N, 2, 2] of images of 200 pixels, half of each class, of which so many are right, [D, N]."""
    wrong = 100 - right
    rows = [torch.stack([right, wrong], -1), torch.stack([wrong, right], -1)]
    return torch.stack(rows, -2)


def test_a_difference_is_that_of_the_mean_mious() -> None:
    classes = Classes((PartClass(0, "a", (0, 0, 0)), PartClass(1, "b", (1, 0, 0))))
    random = torch.Generator().manual_seed(0)
    target = torch.randint(2, (3, 4, 8, 8), generator=random)
    a, b = (torch.randint(2, (3, 4, 8, 8), generator=random) for _ in range(2))
    counts = [
        torch.stack([confusions(p, t, classes) for p, t in zip(x, target, strict=True)])
        for x in (a, b)
    ]
    mious = [
        sum(score(p, t, classes).miou for p, t in zip(x, target, strict=True)) / 3 for x in (a, b)
    ]
    found = difference(*counts)
    assert found.value == pytest.approx(mious[0] - mious[1])
    assert found.low <= found.value <= found.high
    assert (found.draws, found.images) == (3, 4)


def test_what_is_the_same_everywhere_has_no_width() -> None:
    a, b = two_classes(torch.full((3, 5), 90)), two_classes(torch.full((3, 5), 80))
    found = difference(a, b)
    assert found.low == pytest.approx(found.value) == pytest.approx(found.high)
    assert found.above_zero and not found.below_zero
    assert difference(b, a).below_zero


def test_images_that_are_hard_for_both_do_not_widen_a_paired_difference() -> None:
    random = torch.Generator().manual_seed(1)
    right = torch.randint(50, 90, (1, 60), generator=random).expand(4, -1)
    paired = difference(two_classes(right + 3), two_classes(right))
    shuffled = difference(two_classes(right + 3), two_classes(right.flip(1)))
    assert paired.above_zero
    assert paired.high - paired.low < 0.2 * (shuffled.high - shuffled.low)


def test_only_the_classes_asked_for_count() -> None:
    a = torch.tensor([[[[50, 0], [0, 50]]]])
    b = torch.tensor([[[[50, 0], [25, 25]]]])
    found = contrast([Term(1, a, [1]), Term(-1, b, [1])])
    assert found.value == pytest.approx(0.5)


def test_a_class_that_occurs_nowhere_is_left_out() -> None:
    a = torch.zeros(1, 2, 3, 3)
    a[..., 0, 0] = a[..., 1, 1] = 5
    assert contrast([Term(1, a)]).value == 1


@pytest.mark.parametrize(("draws", "least"), [(5, 0.82), (20, 0.9)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(draws: int, least: float) -> None:
    """Five draws are few for a percentile interval; it is somewhat too narrow then, as is known."""
    random = torch.Generator().manual_seed(2)
    inside = 0
    trials = 200
    # IoU of either class is right / (200 − right): of a whole population of draws and images, by integration.
    truth = miou_of_many(random)
    for _ in range(trials):
        found = contrast([Term(1, two_classes(sample(draws, 40, random)))], resamples=400)
        inside += found.low <= truth <= found.high
    assert least <= inside / trials <= 0.99


def sample(draws: int, images: int, random: torch.Generator) -> Tensor:
    """Right pixels [D, N]: an effect of the draw, one of the image, and of both together."""
    of_draw = 4 * torch.randn(draws, 1, generator=random)
    of_image = 6 * torch.randn(1, images, generator=random)
    of_both = 3 * torch.randn(draws, images, generator=random)
    return (70 + of_draw + of_image + of_both).clamp(0, 100)


def miou_of_many(random: torch.Generator) -> float:
    right = sample(4000, 2000, random).mean(1)
    truth = (right / (200 - right)).mean().item()
    assert math.isfinite(truth)
    return truth
