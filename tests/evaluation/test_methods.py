"""Every method trains on a small task and predicts; controls differ from ours in the one thing they are named for."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from gpseg.data import PartFolder, write_drawn
from gpseg.evaluation.methods import FLOOR, METHODS, OURS, Majority, Task, masks_of
from gpseg.evaluation.metrics import majority_score, score
from gpseg.evaluation.results import load_held
from gpseg.evaluation.segment import training_set
from gpseg.models.segmenter import READOUTS, Segmenter
from gpseg.models.stylegan2 import NetworkConfig
from gpseg.training.finetune_config import FinetuneConfig

NETWORK = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=2)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("task")
    parts = PartFolder.open(write_drawn(folder / "faces", 16, labelled=16, unlabelled=4))
    torch.manual_seed(0)
    return Task(
        training=training_set(parts, parts.few_shot(2, 0), 16, unlabelled=True),
        val=load_held(parts, parts.splits.val, 16),
        generator=NETWORK.generator(),
        discriminator=NETWORK.discriminator(),
        network=NETWORK,
        tuning=FinetuneConfig(steps=2, labelled_batch=2, unlabelled_batch=2, precision="fp32"),
        rival_steps=2,
        device="cpu",
        folder=folder,
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_predicts(name: str, task: Task, tmp_path: Path) -> None:
    task = dataclasses.replace(task, folder=tmp_path / "logs")
    predictor = METHODS[name].train(task)
    images = task.training.images
    probabilities = predictor.probabilities(images)
    assert probabilities.shape == (2, task.training.classes.num_classes, 16, 16)
    assert torch.allclose(probabilities.sum(1), torch.ones(2, 16, 16), atol=1e-3)
    masks = masks_of(name, predictor, images)
    assert masks[name].equal(probabilities.argmax(1).to(torch.uint8))
    kind = METHODS[name].kind
    ours = kind in ("ours", "control")
    read_outs = {f"{name}-{r}" for r in READOUTS if r != "fusion"} if ours else set()
    read_outs |= {f"{name}-no-flip"} if kind == "ours" else set()
    assert masks.keys() == {name} | read_outs


def test_a_control_changes_what_it_is_named_for(task: Task, tmp_path: Path) -> None:
    def trained(name: str) -> Segmenter:
        predictor = METHODS[name].train(dataclasses.replace(task, folder=tmp_path / name))
        assert isinstance(predictor, Segmenter)
        return predictor

    ours, again = (
        trained(OURS),
        METHODS[OURS].train(dataclasses.replace(task, folder=tmp_path / "again")),
    )
    assert ours.probabilities(task.val.images).equal(again.probabilities(task.val.images))
    assert ours.model.crossings is not None
    controls = [name for name, method in METHODS.items() if method.kind == "control"]
    found = {name: trained(name) for name in controls}
    crosses = {name for name, control in found.items() if control.model.crossings is not None}
    assert crosses == {*controls} - {"one-stream", "no-crossing"}
    seen = [segmenter.probabilities(task.val.images) for segmenter in (ours, *found.values())]
    for first, second in itertools.combinations(seen, 2):
        assert not first.equal(second)


def test_rivals_too_take_the_mean_with_the_mirror_image(task: Task) -> None:
    classes = dataclasses.replace(task.training.classes, swap=((1, 2),))
    training = dataclasses.replace(task.training, classes=classes)
    unet = METHODS["unet"].train(dataclasses.replace(task, training=training))
    images = task.val.images
    probabilities = unet.probabilities(images)
    mirrored = unet.probabilities(images.flip(3)).flip(3)
    torch.testing.assert_close(mirrored[:, 1], probabilities[:, 2])
    torch.testing.assert_close(mirrored[:, 0], probabilities[:, 0])
    assert not torch.allclose(mirrored[:, 1], probabilities[:, 1])


def test_the_floor_scores_as_the_majority_mask(task: Task) -> None:
    training, val = task.training, task.val
    floor = Majority(training.masks, training.classes)
    masks = masks_of(FLOOR, floor, val.images)[FLOOR]
    expected = majority_score(training.masks, val.masks, training.classes)
    assert score(masks, val.masks, training.classes).miou == expected.miou
