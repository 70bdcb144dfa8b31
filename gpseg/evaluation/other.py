"""Another collection of the same kind of images, whose masks may tell fewer parts apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpseg.data import Classes, PartFolder, Reading
from gpseg.errors import InputError
from gpseg.evaluation.results import Held, Split, load_held

OTHER = "other"
"""Kind of its images, beside the kinds of `gpseg.evaluation.jitter`."""


@dataclass(frozen=True)
class OtherCollection:
    """A data set that nothing is trained on, and how masks of a model's classes are read in its own.

    Args:
        parts: the data set.
        stems: the images to score on.
        reading: from the model's classes to its own.
    """

    parts: PartFolder
    stems: list[str]
    reading: Reading

    @classmethod
    def open(cls, folder: Path, classes: Classes, split: Split) -> OtherCollection:
        """Open a collection.

        Args:
            folder: a data-set folder. In its classes.json `"of"` names the model's classes that a class takes in; without it
                that is the one of the same name. All labelled images are scored on if it has no splits.json.
            classes: the model's.
            split: which images are scored on.

        Returns:
            The collection.

        Raises:
            InputError: the folder can't be used, holds no such images, or says nothing of one of the model's classes.
        """
        if not (folder / "classes.json").exists():
            raise InputError(
                f'{folder}: has no classes.json; write one that says what its classes are made of, as in "of": '
                f'["{classes.names[-1]}"]; the model has {", ".join(classes.names)}'
            )
        parts = PartFolder.open(folder)
        reading = Reading.load(folder / "classes.json", classes)
        if reading.ignored:
            raise InputError(
                f"{folder / 'classes.json'}: {', '.join(reading.ignored)} of the model is in none of its classes; add "
                'each to an "of"'
            )
        splits = parts.splits
        stems = splits.val if split == "val" else splits.test
        if not (folder / "splits.json").exists():
            stems = parts.labelled
        if not stems:
            raise InputError(f"{folder}: holds no {split} images; name them in its splits.json")
        return cls(parts, stems, reading)

    @property
    def classes(self) -> Classes:
        """Its own classes."""
        return self.reading.classes

    def held(self, resolution: int) -> Held:
        """Read the images and masks that are scored on, fitted to a square."""
        return load_held(self.parts, self.stems, resolution)
