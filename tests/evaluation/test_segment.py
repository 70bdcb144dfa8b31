"""What the main job trains on."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from gpseg.data import PartFolder, draw_face, load_images, write_drawn
from gpseg.errors import InputError
from gpseg.evaluation.segment import (
    TrainConfig,
    find_generator,
    train_segmenter,
    training_set,
)
from gpseg.models.checkpoint import SHIPPED_GENERATOR, load_generator
from gpseg.training.finetune_config import FinetuneConfig
from gpseg.training.quality import Quality, generated_images
from gpseg.training.run_folder import RunFolder


def test_images_with_labels_in_use_are_not_among_the_unlabelled(tmp_path: Path) -> None:
    parts = PartFolder.open(write_drawn(tmp_path / "drawn", 16, 24, 3))
    stems = parts.few_shot(2, 0)
    training = training_set(parts, stems, 16, unlabelled=True)
    rest = [path for path in parts.seen_in_training if path.stem not in stems]
    assert len(rest) == len(parts.seen_in_training) - 2 > 3
    assert training.unlabelled[range(len(rest))].equal(load_images(rest, 16))
    assert len(training_set(parts, stems, 16, unlabelled=False).unlabelled) == 0


def test_the_packages_own_faces_have_a_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = PartFolder.open(write_drawn(tmp_path / "drawn", 16, 24, 3))
    for resolution in (None, 64):
        assert find_generator(TrainConfig(resolution=resolution), parts) == SHIPPED_GENERATOR
    given = tmp_path / "mine.safetensors"
    assert find_generator(TrainConfig(generator=given), parts) == given
    pretrained = tmp_path / "runs" / "generator.safetensors"
    monkeypatch.setattr("gpseg.evaluation.segment._pretrained", lambda *_: pretrained)
    for config in (TrainConfig(resolution=16), TrainConfig(data=parts.root)):
        assert find_generator(config, parts) == pretrained


def test_the_packages_generator_makes_what_the_package_draws() -> None:
    assert SHIPPED_GENERATOR.stat().st_size <= 4_000_000
    generator, _, network, _ = load_generator(SHIPPED_GENERATOR)
    assert network.img_resolution == 64
    drawn = torch.stack([draw_face(1, i, 64)[0] for i in range(300)])
    quality = Quality(drawn.split(100))
    made = quality.measure(generated_images(generator, 300, 50))
    # Grey copies of the drawn faces are at 127 and 6.3, after 5 thousand images it was at 364 and 11.
    assert made["swd"] < 90
    assert made["frechet_8"] < 4.5


def test_a_run_to_continue_is_compared_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpseg.evaluation.segment._prepare", lambda *_: pytest.fail("worked"))
    config = TrainConfig(out=tmp_path / "run", tuning=FinetuneConfig(steps=7))
    RunFolder.open(config.out, "train", dataclasses.asdict(config)).close()
    forgotten = dataclasses.replace(config, resume=True, tuning=FinetuneConfig())
    with pytest.raises(InputError, match="that run has steps = 7, not 750; give"):
        train_segmenter(forgotten)


@pytest.mark.parametrize("name", ["pretrain_kimg", "rank_timeout"])
def test_numbers_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} nan: give a number above 0"):
        TrainConfig(**{name: math.nan}).check()  # type: ignore[arg-type]
