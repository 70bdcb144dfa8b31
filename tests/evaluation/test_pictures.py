import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gpseg.data import Classes, PartClass
from gpseg.evaluation.metrics import majority_score, score
from gpseg.evaluation.pictures import (
    FLOOR,
    IGNORED,
    RIGHT,
    WRONG,
    colour_mask,
    error_map,
    telling_examples,
    training_report,
)
from gpseg.evaluation.report import Report
from gpseg.evaluation.results import Held, Result
from gpseg.models.segmenter import READOUTS, Outputs
from gpseg.training.batches import TrainingSet
from gpseg.training.run_folder import RunFolder

CLASSES = Classes((PartClass(0, "background", (1, 2, 3)), PartClass(1, "part", (250, 0, 9))))
PALETTE = torch.tensor([[-1.0, -1, -1], [1, 1, 1]])


def test_colour_mask() -> None:
    picture = colour_mask(torch.tensor([[0, 1, 255]], dtype=torch.uint8), CLASSES)
    assert picture.dtype == torch.uint8
    assert picture[:, 0].T.tolist() == [[1, 2, 3], [250, 0, 9], list(IGNORED)]


def test_error_map() -> None:
    predicted, target = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 255]])
    picture = error_map(predicted, target, CLASSES)
    assert picture[:, 0].T.tolist() == [list(RIGHT), list(WRONG), list(IGNORED)]


def graded(count: int) -> tuple[Tensor, Tensor]:
    """Masks of 1 x 10 pixels, all 1; image i is predicted with i pixels right."""
    target = torch.ones(count, 1, 10, dtype=torch.uint8)
    return (torch.arange(10) < torch.arange(count)[:, None, None]).to(torch.uint8), target


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, [("test", 0)]),
        (2, [("test", 0), ("test", 1)]),
        (3, [("worst", 0), ("worst", 1), ("best", 2)]),
        (10, [("worst", 0), ("worst", 1), ("median", 4), ("median", 5), ("best", 8), ("best", 9)]),
    ],
)
def test_telling_examples(count: int, expected: list[tuple[str, int]]) -> None:
    found = telling_examples(*graded(count), CLASSES)
    assert [(label, index) for label, index, _ in found] == expected


def test_telling_examples_leave_out_images_without_labels() -> None:
    predicted, target = graded(4)
    target[1] = 255
    assert 1 not in [index for _, index, _ in telling_examples(predicted, target, CLASSES)]


class Constant:
    """Stands in for a segmenter: predicts the part everywhere."""

    classes = CLASSES
    readout = "palette"
    resolution = 16
    model = SimpleNamespace(palette=PALETTE)

    def outputs(self, images: Tensor, *, flip: bool = True) -> Outputs:
        flat = torch.zeros(len(images), 3, 16, 16)
        probabilities = torch.stack([flat[:, 0], flat[:, 0] + 1], 1)
        return Outputs(flat, flat + 1, dict.fromkeys(READOUTS, probabilities))


def report_of(tmp_path: Path, tested: int) -> Report:
    images = torch.full((6, 3, 16, 16), 255, dtype=torch.uint8)
    masks = torch.ones(6, 16, 16, dtype=torch.uint8)
    masks[:, :8] = 0
    training = TrainingSet(images, masks, images[:0], CLASSES)
    test = Held([f"face{i}" for i in range(tested)], images[:tested], masks[:tested])
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    floor = majority_score(masks, test.masks, CLASSES) if tested else None
    own = score(torch.ones_like(test.masks), test.masks, CLASSES) if tested else None
    readouts = dict.fromkeys(READOUTS, own) if own else None
    result = Result(tmp_path, "palette", readouts, floor, {})
    return training_report(
        result,
        RunFolder(tmp_path),
        Constant(),  # type: ignore[arg-type]
        training,
        test,
        {"data": "faces", "shots": 6},
    )


def test_training_report_with_test_images(tmp_path: Path) -> None:
    report = report_of(tmp_path, tested=5)
    assert report.title == "Part segmentation from 6 labelled images"
    assert list(report.scores) == [*(f"{name} read-out" for name in READOUTS), FLOOR]
    assert (report.chosen, report.floor) == ("palette read-out", FLOOR)
    assert report.curves == [{"step": 1, "loss": 1.0}]
    assert report.notes == []
    first = report.examples[0]
    assert (first.label, first.name) == ("worst", "face0")
    assert first.miou == pytest.approx(0.25)
    assert list(first.pictures) == [
        *("input", "target", "prediction", "errors", "image stream", "segmentation stream")
    ]
    assert first.pictures["prediction"][:, 0, 0].tolist() == [250, 0, 9]
    assert first.pictures["errors"][:, 0, 0].tolist() == list(WRONG)
    assert first.pictures["segmentation stream"].unique().tolist() == [255]


def test_training_report_ramp_goes_from_image_to_palette(tmp_path: Path) -> None:
    ramp = report_of(tmp_path, tested=5).ramp
    assert [a for a, _ in ramp] == [0, 0.25, 0.5, 0.75, 1]
    # A background pixel of a white image goes to the palette's black.
    assert [picture[0, 0, 0].item() for _, picture in ramp] == pytest.approx(
        [255, 191, 128, 64, 0], abs=1
    )


def test_training_report_without_test_images_says_so(tmp_path: Path) -> None:
    report = report_of(tmp_path, tested=0)
    assert report.scores == {}
    assert report.chosen is None
    assert "no test images" in report.notes[0]
    assert {example.label for example in report.examples} == {"training"}
    assert len(report.examples) == 4
