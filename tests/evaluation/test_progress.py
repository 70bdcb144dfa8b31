"""The page of a pre-training run, from what lies in its folder."""

import re

import torch

from gpseg.evaluation.progress import write_progress
from gpseg.training.pretrain import pretrain
from gpseg.training.pretrain_config import PretrainConfig
from gpseg.training.run_folder import RunFolder

SIDE = 8


def run(tmp_path, snapshots: int) -> RunFolder:
    folder = RunFolder.open(tmp_path / "run", "pretrain", {"data": "photos", "kimg": 40.0})
    for step in range(1000, 1000 * snapshots + 1, 1000):
        folder.log(step, {"loss_g": 1.0, "sign_real": -0.2})
        folder.log(
            step, {"swd": 10.0, "swd_16": 9.0, "frechet_8": 2.0, "coverage": 0.5, "nearest": 1.0}
        )
        for psi in ("psi0.7", "psi1.0"):
            folder.write_image(psi, torch.full((3, 8 * SIDE, 8 * SIDE), 7).byte(), step)
    folder.close()
    return folder


def test_it_shows_the_last_grids_the_way_there_and_every_kind_of_curve(tmp_path):
    html = write_progress(run(tmp_path, 9)).read_text()
    assert "after 9 of 40 thousand images" in html
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert captions[:2] == [
        "truncation psi 0.7: less variety, as a rule cleaner",
        "no truncation: what the generator has learned",
    ]
    assert captions[2:8] == [f"{n} thousand images" for n in (1, 3, 4, 6, 7, 9)]
    assert [caption.split(" ")[0] for caption in captions[8:]] == [
        "Losses", "Sliced", "Fréchet", "Coverage,", "Mean",
    ]  # fmt: skip


def test_one_snapshot_has_no_history(tmp_path):
    html = write_progress(run(tmp_path, 1)).read_text()
    assert "as training went on" not in html
    assert html.count("<figcaption>truncation") == 1


def test_a_run_of_pretraining_has_its_page(tmp_path):
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    options = {"resolution": 16, "channel_base": 128, "channel_max": 8, "z_dim": 8, "batch": 4}
    config = PretrainConfig(tmp_path, tmp_path / "run", kimg=0.016, snapshot_kimg=0.008, **options)
    pretrain(config, images, write_progress)
    html = (tmp_path / "run" / "report.html").read_text()
    assert "after 0.016 of 0.016 thousand images" in html
    assert "Fréchet distance" in html
    assert "s_per_kimg" not in html
