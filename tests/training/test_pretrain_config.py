"""Presets: one table, filled in where nothing was given."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from gpseg.errors import InputError
from gpseg.models.checkpoint import save_generator
from gpseg.models.stylegan2 import NetworkConfig
from gpseg.training.device import choose_dtype
from gpseg.training.pretrain_config import PRESETS, PretrainConfig, preset_table


def config(**options: object) -> PretrainConfig:
    return PretrainConfig(Path(), device="cpu", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "row"),
    [
        ({}, "64-cpu"),
        ({"resolution": 128}, "128-cpu"),
        ({"preset": "32"}, "32-cpu"),
        ({"preset": "256-gpu"}, "256-gpu"),
        ({"preset": "auto-gpu", "resolution": 1024}, "1024-gpu"),
        ({"preset": "256-gpu", "resolution": 512}, "512-gpu"),
    ],
)
def test_the_row_that_a_preset_stands_for(options: dict[str, object], row: str) -> None:
    assert config(**options).preset_name() == row


def test_rules_follow_the_options_that_are_given() -> None:
    recipe = config(preset="256-gpu", batch=64, z_dim=64).recipe()
    assert (recipe.batch, recipe.z_dim, recipe.channel_base) == (64, 64, 16384)
    assert recipe.ema_kimg == 20
    assert recipe.r1_gamma == pytest.approx(0.0002 * 256**2 / 64)
    assert recipe.path_length_weight == 2
    given = config(preset="1024-gpu", r1_gamma=3.0, ema_kimg=7.0, path_length_weight=0.0).recipe()
    assert (given.r1_gamma, given.ema_kimg, given.path_length_weight) == (3, 7, 0)
    assert given.lr_generator == given.lr_discriminator == 0.002
    assert config(lr_generator=0.0).recipe().lr_discriminator == 0.0025


def test_every_preset_can_be_built_from() -> None:
    for name in PRESETS:
        config(preset=name).check()
        assert config(preset=name).network().img_resolution == int(name.split("-")[0])


def test_a_continued_run_keeps_what_its_preset_filled_in() -> None:
    stored = dataclasses.asdict(config(preset="64-gpu", batch=8).filled_in())
    continued = config().filled_in(stored)
    assert dataclasses.asdict(continued.recipe()).items() <= stored.items()
    assert continued.recipe().channel_base == 16384
    assert config(batch=12).filled_in(stored).recipe().batch == 12


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"preset": "huge"}, "--preset huge"),
        ({"preset": "48"}, "resolution 48"),
        ({"micro_batch": 6}, "--micro-batch 6"),
        ({"micro_batch": 12}, "--micro-batch 12"),
        ({"freeze_d": 5}, "--freeze-d 5"),
        ({"path_length_interval": 0}, "--path-length-interval 0"),
        ({"transfer": Path("nowhere")}, "nowhere"),
        ({"kimg": math.nan}, "--kimg nan: give a number above 0"),
        ({"kimg": math.inf}, "--kimg inf"),
        ({"log_kimg": math.nan}, "--log-kimg nan"),
        ({"snapshot_kimg": math.nan}, "--snapshot-kimg nan"),
        ({"rank_timeout": math.nan}, "--rank-timeout nan"),
        ({"lr_generator": math.nan}, "--lr-generator nan: give 0 or more"),
        ({"lr_discriminator": -1.0}, "--lr-discriminator -1"),
        ({"r1_gamma": -50.0}, "--r1-gamma -50"),
        ({"ema_kimg": -3.0}, "--ema-kimg -3"),
        ({"path_length_weight": -2.0}, "--path-length-weight -2"),
        ({"style_mixing": 7.0}, "--style-mixing 7.0: give a number from 0 to 1"),
        ({"ada_target": math.nan}, "--ada-target nan"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**63}, f"--seed {2**63}: give a whole number from 0 to {2**63 - 1}"),
    ],
)
def test_options_that_cannot_work(options: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        config(**options).check()


def test_the_batch_is_shared_in_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="--batch 16: give a multiple of 4 for each of 3"):
        config().check()
    config(batch=12).check()


def test_the_widths_of_the_checkpoint_to_start_from(tmp_path: Path) -> None:
    small = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=64, channel_max=4, mapping_layers=1)
    save_generator(tmp_path / "g", small.generator(), small.discriminator(), small)
    network = config(transfer=tmp_path / "g", resolution=32, channel_max=6).network()
    assert (network.img_resolution, network.channel_base, network.channel_max) == (32, 64, 6)
    assert network.mapping_layers == 1


def test_float16_is_for_gpus_and_bounded() -> None:
    assert config(precision="fp16").network().conv_clamp == 256
    assert config(precision="bf16").network().conv_clamp is None
    with pytest.raises(InputError, match=r"--precision fp16.*bf16"):
        choose_dtype("fp16", torch.device("cpu"))


def test_the_documentation_shows_the_table() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "pretraining.md").read_text()
    assert preset_table() in docs.replace("\n    ", "\n")
