"""What the main job trains on."""

from pathlib import Path

from gpseg.data import PartFolder, load_images, write_drawn
from gpseg.evaluation.segment import training_set


def test_images_with_labels_in_use_are_not_among_the_unlabelled(tmp_path: Path) -> None:
    parts = PartFolder.open(write_drawn(tmp_path / "drawn", 16, 24, 3))
    stems = parts.few_shot(2, 0)
    training = training_set(parts, stems, 16, unlabelled=True)
    rest = [path for path in parts.seen_in_training if path.stem not in stems]
    assert len(rest) == len(parts.seen_in_training) - 2 > 3
    assert training.unlabelled[range(len(rest))].equal(load_images(rest, 16))
    assert len(training_set(parts, stems, 16, unlabelled=False).unlabelled) == 0
