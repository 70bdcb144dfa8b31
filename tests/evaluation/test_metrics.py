import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpseg.data import Classes, PartClass
from gpseg.errors import InputError
from gpseg.evaluation.metrics import finite, majority_mask, majority_score, percent, score

CLASSES = Classes(tuple(PartClass(i, name, (i, 0, 0)) for i, name in enumerate("abcd")))


def ids(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([rows], dtype=torch.uint8)


def test_score_by_hand_with_ignored_pixels_and_an_absent_class() -> None:
    predicted = ids([[0, 1, 1], [2, 2, 0]])
    target = ids([[0, 1, 2], [2, 255, 255]])
    result = score(predicted, target, CLASSES)
    assert result.per_class["a"] == 1
    assert result.per_class["b"] == 0.5
    assert result.per_class["c"] == 0.5
    assert math.isnan(result.per_class["d"])
    assert result.miou == pytest.approx(2 / 3)


def test_score_pools_over_images_before_it_divides() -> None:
    predicted = torch.tensor([[[1, 0]], [[1, 1]]])
    target = torch.tensor([[[1, 1]], [[1, 1]]])
    assert score(predicted, target, CLASSES).per_class["b"] == 0.75


def test_score_of_a_class_that_is_only_predicted_is_0() -> None:
    result = score(ids([[0, 3]]), ids([[0, 0]]), CLASSES)
    assert result.per_class["d"] == 0
    assert result.miou == pytest.approx(0.25)


def test_score_without_labels_is_nan() -> None:
    assert math.isnan(score(ids([[0, 3]]), ids([[255, 255]]), CLASSES).miou)


def test_score_refuses_other_shapes() -> None:
    with pytest.raises(InputError, match=r"\[1, 1, 2\].*\[1, 2, 1\]"):
        score(ids([[0, 3]]), ids([[0], [0]]), CLASSES)


@pytest.mark.parametrize(("predicted", "target"), [(4, 0), (0, 4), (255, 0)])
def test_score_refuses_ids_of_no_class(predicted: int, target: int) -> None:
    with pytest.raises(InputError, match="4 classes: ids must be 0 to 3, or 255"):
        score(ids([[0, predicted]]), ids([[0, target]]), CLASSES)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3))
def test_score_agrees_with_sets_of_pixels(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.randint(4, (count, 3, 4), generator=generator)
    target = torch.randint(5, (count, 3, 4), generator=generator)
    target[target == 4] = 255
    result = score(predicted, target, CLASSES)
    valid = target != 255
    for index, name in enumerate("abcd"):
        there, found = (target == index) & valid, (predicted == index) & valid
        union = (there | found).sum().item()
        if union:
            assert result.per_class[name] == pytest.approx((there & found).sum().item() / union)
        else:
            assert math.isnan(result.per_class[name])


def test_majority_mask_votes_breaks_ties_low_and_leaves_ignored_out() -> None:
    masks = torch.tensor([[[1, 2, 255, 3]], [[1, 1, 255, 255]], [[0, 255, 255, 255]]])
    assert majority_mask(masks, 4).tolist() == [[1, 1, 0, 3]]


def test_majority_score_is_that_of_one_mask_for_all() -> None:
    train = torch.tensor([[[1, 1]], [[1, 0]], [[1, 0]]])
    target = torch.tensor([[[1, 0]], [[1, 1]]])
    result = majority_score(train, target, CLASSES)
    assert result.per_class["b"] == pytest.approx(2 / 3)
    assert result.per_class["a"] == pytest.approx(1 / 2)


def test_percent() -> None:
    assert percent(0.61234) == "61.2"
    assert percent(math.nan) == "-"


def test_json_has_no_nan() -> None:
    assert finite(0.25) == finite(torch.tensor(0.25)) == 0.25
    assert finite(float("nan")) is None and finite(torch.tensor(torch.inf)) is None
