"""The page of a pre-training run: its latest images, how they came to be, and the curves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gpseg.evaluation.report import Report, write_report
from gpseg.training.run_folder import RunFolder
from gpseg.training.trainer import GRID

_HISTORY = 6  # snapshots shown of the run, the first and the last among them
_TITLES = {
    "psi0.7": "truncation psi 0.7: less variety, as a rule cleaner",
    "psi1.0": "no truncation: what the generator has learned",
}
_SAMPLE = re.compile(r"(\d+)-(psi.+)\.png")


def write_progress(folder: RunFolder) -> Path:
    """Write the page of a pre-training run, from what lies in its folder.

    Args:
        folder: the run's folder, with at least one snapshot.

    Returns:
        The page, report.html in the folder.

    Raises:
        RunError: if the disk is full.
    """
    config = json.loads((folder.path / "config.json").read_text())
    samples: dict[str, dict[int, Path]] = {name: {} for name in _TITLES}
    for path in sorted((folder.path / "samples").glob("*.png")):
        found = _SAMPLE.fullmatch(path.name)
        if found and found[2] in samples:
            samples[found[2]][int(found[1])] = path
    snapshots = samples["psi1.0"]
    last = max(snapshots, default=0)
    path = folder.path / "report.html"
    write_report(
        path,
        Report(
            title="Pre-training of a generator",
            lead=(
                f"{config.get('data') or 'drawn faces'}; after {last / 1000:g} of {config.get('kimg'):g} thousand "
                f"images; run {folder.path}"
            ),
            grids=[
                (title, _pixels(samples[name][last]))
                for name, title in _TITLES.items()
                if last in samples[name]
            ],
            history=[
                (f"{seen / 1000:g} thousand images", _first_row(_pixels(snapshots[seen])))
                for seen in _spread([*snapshots])
            ],
            curves=folder.metrics(),
            step=(1000, "thousand images"),
            config=config,
        ),
    )
    return path


def _spread(snapshots: list[int]) -> list[int]:
    """A few of the snapshots, evenly spread, the first and the last among them."""
    count = min(_HISTORY, len(snapshots))
    return [snapshots[round(i)] for i in np.linspace(0, len(snapshots) - 1, count)]


def _pixels(path: Path) -> Tensor:
    """Read a picture, uint8 [3, H, W]."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _first_row(grid: Tensor) -> Tensor:
    """The images in the first row of a grid."""
    return grid[:, : grid.shape[2] // GRID]
